"""Build a corpus: documents -> split by content -> tokenizer -> shards -> index, the same bytes every time.

Documents are known by the SHA-256 of their text. It decides the split, so that equal files never lie on both sides (all
but one are removed; empty ones too), and it gives the order in which documents are written, which is thereby random,
and independent of file names. Near duplicates are not looked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from scaling.config import DataConfig, TokenizerConfig
from scaling.data.shards import DTYPES, CorpusIndex, ShardInfo, TokenizerInfo
from scaling.data.sources import BETWEEN, Source, find_source, read_document, read_pairs
from scaling.data.tokenizer import Tokenizer, train_tokenizer
from scaling.errors import ConfigError, DataError
from scaling.units import format_bytes, format_count

Report = Callable[[str, float | None], None]
"""Told what is being done, and the part of it that is done (0 to 1, None where that is not known)."""

TOKENIZER_FILE = "tokenizer.json"
_BATCH_BYTES = 1 << 20  # text encoded at once; assumption: enough to occupy the tokenizer's threads


@dataclass(frozen=True)
class Document:
    """A file of a source and what it held when it was first read, or a text pair, which is kept (`text`)."""

    path: Path
    digest: bytes
    n_bytes: int
    text: str | None = None


def build_corpus(data: DataConfig, tokenizer: TokenizerConfig, directory: Path, report: Report) -> CorpusIndex:
    """Write tokenizer, shards and index into an empty directory, synced to disk. Raises ConfigError, DataError or OSError."""
    source = find_source(data)
    report(f"reading {len(source.files)} files", None)
    splits = split_by_source(source, data.val_fraction, report)
    train_bytes = sum(document.n_bytes for document in splits["train"])
    report(f"training the tokenizer on {format_bytes(train_bytes)}", None)
    texts = _texts(splits["train"], source)
    trained = train_tokenizer(tokenizer, _sides(texts) if source.pairs else texts)
    trained.save(directory / TOKENIZER_FILE)
    dtype = "uint16" if trained.vocab_size <= 1 << 16 else "uint32"
    shards = {}
    for split, documents in splits.items():
        writer = _SplitWriter(directory, split, dtype, data.shard_tokens)
        shards[split] = writer.write(_encoded(documents, source, trained, split, report))
    content = (directory / TOKENIZER_FILE).read_bytes()
    info = TokenizerInfo(
        TOKENIZER_FILE, hashlib.sha256(content).hexdigest(), trained.vocab_size, trained.eot_id, tokenizer.kind
    )  # fmt: skip
    index = CorpusIndex(name=data.kind, dtype=dtype, tokenizer=info, splits=shards)
    index.save(directory)
    _sync(directory)
    n_tokens = {split: format_count(sum(shard.n_tokens for shard in shards[split])) for split in shards}
    report(f"wrote {n_tokens['train']} tokens for training, {n_tokens['val']} held out", 1.0)
    return index


def scan(source: Source, report: Report) -> list[Document]:
    """Every file once, in the order of content hashes: without empty, duplicate and (unless strict) undecodable ones."""
    found: dict[bytes, Document] = {}
    n_undecodable = 0
    texts = read_pairs(source) if source.pairs else ((path, read_document(path, source.strict)) for path in source.files)
    for path, text in texts:
        if text is None:
            n_undecodable += 1
        elif text:
            content = text.encode()
            digest = hashlib.sha256(content).digest()
            found.setdefault(digest, Document(path, digest, len(content), text if source.pairs else None))
    if n_undecodable:
        report(f"left out {n_undecodable} files that are not UTF-8", None)
    return [found[digest] for digest in sorted(found)]


def split_by_source(source: Source, val_fraction: float, report: Report) -> dict[str, list[Document]]:
    """Held out: the files that the source says, or some by hash. Raises ConfigError when a side has no document."""
    documents = scan(source, report)
    if not source.val_files:
        return split_documents(documents, val_fraction)
    val = scan(replace(source, files=source.val_files), report)
    digests = {document.digest for document in val}
    train = [document for document in documents if document.digest not in digests]
    if not train or not val:
        side, key = ("train on", "data.path") if not train else ("hold out", "data.val_path")
        raise ConfigError(f"no text is left to {side}", key, "Give non-empty files that are not the same on both sides.")
    return {"train": train, "val": val}


def split_documents(documents: Sequence[Document], val_fraction: float) -> dict[str, list[Document]]:
    """Hold out the documents whose hash lies in the lowest `val_fraction` of its range; at least one on each side.

    Raises ConfigError when there are fewer than two documents.
    """
    if len(documents) < 2:
        raise ConfigError(
            f"the source has {len(documents)} distinct non-empty document(s), and a train and a held-out part need two",
            where="data.path",
            fix="Give more, or cut a file into several (a document is held out as a whole or not at all).",
        )
    low = sum(int.from_bytes(document.digest[:8], "big") < val_fraction * 2**64 for document in documents)
    n_val = min(max(low, 1), len(documents) - 1)
    return {"train": list(documents[n_val:]), "val": list(documents[:n_val])}


def _texts(documents: Iterable[Document], source: Source) -> Iterator[str]:
    for document in documents:
        if document.text is not None:
            yield document.text
            continue
        text = read_document(document.path, source.strict)
        if text is None or hashlib.sha256(text.encode()).digest() != document.digest:
            raise DataError(f"{document.path} changed while the corpus was built", fix="Run the same command again.")
        yield text


def _sides(pairs: Iterable[str]) -> Iterator[str]:
    """Source and target of each pair."""
    for pair in pairs:
        yield from pair.split(BETWEEN)


def _encode_pairs(tokenizer: Tokenizer, pairs: Sequence[str]) -> list[np.ndarray]:
    """Of each pair: source, separator, target."""
    sides, separator = tokenizer.encode_batch(list(_sides(pairs))), [tokenizer.special("sep")]
    return [np.concatenate([one, separator, other]) for one, other in zip(sides[::2], sides[1::2], strict=True)]


def _encoded(
    documents: Sequence[Document], source: Source, tokenizer: Tokenizer, split: str, report: Report
) -> Iterator[tuple[Document, np.ndarray]]:
    """Documents with their token ids, tokenised in batches."""
    total = sum(document.n_bytes for document in documents)
    batch: list[str] = []
    begin = done = pending = 0
    for end, text in enumerate(_texts(documents, source), start=1):
        batch.append(text)
        pending += documents[end - 1].n_bytes
        if pending >= _BATCH_BYTES or end == len(documents):
            encoded = _encode_pairs(tokenizer, batch) if source.pairs else tokenizer.encode_batch(batch)
            yield from zip(documents[begin:end], encoded, strict=True)
            done += pending
            batch, begin, pending = [], end, 0
            report(f"writing the {split} shards", done / total)


class _SplitWriter:
    """Tars of about `shard_tokens` tokens: a shard ends with the document that fills it."""

    def __init__(self, directory: Path, split: str, dtype: str, shard_tokens: int) -> None:
        self._directory, self._split, self._dtype, self._shard_tokens = directory, split, dtype, shard_tokens

    def write(self, documents: Iterator[tuple[Document, np.ndarray]]) -> tuple[ShardInfo, ...]:
        shards: list[ShardInfo] = []
        while (shard := self._write_shard(f"{self._split}-{len(shards):06d}.tar", documents)) is not None:
            shards.append(shard)
        return tuple(shards)

    def _write_shard(self, name: str, documents: Iterator[tuple[Document, np.ndarray]]) -> ShardInfo | None:
        """One tar, or None when no document is left. Equal documents give equal bytes: times, owners and modes are fixed."""
        from webdataset.writer import TarWriter  # imports torch

        following = next(documents, None)
        if following is None:
            return None
        n_documents = n_tokens = n_bytes = 0
        path = self._directory / name
        with path.open("xb") as file:
            with TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False, compress=False) as tar:
                while following is not None:
                    document, ids = following
                    raw = ids.astype(np.dtype(self._dtype).newbyteorder("<")).tobytes()
                    tar.write({"__key__": f"{n_documents:09d}", DTYPES[self._dtype]: raw})
                    n_documents, n_tokens, n_bytes = n_documents + 1, n_tokens + len(ids) + 1, n_bytes + document.n_bytes
                    following = next(documents, None) if n_tokens < self._shard_tokens else None
            _flush(file)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ShardInfo(name, n_documents, n_tokens, n_bytes, path.stat().st_size, digest)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    """Wait until the files of a directory, and their names, are on the disk."""
    for path in [*directory.iterdir(), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
