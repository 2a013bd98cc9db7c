"""The index of a corpus: what each shard of it holds."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scaling.data import index_file
from scaling.data.io.fetch import join
from scaling.errors import DataError

INDEX_FILE = "index.json"
FORMAT_VERSION = 1
DTYPES = {"uint16": "u16", "uint32": "u32"}
"""Type of a stored token -> extension of the shard members that hold it, raw and little-endian."""
_FIX = "Prepare the corpus again."


@dataclass(frozen=True)
class ShardInfo:
    """One tar file: what it should hold. `n_tokens` counts one end-of-text token after each
    document, `n_bytes` its UTF-8."""

    name: str
    n_documents: int
    n_tokens: int
    n_bytes: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer that wrote the shards, and the file beside them that holds it."""

    file: str
    sha256: str
    vocab_size: int
    eot_id: int
    kind: str


@dataclass(frozen=True)
class CorpusIndex:
    """The content of index.json: the shards of each split, in order."""

    name: str
    dtype: str
    tokenizer: TokenizerInfo
    splits: Mapping[str, tuple[ShardInfo, ...]]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that the data depends on (shards with their counts, tokenizer, dtype),
        wherever it was built.

        Names are left out: they change nothing of what is read.
        """
        info = self.tokenizer
        identity = {
            "dtype": self.dtype,
            "tokenizer": [info.sha256, info.vocab_size, info.eot_id],
            "splits": {
                split: [
                    [s.sha256, s.n_documents, s.n_tokens, s.n_bytes, s.size_bytes] for s in shards
                ]
                for split, shards in self.splits.items()
            },
        }
        return index_file.seal_of(identity)

    @functools.cached_property
    def content_fingerprint(self) -> str:
        """SHA-256 of the content alone (shards, tokenizer, dtype), as checkpoints of format 1
        without counts have it."""
        identity = {
            "dtype": self.dtype,
            "tokenizer": self.tokenizer.sha256,
            "splits": {
                split: [shard.sha256 for shard in shards] for split, shards in self.splits.items()
            },
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def split(self, name: str) -> tuple[ShardInfo, ...]:
        """Shards of a split. Raises DataError when the corpus has no such split, or an empty
        one."""
        shards = self.splits.get(name, ())
        if not shards:
            has = ", ".join(sorted(self.splits)) or "none"
            raise DataError(
                f"corpus {self.name} has no shards in split {name}", fix=f"Its splits are: {has}."
            )
        return shards

    def n_sequences(self, split: str, seq_len: int, overlap: int) -> int:
        """Sequences of a split in an epoch."""
        return sum(max(shard.n_tokens - overlap, 0) // seq_len for shard in self.split(split))

    def without(self, split: str, names: Iterable[str]) -> CorpusIndex:
        """This corpus less some shards of a split: another corpus, with another fingerprint.

        Raises DataError when no shard of the split is left.
        """
        bad = set(names)
        kept = tuple(shard for shard in self.split(split) if shard.name not in bad)
        if not kept:
            raise DataError(
                f"all {len(self.split(split))} shards of split {split} of corpus {self.name} "
                "are missing or damaged",
                fix="Prepare the corpus again, or copy its shards again.",
            )
        return replace(self, splits={**self.splits, split: kept})

    @classmethod
    def load(cls, directory: str | Path) -> CorpusIndex:
        """Read index.json of a directory or URL. Raises DataError when it is absent, malformed or
        contradicts itself."""
        location = join(directory, INDEX_FILE)
        data = index_file.read_json(location, "a corpus index", _FIX)
        try:
            if data["format_version"] != FORMAT_VERSION:
                version = index_file.shown(data["format_version"])
                raise ValueError(
                    f"format_version is {version}, this version reads {FORMAT_VERSION}"
                )
            index = _index_from(data)
            index._check(data["fingerprint"])
            index_file.check_seals(data)
        except (ValueError, KeyError, RecursionError) as error:
            reason = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{location} is not a corpus index: {reason}", fix=_FIX) from error
        return index

    def save(self, directory: Path) -> None:
        """Write index.json: for each split a shard list as the wids package reads it, with counts
        and checksums added."""
        splits = {
            split: {
                "wids_version": 1,
                "name": f"{self.name}-{split}",
                "shardlist": [_shard_to(shard) for shard in shards],
            }
            for split, shards in self.splits.items()
        }
        data = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "fingerprint": self.content_fingerprint,
            "dtype": self.dtype,
            "tokenizer": asdict(self.tokenizer),
            "splits": splits,
        }
        data["seal"] = index_file.seal_of(data)
        (directory / INDEX_FILE).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    def _check(self, fingerprint: Any) -> None:
        """Raises ValueError where the values contradict each other."""
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, known are {', '.join(DTYPES)}")
        info, most = self.tokenizer, 2 ** (8 * np.dtype(self.dtype).itemsize)
        if not info.eot_id < info.vocab_size <= most:
            raise ValueError(
                f"vocab_size={info.vocab_size} and eot_id={info.eot_id} do not fit each other "
                f"and {self.dtype}"
            )
        shards = [shard for of_split in self.splits.values() for shard in of_split]
        seen: set[str] = set()
        for shard in shards:
            if shard.name in seen:
                raise ValueError(f"shard {shard.name} is listed twice")
            seen.add(shard.name)
            _check_counts(shard, np.dtype(self.dtype).itemsize)
        for key in ("n_documents", "n_tokens", "n_bytes", "size_bytes"):
            if (total := sum(getattr(shard, key) for shard in shards)) > index_file.LARGEST_COUNT:
                raise ValueError(
                    f"{key} of all shards is {total}, more than {index_file.LARGEST_COUNT}"
                )
        if self.content_fingerprint != fingerprint:
            said = (
                fingerprint[:16] if isinstance(fingerprint, str) else index_file.shown(fingerprint)
            )
            raise ValueError(
                f"its fingerprint is {said}, its content has {self.content_fingerprint[:16]}"
            )


def _check_counts(shard: ShardInfo, token_bytes: int) -> None:
    """Raises ValueError for counts that no tar of that size can have.

    Each document is followed by one token, which the tar does not hold.
    """
    stored_bytes = (shard.n_tokens - shard.n_documents) * token_bytes
    if not 0 <= stored_bytes <= shard.size_bytes:
        raise ValueError(
            f"shard {shard.name} cannot hold n_tokens={shard.n_tokens} of "
            f"n_documents={shard.n_documents} "
            f"in its {shard.size_bytes} bytes"
        )


def _index_from(data: Mapping[str, Any]) -> CorpusIndex:
    """Raises ValueError and KeyError for what is not as `save` writes it."""
    info, splits = (
        index_file.an_object(data["tokenizer"], "tokenizer"),
        index_file.an_object(data["splits"], "splits"),
    )
    return CorpusIndex(
        name=index_file.text(data, "name"),
        dtype=index_file.text(data, "dtype"),
        tokenizer=TokenizerInfo(
            file=index_file.file_name(info, "file"),
            sha256=index_file.sha256(info),
            vocab_size=index_file.count(info, "vocab_size"),
            eot_id=index_file.count(info, "eot_id"),
            kind=index_file.text(info, "kind"),
        ),
        splits={
            index_file.file_name({"split": split}, "split"): _shards_from(split, entry)
            for split, entry in splits.items()
        },
    )


def _shards_from(split: str, entry: Any) -> tuple[ShardInfo, ...]:
    listed = index_file.a_list(
        index_file.an_object(entry, f"split {split}")["shardlist"], f"shardlist of {split}"
    )
    return tuple(
        _shard_from(index_file.an_object(shard, f"an entry of {split}")) for shard in listed
    )


def _shard_to(shard: ShardInfo) -> dict[str, Any]:
    entry = {
        "url": shard.name,
        "nsamples": shard.n_documents,
        "filesize": shard.size_bytes,
        "n_tokens": shard.n_tokens,
        "n_bytes": shard.n_bytes,
        "sha256": shard.sha256,
    }
    return entry | {"seal": index_file.seal_of(entry)}


def _shard_from(entry: dict[str, Any]) -> ShardInfo:
    name = index_file.file_name(entry, "url")
    try:
        return ShardInfo(
            name,
            n_documents=index_file.count(entry, "nsamples"),
            n_tokens=index_file.count(entry, "n_tokens"),
            n_bytes=index_file.count(entry, "n_bytes"),
            size_bytes=index_file.count(entry, "filesize"),
            sha256=index_file.sha256(entry),
        )
    except ValueError as error:
        raise ValueError(f"shard {name}: {error}") from error
