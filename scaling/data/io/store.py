"""Files in object stores and on other hosts, read through fsspec with the retries of
scaling.data.io.http.

fsspec knows many schemes, among them some that run code, unpack archives or chain others. Only the
schemes of DRIVERS are handed to it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from scaling.data.io.http import Attempts, Patience
from scaling.errors import DataError

DRIVERS = {
    "abfs": "adlfs",
    "az": "adlfs",
    "gcs": "gcsfs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
    "memory": "fsspec",
    "oci": "ocifs",
    "oss": "ossfs",
    "s3": "s3fs",
    "sftp": "paramiko",
}
"""Scheme -> the package that fsspec needs for it. Only fsspec and huggingface_hub are installed
with this one."""
BUFFER_BYTES = 4 << 20
"""Bytes of one request. Assumption: enough to hide a store's latency, small beside a shard."""
_CHAIN = "::"
_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "mtime")
"""Entries that differ between versions of a file in a store; the first one found is used."""


class StoreFile(io.RawIOBase):
    """A file in a store as a seekable stream.

    Each read is a request of its own, so a failed one is repeated without harm. Raises OSError when
    patience is at an end, and DataError where the driver is not installed.
    """

    def __init__(self, url: str, patience: Patience) -> None:
        super().__init__()
        self.url = url
        self._attempts = Attempts(url, patience)
        self._at = 0
        self._store, self._path = _open_store(url)
        found = self._attempts.until_it_works(self._info)
        if found.get("type") == "directory":
            raise IsADirectoryError(f"it is a folder: name its files, as {url.rstrip('/')}/*.jsonl")
        size = found.get("size")
        self.size: int | None = None if size is None else int(size)
        self.version = next((str(found[key]) for key in _VERSIONS if found.get(key)), None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.size is not None

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            if self.size is None:
                raise io.UnsupportedOperation(f"{self.url} has no known size")
            offset += self.size
        elif whence == io.SEEK_CUR:
            offset += self._at
        self._at = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        end = self._at + len(buffer)
        if self.size is not None:
            # stores answer a range that begins at the end with an error
            end = min(end, self.size)
        if end <= self._at:
            return 0
        content = self._attempts.until_it_works(lambda: self._range(end))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def _info(self) -> dict[str, Any]:
        with _os_errors():
            return dict(self._store.info(self._path))

    def _range(self, end: int) -> bytes:
        with _os_errors():
            content = bytes(self._store.cat_file(self._path, start=self._at, end=end))
        self._attempts.received(len(content))
        return content


def matching_urls(pattern: str, patience: Patience) -> list[str]:
    """URLs that a glob matches, in order. Raises OSError, and DataError where nothing matches."""
    store, path = _open_store(pattern)

    def look() -> list[str]:
        with _os_errors():
            return sorted(str(store.unstrip_protocol(found)) for found in store.glob(path))

    found = Attempts(pattern, patience).until_it_works(look)
    if not found:
        raise DataError(f"{pattern} matches no file", fix="Check the bucket and the pattern.")
    return found


def _open_store(url: str) -> tuple[Any, str]:
    """The file system that a URL names, and the path in it."""
    if _CHAIN in url:
        raise DataError(
            f"{url} cannot be opened: it chains file systems with {_CHAIN}",
            fix="Name one file or folder by one scheme.",
        )
    import fsspec

    scheme = url.partition(":")[0].lower()
    try:
        store, path = fsspec.url_to_fs(scheme + url[len(scheme) :])
    except ImportError as error:
        package = DRIVERS[scheme]
        raise DataError(
            f"{url} cannot be opened: {scheme}:// needs the package {package}, which is not"
            f" installed ({error})",
            fix=f"pip install {package}",
        ) from error
    except Exception as error:  # drivers have errors of their own, for credentials and names
        raise OSError(f"{type(error).__name__}: {error}") from error
    return store, str(path)


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Drivers raise errors of their own: callers and retries know OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
