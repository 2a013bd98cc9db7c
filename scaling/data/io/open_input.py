"""Inputs as streams, wherever they lie and however they are compressed."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from scaling.data.io.fetch import open_location
from scaling.data.io.http import Patience
from scaling.data.io.hub import hub_headers
from scaling.data.io.remote import name_of
from scaling.data.prepare.sources import unreadable
from scaling.errors import DataError

_COMPRESSED = (".gz", ".zst", ".zstd")
_FRAME, _LARGEST_WINDOW = b"\x28\xb5\x2f\xfd", 1 << 27
"""How a frame of zstd begins (RFC 8878), and the window that its library takes unasked; zstd
--long=31 writes 2 GB."""
_PATIENCE = Patience(timeout_s=30.0, give_up_s=600.0)
"""Nobody waits beside a preparation of hours, and the same command goes on where it ended.
Assumption."""
_PARQUET_BUFFER_BYTES = 1 << 20


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
            with _zstd(raw, location) as file:
                yield file
        else:
            yield raw


def _zstd(raw: IO[bytes], location: str) -> IO[bytes]:
    """pyarrow's decompressor reads all frames of a file and tells one that is cut short, but takes
    no long window."""
    window = _window_bytes(raw.peek(18) if isinstance(raw, io.BufferedReader) else b"")
    if window > _LARGEST_WINDOW:
        return _long_zstd(raw, location, window)
    import pyarrow

    return io.BufferedReader(
        pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd"), 1 << 20
    )


def _window_bytes(head: bytes) -> int:
    """How far back a frame may refer, which is what reading it takes of memory; 0 where this is no
    frame (RFC 8878, 3.1.1.1)."""
    if len(head) < 6 or not head.startswith(_FRAME):
        return 0
    descriptor = head[4]
    if not descriptor & 0x20:
        base = 1 << (10 + (head[5] >> 3))
        return base + base // 8 * (head[5] & 7)
    begin = 5 + (0, 1, 2, 4)[descriptor & 3]  # a single segment: as much as its content
    size = int.from_bytes(head[begin : begin + (1, 2, 4, 8)[descriptor >> 6]], "little")
    return size + 256 if descriptor >> 6 == 1 else size


def _long_zstd(raw: IO[bytes], location: str, window: int) -> IO[bytes]:
    try:
        from backports import zstd
    except ImportError as error:
        raise DataError(
            f"{location} is compressed with a window of {window} bytes (zstd --long), and pyarrow reads {_LARGEST_WINDOW}",
            fix=f"pip install backports.zstd, or compress it again: zstd -dc --long=31 {location} | zstd -o NEW.zst",
        ) from error
    limit: dict[int, int] = {
        zstd.DecompressionParameter.window_log_max: min((window - 1).bit_length(), 31)
    }
    return io.BufferedReader(zstd.ZstdFile(cast(Any, raw), "rb", options=limit), 1 << 20)


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
                f"{location} is not a parquet file: {error}", fix="Copy it anew, or leave it out."
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
