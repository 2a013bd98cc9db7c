"""Read the bytes of a file from a directory or a URL.

Local paths and file:// are opened here, http(s):// by scaling.data.io.http, and the schemes of
object stores by scaling.data.io.store. Every other scheme is refused; pipe: would run a command.
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
from scaling.data.io.http import HttpFile, Patience, describe, head, is_http
from scaling.data.io.store import BUFFER_BYTES, DRIVERS, StoreFile
from scaling.errors import DataError

_SCHEMES = frozenset({"file", "http", "https", *DRIVERS})
AT_FIRST = Patience(timeout_s=10.0, give_up_s=15.0)
"""Retry limits while a person waits: short outages pass, a wrong address is reported soon.
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
    if scheme and scheme not in _SCHEMES:
        raise DataError(
            f"{location} cannot be opened: scheme {scheme}: is not allowed",
            fix=f"Use a directory or one of {', '.join(sorted(_SCHEMES))}.",
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
    """Open the file as a stream. It is seekable, except behind an http server without ranges.
    Raises OSError, DataError.

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
    return cast(IO[bytes], io.BufferedReader(StoreFile(str(location), patience), BUFFER_BYTES))


def fetch(location: str | Path, max_bytes: int = -1, patience: Patience = AT_FIRST) -> bytes:
    """Content of a file, at most `max_bytes` of it. Raises DataError that names the location and
    the cause."""
    try:
        if (path := local_path(location)) is not None:
            return _read(path, max_bytes)
        if is_http(str(location)):
            with open_location(location, patience) as file:
                return file.read(max_bytes)
        with StoreFile(str(location), patience) as stored:
            if stored.size is None:
                return io.BufferedReader(stored, BUFFER_BYTES).read(max_bytes)
            # all that is wanted in one request
            wanted = stored.size if max_bytes < 0 else min(max_bytes, stored.size)
            return _read_up_to(stored, wanted)
    except (OSError, ValueError) as error:
        raise unreadable(location, error) from error


def fetch_whole(location: str | Path, max_bytes: int, patience: Patience = AT_FIRST) -> bytes:
    """All of a file that is to be held in memory. Raises DataError for one of more than
    `max_bytes`, however long it continues."""
    content = fetch(location, max_bytes + 1, patience)
    if len(content) > max_bytes:
        raise DataError(
            f"{location} cannot be read: it has more than {max_bytes} bytes",
            fix="Check that the path or URL is the right one.",
        )
    return content


def _read_up_to(file: io.RawIOBase, n_bytes: int) -> bytes:
    parts: list[bytes] = []
    while n_bytes > 0 and (part := file.read(n_bytes)):
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


def _read(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file in one piece, without a copy where all of it is wanted."""
    with path.open("rb", buffering=0) as file:
        whole = max_bytes < 0 or os.fstat(file.fileno()).st_size <= max_bytes
        return file.readall() if whole else file.read(max_bytes)


def size_bytes(location: str | Path, patience: Patience = AT_FIRST) -> int | None:
    """Size of a file without reading it; None where the store does not report one. Raises DataError
    for a file that is not there."""
    try:
        path = local_path(location)
        if path is not None:
            return path.stat().st_size
        if is_http(str(location)):
            return _http_size(str(location), patience)
        return StoreFile(str(location), patience).size
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
