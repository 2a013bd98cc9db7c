"""Bytes of a file that lies in a directory or behind a URL. Standard library only.

Local paths, file:// and http(s):// are read here, with bounded waits and retries; the remaining
schemes that webdataset opens without a shell (gs, hf, ais, sftp, ftps, scp) go through its gopen.
pipe: URLs run commands and are refused.
"""

from __future__ import annotations

import io
import os
import re
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import IO, cast

from scaling.config.paths import plain
from scaling.data.io.http import Attempts, HttpFile, Patience, describe, head, is_http
from scaling.errors import DataError

WEBDATASET_SCHEMES = frozenset({"ais", "ftps", "gs", "hf", "scp", "sftp"})
AT_FIRST = Patience(timeout_s=10.0, give_up_s=15.0)
"""For what is asked while a person waits: short outages pass, a wrong address is told soon.
Assumption."""
_BUFFER_BYTES = 1 << 20
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_NO_HEAD = (405, 501)  # answers of servers that know no HEAD


def scheme_of(location: str | Path) -> str:
    """ "" for a local path, "file", "http" and so on for a URL. Raises DataError for a scheme that
    is not read.

    What exists under this very name is a path, whatever it looks like.
    """
    match = _SCHEME.match(str(location))
    scheme = match[1].lower() if match and not os.path.lexists(location) else ""
    if scheme not in {"", "file", "http", "https"} | WEBDATASET_SCHEMES:
        known = ", ".join(sorted({"file", "http", "https"} | WEBDATASET_SCHEMES))
        raise DataError(
            f"{location} cannot be opened: scheme {scheme}: is not allowed",
            fix=f"Use a directory or one of {known}.",
        )
    return scheme


def local_path(location: str | Path) -> Path | None:
    """The path of a local location, None for a remote one."""
    return Path(plain(str(location))) if scheme_of(location) in ("", "file") else None


def join(directory: str | Path, name: str) -> str:
    """Location of the file `name` directly inside a directory or URL."""
    path = local_path(directory)
    return str(path / name) if path is not None else f"{str(directory).rstrip('/')}/{name}"


def open_location(
    location: str | Path, patience: Patience = AT_FIRST, headers: Mapping[str, str] | None = None
) -> IO[bytes]:
    """The file as a stream; seekable on a disk, and behind http where the server has ranges. Raises
    OSError, DataError.

    `headers` go along with requests to the server of an http location.
    """
    path = local_path(location)
    if path is not None:
        return path.open("rb")
    if is_http(str(location)):
        return cast(
            IO[bytes],
            io.BufferedReader(
                HttpFile(str(location), patience=patience, headers=headers), _BUFFER_BYTES
            ),
        )
    from webdataset.gopen import gopen

    return cast(IO[bytes], gopen(str(location), "rb"))


def _gopened(url: str, max_bytes: int) -> bytes:
    with open_location(url) as file:
        return file.read(max_bytes)


def fetch(location: str | Path, max_bytes: int = -1, patience: Patience = AT_FIRST) -> bytes:
    """Content of a file, at most `max_bytes` of it. Raises DataError that names the location and
    the cause."""
    try:
        if (path := local_path(location)) is not None:
            return _read(path, max_bytes)
        if is_http(str(location)):
            with open_location(location, patience) as file:
                return file.read(max_bytes)
        return Attempts(str(location), patience).until_it_works(
            lambda: _gopened(str(location), max_bytes)
        )
    except (OSError, ValueError) as error:
        raise unreadable(location, error) from error


def fetch_whole(location: str | Path, max_bytes: int, patience: Patience = AT_FIRST) -> bytes:
    """All of a file that is to be held in memory. Raises DataError for one of more than
    `max_bytes`, however long it goes on."""
    content = fetch(location, max_bytes + 1, patience)
    if len(content) > max_bytes:
        raise DataError(
            f"{location} cannot be read: it has more than {max_bytes} bytes",
            fix="Check that the path or URL is the right one.",
        )
    return content


def _read(path: Path, max_bytes: int) -> bytes:
    """In one piece, without a copy where all of it is wanted."""
    with path.open("rb", buffering=0) as file:
        whole = max_bytes < 0 or os.fstat(file.fileno()).st_size <= max_bytes
        return file.readall() if whole else file.read(max_bytes)


def size_bytes(location: str | Path, patience: Patience = AT_FIRST) -> int | None:
    """Size of a file without reading it; None where the store does not say. Raises DataError when
    it is not there."""
    try:
        path = local_path(location)
        if path is not None:
            return path.stat().st_size
        return _http_size(str(location), patience) if is_http(str(location)) else None
    except (OSError, ValueError) as error:
        raise unreadable(location, error) from error


def _http_size(url: str, patience: Patience) -> int | None:
    try:
        length = head(url, patience).get("Content-Length")
    except urllib.error.HTTPError as error:
        if error.code not in _NO_HEAD:
            raise
        with HttpFile(url, patience=patience) as file:
            return file.size
    return int(length) if length is not None else None


def unreadable(location: str | Path, error: Exception) -> DataError:
    """The error to raise for a file that the system or the server refused: its name, the cause, a
    way out."""
    reason = "no such file" if isinstance(error, FileNotFoundError) else describe(error)
    return DataError(f"{location} cannot be read: {reason}", fix=_fix(error))


def _fix(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "Make it readable for this user."
    if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403):
        return "The server refuses it: check the address and your rights to it."
    return "Check that the path or URL is right and that the file is there."
