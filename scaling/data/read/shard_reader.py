"""One shard: tar -> token stream, every claim of the index checked before a token is used.

webdataset walks the tar, but for those of the one layout that is written here; the members are
decoded here, from an allow-list of one raw extension. Nothing is unpickled, and member names are
never used as paths.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from scaling.data.io.fetch import AT_FIRST, fetch, join
from scaling.data.io.http import Patience
from scaling.data.read.verified import Verified, VerifiedShards
from scaling.data.shards import DTYPES, CorpusIndex, ShardInfo
from scaling.errors import DataError

_SIZE, _TYPE, _MAGIC = 124, 156, 257
"""Where a header of POSIX.1-1988 (ustar) has the size of the member, its type, and the format's
name."""
_FILE = b"0" + bytes(_MAGIC - _TYPE - 1) + b"ustar"
FIX = (
    "Copy the shard again or prepare the corpus again; data.on_bad_shard=skip leaves "
    "damaged shards of the train split out."
)


def read_shard(directory: str | Path, index: CorpusIndex, shard: ShardInfo) -> np.ndarray:
    """Token stream of a shard: its documents, each followed by end-of-text; (n_tokens,) of
    index.dtype.

    Raises DataError, naming the shard, when it is missing or not what the index says.
    """
    return decode_shard(fetch_shard(directory, shard), index, shard, join(directory, shard.name))


def fetch_shard(
    directory: str | Path,
    shard: ShardInfo,
    patience: Patience = AT_FIRST,
    verified: Verified | None = None,
) -> bytes:
    """The content of a shard, of the size and checksum that the index gives. Raises DataError that
    names it.

    One that was `verified` is compared with what it was then, by its CRC32, a quarter of the time.
    """
    location = join(directory, shard.name)
    with _named(shard, location):
        content = fetch(location, max_bytes=shard.size_bytes + 1, patience=patience)
        _check_content(content, shard, verified)
    return content


def is_sound(content: bytes, shard: ShardInfo, verified: Verified | None = None) -> bool:
    """Whether this is the content that the index describes; or which was `verified`."""
    try:
        _check_content(content, shard, verified)
    except _Damaged:
        return False
    return True


def decode_shard(
    content: bytes,
    index: CorpusIndex,
    shard: ShardInfo,
    location: str,
    known: VerifiedShards | None = None,
) -> np.ndarray:
    """The token stream in the sound content of a shard. Raises DataError, naming the shard, for one
    that the index belies.

    What is found goes to `known`, and is taken from there the next time.
    """
    verified = known.get(shard) if known is not None else None
    view = memoryview(content)
    if verified is not None and verified.spans is not None:
        return _join([view[begin:end] for begin, end in verified.spans.tolist()], index)
    with _named(shard, location):
        extension = DTYPES[index.dtype]
        spans = _own_spans(content, extension)
        documents = (
            list(_documents(content, extension))
            if spans is None
            else [view[begin:end] for begin, end in spans]
        )
        _check_documents(documents, index)
        tokens = _join(documents, index)
        _check_tokens(tokens, len(documents), shard, index)
    if known is not None and verified is None:
        known.add(shard, Verified(zlib.crc32(content), None if spans is None else np.array(spans)))
    return tokens


@contextlib.contextmanager
def _named(shard: ShardInfo, location: str) -> Iterator[None]:
    """Errors about the content of a shard, as errors of that shard."""
    try:
        yield
    except (_Damaged, DataError) as error:
        reason = error.what if isinstance(error, DataError) else str(error)
        raise DataError(
            f"shard {shard.name} is missing or damaged: {reason}", where=location, fix=FIX
        ) from error


class _Damaged(Exception):
    """A shard that is not what the index says: what was found, and what was expected."""


def _check_content(content: bytes, shard: ShardInfo, verified: Verified | None) -> None:
    if len(content) != shard.size_bytes:
        more = "more than " if len(content) > shard.size_bytes else ""
        found = min(len(content), shard.size_bytes)
        raise _Damaged(f"it has {more}{found} bytes, and the index says {shard.size_bytes}")
    if verified is not None:
        if (found_crc := zlib.crc32(content)) != verified.crc32:
            raise _Damaged(
                f"it has changed since it was verified: its crc32 is {found_crc:08x}, and was "
                f"{verified.crc32:08x}"
            )
        return
    found_hash = hashlib.sha256(content).hexdigest()
    if found_hash != shard.sha256:
        raise _Damaged(
            f"its sha256 is {found_hash[:16]}..., and the index says {shard.sha256[:16]}..."
        )


def _own_spans(content: bytes, extension: str) -> list[tuple[int, int]] | None:
    """Begin and end of each document in a tar of exactly the layout that `write_shard` gives it;
    None for any other.

    A tenth of the time of webdataset's general walk, which was most of the loader's
    (docs/benchmarks.md).
    """
    at = 0
    found: list[tuple[int, int]] = []
    while content[at : at + 1].strip(b"\0"):
        name = b"%09d.%s\0" % (len(found), extension.encode())
        size = content[at + _SIZE : at + _SIZE + 11]
        if not (
            content.startswith(name, at)
            and content[at + _TYPE : at + _MAGIC + 5] == _FILE
            and size
            and not size.strip(b"01234567")
        ):
            return None
        begin = at + tarfile.BLOCKSIZE
        end = begin + int(size, 8)
        found.append((begin, end))
        at = begin + -(-(end - begin) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if at > len(content):
            return None
    return found if content.count(0, at) == len(content) - at >= 2 * tarfile.BLOCKSIZE else None


def _documents(content: bytes, extension: str) -> Iterator[bytes]:
    """The raw tokens of each document of an uncompressed tar, in order."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    if content[257:262].strip(b"\0") not in (b"", b"ustar"):
        raise _Damaged("it is not an uncompressed tar file")
    source = {"url": "", "stream": io.BytesIO(content)}
    try:
        for sample in group_by_keys(tar_file_expander([source])):
            key, members = sample["__key__"], sample.keys() - {"__key__", "__url__"}
            if not key.isdecimal() or members != {extension}:
                names = ", ".join(f"{key}.{member}" for member in sorted(members))
                raise _Damaged(
                    f"it holds {names!r}; a document is one member NUMBER.{extension}, and "
                    "nothing else is read"
                )
            yield sample[extension]
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise _Damaged(
            f"it is not a readable tar file: {error.args[0] if error.args else error}"
        ) from error


