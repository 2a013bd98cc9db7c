"""Inputs as streams, wherever they lie and however they are compressed."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from scaling.data.io.fetch import open_location, unreadable
from scaling.data.io.http import Patience
from scaling.data.io.hub import hub_headers
from scaling.data.io.remote import name_of
from scaling.errors import DataError

_COMPRESSED = (".gz", ".zst", ".zstd")
_WINDOW_LOG = 31
"""The largest window that zstd writes (--long=31), and so the memory that a frame may take: 2 GB.
Its library accepts 27 unasked, and any frame of a file may have a larger one."""
_PATIENCE = Patience(timeout_s=30.0, give_up_s=600.0)
"""Nobody waits beside a preparation of hours, and the same command continues where it ended.
Assumption."""
_PARQUET_BUFFER_BYTES = 1 << 20
_ZSTD_BUFFER_BYTES = 1 << 20


def is_compressed(location: str) -> bool:
    """Whether the name ends in that of a compressed file, whose inside has the ending before."""
    return name_of(location).suffix.lower() in _COMPRESSED


@contextlib.contextmanager
def open_bytes(location: str) -> Iterator[IO[bytes]]:
    """A file, through its decompressor where the name ends in .gz, .tgz, .zst or .zstd. Raises
    OSError, DataError."""
    suffix = name_of(location).suffix.lower()
    with open_location(location, _PATIENCE, hub_headers(location)) as raw:
        if suffix in (".gz", ".tgz"):
            with gzip.open(raw, "rb") as file:
                yield cast(IO[bytes], file)
        elif suffix in (".zst", ".zstd"):
            with io.BufferedReader(_Unpacked(raw), _ZSTD_BUFFER_BYTES) as file:
                yield file
        else:
            yield raw


class _Unpacked(io.RawIOBase):
    """All frames of a zstd file. A damaged one raises OSError, one that is cut short EOFError."""

    def __init__(self, raw: IO[bytes]) -> None:
        from backports import zstd

        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        self._file = zstd.ZstdFile(cast(Any, raw), "rb", options=options)
        self._error: type[Exception] = zstd.ZstdError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._file.readinto(buffer)
        except self._error as error:  # readers of other formats raise OSError for damage
            raise OSError(str(error)) from error


@contextlib.contextmanager
def open_parquet(location: str) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile. Raises DataError for another file, and for one behind a server
    without ranges."""
    import pyarrow.parquet

    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(open_location(location, _PATIENCE, hub_headers(location)))
            if not file.seekable():
                raise DataError(
                    f"{location} cannot be read: its server gives no ranges of it",
                    fix="Download the file first.",
                )
            parquet = opened.enter_context(
                pyarrow.parquet.ParquetFile(file, buffer_size=_PARQUET_BUFFER_BYTES)
            )
        except OSError as error:
            raise unreadable(location, error) from error
        except ValueError as error:  # pyarrow.ArrowInvalid
            raise DataError(
                f"{location} is not a parquet file: {error}", fix="Copy it again, or leave it out."
            ) from error
        yield parquet


def is_text(kind: Any) -> bool:
    """Whether a column of this type of pyarrow's holds texts, or bytes that may be such."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return is_text(kind.value_type)
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    )


def binary_values(column: Any) -> Iterator[bytes | None]:
    """The bytes of a column for which `is_text` holds, None where there is no value."""
    from pyarrow import binary, large_binary, types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    large = types.is_large_string(column.type) or types.is_large_binary(column.type)
    for value in column.cast(large_binary() if large else binary()):
        yield value.as_py()


def n_row_groups(location: str) -> int:
    """Row groups of a parquet file, none where it has no rows. Raises DataError for another
    file."""
    with open_parquet(location) as file:
        return int(file.num_row_groups) if file.metadata.num_rows else 0


def size_of(path: Path) -> int:
    """Size in bytes of a local file. Raises DataError."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error
