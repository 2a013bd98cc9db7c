"""Bytes of a file that lies in a directory or behind a URL. Standard library only.

Local paths, file:// and http(s):// are read here, with bounded waits and retries; the remaining schemes that webdataset
opens without a shell (gs, hf, ais, sftp, ftps, scp) go through its gopen. pipe: URLs run commands and are refused.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from scaling.errors import DataError

WEBDATASET_SCHEMES = frozenset({"ais", "ftps", "gs", "hf", "scp", "sftp"})
TIMEOUT_S = 30.0  # assumption: a store that says nothing for so long is down
ATTEMPTS = 3  # assumption: short outages pass within the 0.5 s and 1 s between them


def scheme_of(location: str | Path) -> str:
    """ "" for a local path, "file", "http" and so on for a URL. Raises DataError for a scheme that is not read."""
    scheme = urlparse(str(location)).scheme.lower()
    if scheme not in {"", "file", "http", "https"} | WEBDATASET_SCHEMES:
        known = ", ".join(sorted({"file", "http", "https"} | WEBDATASET_SCHEMES))
        raise DataError(
            f"{location} cannot be opened: scheme {scheme}: is not allowed", fix=f"Use a directory or one of {known}."
        )
    return scheme


def local_path(location: str | Path) -> Path | None:
    """The path of a local location, None for a remote one."""
    scheme = scheme_of(location)
    if scheme == "file":
        return Path(urllib.request.url2pathname(urlparse(str(location)).path))
    return Path(location).expanduser() if scheme == "" else None


def join(directory: str | Path, name: str) -> str:
    """Location of the file `name` directly inside a directory or URL."""
    path = local_path(directory)
    return str(path / name) if path is not None else f"{str(directory).rstrip('/')}/{name}"


def fetch(location: str | Path, max_bytes: int = -1) -> bytes:
    """Content of a file, at most `max_bytes` of it. Raises DataError that names the location and the cause."""
    try:
        path = local_path(location)
        if path is not None:
            with path.open("rb") as file:
                return file.read(max_bytes)
        if scheme_of(location) in WEBDATASET_SCHEMES:
            return _gopen(str(location), max_bytes)
        content: bytes = _http(urllib.request.Request(str(location)), lambda response: response.read(max_bytes))
        return content
    except (OSError, ValueError) as error:
        raise DataError(f"{location} cannot be read: {_reason(error)}", fix=_fix(error)) from error


def size_bytes(location: str | Path) -> int | None:
    """Size of a file without reading it; None where the store does not say. Raises DataError when it is not there."""
    try:
        path = local_path(location)
        if path is not None:
            return path.stat().st_size
        if scheme_of(location) in WEBDATASET_SCHEMES:
            return None
        request = urllib.request.Request(str(location), method="HEAD")
        length = _http(request, lambda response: response.headers.get("Content-Length"))
        return int(length) if length is not None else None
    except (OSError, ValueError) as error:
        raise DataError(f"{location} cannot be read: {_reason(error)}", fix=_fix(error)) from error


def _http(request: urllib.request.Request, use: Any) -> Any:
    """`use(response)`, tried ATTEMPTS times unless the server answered that the request itself is wrong (4xx)."""
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return use(response)
        except OSError as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if final or attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.5 * 2**attempt)
    raise AssertionError("unreachable")


def _gopen(url: str, max_bytes: int) -> bytes:
    from webdataset.gopen import gopen

    with gopen(url, "rb") as stream:
        content: bytes = stream.read(max_bytes)
        return content


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error)


def _fix(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "Make it readable for this user."
    return "Check that the path or URL is right and that the file is there."