def _check_documents(documents: Sequence[bytes | memoryview], index: CorpusIndex) -> None:
    size = np.dtype(index.dtype).itemsize
    for number, document in enumerate(documents):
        if len(document) % size:
            raise _Damaged(f"document {number} has {len(document)} bytes, not a multiple of {size}")


def _join(documents: Sequence[bytes | memoryview], index: CorpusIndex) -> np.ndarray:
    dtype = np.dtype(index.dtype).newbyteorder("<")
    eot = np.array([index.tokenizer.eot_id], dtype=dtype).tobytes()
    stream = b"".join(part for document in documents for part in (document, eot))
    return np.frombuffer(stream, dtype=dtype).astype(index.dtype, copy=False)


def _check_tokens(
    tokens: np.ndarray, n_documents: int, shard: ShardInfo, index: CorpusIndex
) -> None:
    if (n_documents, len(tokens)) != (shard.n_documents, shard.n_tokens):
        found, expected = (
            f"{n_documents} documents of {len(tokens)} tokens",
            f"{shard.n_documents} of {shard.n_tokens}",
        )
        raise _Damaged(f"it holds {found}, and the index says {expected}")
    largest = int(tokens.max(initial=0))
    if largest >= index.tokenizer.vocab_size:
        raise _Damaged(
            f"it holds token id {largest}, and the vocabulary has {index.tokenizer.vocab_size} "
            "entries"
        )
