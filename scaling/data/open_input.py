"""Inputs as streams, wherever they lie and however they are compressed."""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from scaling.data.fetch import open_location
from scaling.data.http import Patience
from scaling.data.hub import hub_headers
from scaling.data.remote import name_of
from scaling.data.sources import unreadable
from scaling.errors import DataError

COMPRESSED = (".gz", ".zst", ".zstd")
_PATIENCE = Patience(timeout_s=30.0, give_up_s=600.0)
"""Nobody waits beside a preparation of hours, and the same command goes on where it ended. Assumption."""
_PARQUET_BUFFER_BYTES = 1 << 20


@contextlib.contextmanager
def open_bytes(location: str) -> Iterator[IO[bytes]]:
    """A file, through its decompressor where the name ends in .gz, .tgz, .zst or .zstd. Raises OSError, DataError."""
    suffix = name_of(location).suffix.lower()
    with open_location(location, _PATIENCE, hub_headers(location)) as raw:
        if suffix in (".gz", ".tgz"):
            with gzip.open(raw, "rb") as file:
                yield cast(IO[bytes], file)
        elif suffix in (".zst", ".zstd"):
            with _zstd(raw) as file:
                yield file
        else:
            yield raw


def _zstd(raw: IO[bytes]) -> IO[bytes]:
    """pyarrow's decompressor reads all frames of a file and tells one that is cut short; zstandard's stops without a word."""
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd"), 1 << 20)


@contextlib.contextmanager
def open_parquet(location: str) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile. Raises DataError for another file, and for one behind a server without ranges."""
    import pyarrow.parquet

    with contextlib.ExitStack() as opened:
        try:
            file = opened.enter_context(open_location(location, _PATIENCE, hub_headers(location)))
            if not file.seekable():
                raise DataError(f"{location} cannot be read: its server gives no ranges of it", fix="Download the file first.")
            parquet = opened.enter_context(pyarrow.parquet.ParquetFile(file, buffer_size=_PARQUET_BUFFER_BYTES))
        except OSError as error:
            raise unreadable(location, error) from error
        except ValueError as error:  # pyarrow.ArrowInvalid
            raise DataError(f"{location} is not a parquet file: {error}", fix="Copy it anew, or leave it out.") from error
        yield parquet


def n_row_groups(location: str) -> int:
    """Row groups of a parquet file. Raises DataError for another file."""
    with open_parquet(location) as file:
        return int(file.num_row_groups)


def size_of(path: Path) -> int:
    """Size in bytes of a local file. Raises DataError."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable(path, error) from error
