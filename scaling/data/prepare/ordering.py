"""Documents in the order of their content hashes, each once, whatever their number: sorted runs on
disk, then merged.

A run holds the documents of some megabytes of text, sorted by SHA-256; a bucket the distinct
documents whose hashes lie in one range of all runs. Neither is ever larger in memory than RUN_BYTES
and one document. Where the runs are many, several are merged into one, as a stream, until they are
few.
"""

from __future__ import annotations

import bisect
import hashlib
import heapq
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scaling.data.prepare.tasks import synced

RUN_BYTES = 32 << 20
"""Text of a run in memory. Assumption: few enough files for large corpora, little memory in each
process."""
FAN_IN = 256
"""Runs that a bucket looks into at most; more are merged before. Assumption: few enough to be open
together, and so many that the text is merged once beforehand up to 2 TB, and not at all up to 8
GB."""
# of a document: `end` of its text in the file beside
_KEY = np.dtype([("digest", "V32"), ("end", "<u8"), ("held_out", "?")])
# of a document in memory beside its text; measured with tracemalloc, CPython 3.11
_OVERHEAD_BYTES = 200
_CHUNK = 1024  # keys decoded at once


class Document(NamedTuple):
    """UTF-8 text, and whether its source holds it out of training."""

    digest: bytes
    content: bytes
    held_out: bool


@dataclass(frozen=True)
class Bucket:
    """One file of documents in order: those that the source holds out, then the others, each side
    by hash.

    `n_low`: documents with a hash below the bound of the hash split.
    """

    name: str
    n_documents: int
    n_held_out: int
    n_low: int
    n_bytes: int


def document_of(text: str, held_out: bool) -> Document:
    content = text.encode()
    return Document(hashlib.sha256(content).digest(), content, held_out)


def write_runs(documents: Iterable[Document], directory: Path, name: str) -> list[str]:
    """Sort documents into runs NAME-0, NAME-1, ...; returns their names. Equal documents of a run
    are one."""
    names: list[str] = []
    run: dict[bytes, Document] = {}
    size = 0
    for document in documents:
        known = run.get(document.digest)
        if known is None:
            size += len(document.content) + _OVERHEAD_BYTES
        # a text that its source holds out is held out wherever else it stands
        run[document.digest] = document if known is None or document.held_out else known
        if size >= RUN_BYTES:
            names.append(_write_run(run, directory, f"{name}-{len(names)}"))
            run, size = {}, 0
    if run:
        names.append(_write_run(run, directory, f"{name}-{len(names)}"))
    return names


def _write_run(run: dict[bytes, Document], directory: Path, name: str) -> str:
    write_documents((run[digest] for digest in sorted(run)), directory, name)
    return name


def write_documents(documents: Iterable[Document], directory: Path, name: str) -> int:
    """NAME.text and NAME.keys, the texts one after the other and their keys; returns the number of
    bytes of text."""
    chunk: list[tuple[bytes, int, bool]] = []
    end = 0
    with synced(directory / f"{name}.text") as file, synced(directory / f"{name}.keys") as keys:
        for document in documents:
            file.write(document.content)
            end += len(document.content)
            chunk.append((document.digest, end, document.held_out))
            if len(chunk) == _CHUNK:
                keys.write(np.array(chunk, dtype=_KEY).tobytes())
                chunk = []
        keys.write(np.array(chunk, dtype=_KEY).tobytes())
    return end


def _keys(directory: Path, name: str) -> np.ndarray:
    path = directory / f"{name}.keys"
    return np.memmap(path, dtype=_KEY, mode="r") if path.stat().st_size else np.empty(0, dtype=_KEY)


def remove_documents(directory: Path, name: str) -> None:
    """What `write_documents` wrote; what is not there is no error, since a kill may have come in
    between."""
    for suffix in (".text", ".keys"):
        (directory / f"{name}{suffix}").unlink(missing_ok=True)


def merge_runs(directory: Path, runs: list[str], name: str) -> str:
    """One run of all the documents of several."""
    write_documents(_merged(directory, runs, (0, 1 << 64)), directory, name)
    return name


def bucket_bounds(number: int, n_buckets: int) -> tuple[int, int]:
    """First prefix (64 bits of a hash) of a bucket, and of the next."""
    return (number << 64) // n_buckets, ((number + 1) << 64) // n_buckets


def write_bucket(
    directory: Path, runs: list[str], name: str, bounds: tuple[int, int], low: int
) -> Bucket:
    """Merge the documents whose prefix lies in `bounds` from all runs; `low` is the bound of the
    hash split."""
    counts = {"documents": 0, "held_out": 0, "low": 0}

    def counted(documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            counts["documents"] += 1
            counts["held_out"] += document.held_out
            counts["low"] += _prefix(document.digest) < low
            yield document

    sides = (_merged(directory, runs, bounds, held_out=side) for side in (True, False))
    n_bytes = write_documents(counted(itertools.chain.from_iterable(sides)), directory, name)
    return Bucket(name, counts["documents"], counts["held_out"], counts["low"], n_bytes)


def _prefix(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big")


class _Place(NamedTuple):
    """Where a run keeps a document; sorts by hash, those held out first among equal ones."""

    digest: bytes
    not_held_out: bool
    run: str
    begin: int
    end: int


def _merged(
    directory: Path, runs: list[str], bounds: tuple[int, int], *, held_out: bool | None = None
) -> Iterator[Document]:
    """The distinct documents, by hash, of one side or of both; one that any run holds out is held
    out."""
    segments = [_segment(directory, run, bounds) for run in runs]
    for digest, places in itertools.groupby(heapq.merge(*segments), key=lambda place: place.digest):
        place = next(places)
        if held_out in (None, not place.not_held_out):
            content = _read(directory / f"{place.run}.text", place.begin, place.end)
            yield Document(digest, content, not place.not_held_out)


def _segment(directory: Path, run: str, bounds: tuple[int, int]) -> Iterator[_Place]:
    """The documents of a run that lie in a range of prefixes, in order, a chunk of keys at a
    time."""
    keys = _keys(directory, run)
    first, last = (
        bisect.bisect_left(range(len(keys)), b, key=lambda i: _prefix(keys[i]["digest"].tobytes()))
        for b in bounds
    )
    begin = int(keys[first - 1]["end"]) if first else 0
    for start in range(first, last, _CHUNK):
        for digest, end, held_out in keys[start : min(start + _CHUNK, last)].tolist():
            yield _Place(digest, not held_out, run, begin, end)
            begin = end


def _read(path: Path, begin: int, end: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while begin < end and (part := os.pread(descriptor, end - begin, begin)):
            parts.append(part)
            begin += len(part)
        assert begin == end, f"{path} is shorter than its keys say"
        return b"".join(parts)
    finally:
        os.close(descriptor)


def read_documents(directory: Path, name: str, first: int = 0) -> Iterator[bytes]:
    """The texts of a run or bucket from document `first` on, read as a stream."""
    keys = _keys(directory, name)
    begin = int(keys[first - 1]["end"]) if 0 < first <= len(keys) else 0
    with (directory / f"{name}.text").open("rb") as file:
        file.seek(begin)
        for start in range(first, len(keys), _CHUNK):
            for end in keys["end"][start : start + _CHUNK].tolist():
                yield file.read(end - begin)
                begin = end
