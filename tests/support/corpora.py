"""Small corpora for the data tests: synthetic shards of known tokens, and prepared text files."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from scaling.config.run_config import DataConfig, TokenizerConfig
from scaling.data.shards import CorpusIndex, ShardInfo, TokenizerInfo

VOCAB_SIZE, EOT = 1000, 0


def shard_infos(lengths: list[int]) -> tuple[ShardInfo, ...]:
    """Shards of given numbers of tokens that exist on paper only."""
    return tuple(
        ShardInfo(f"train-{i:06d}.tar", 1, length, length, 1, f"{i:064x}")
        for i, length in enumerate(lengths)
    )


def tar_bytes(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def document_members(documents: list[np.ndarray]) -> dict[str, bytes]:
    return {
        f"{i:09d}.u16": document.astype("<u2").tobytes() for i, document in enumerate(documents)
    }


def write_shard(
    directory: Path, name: str, content: bytes, n_documents: int, n_tokens: int
) -> ShardInfo:
    """Put `content` at `name`, and describe it truthfully but for the counts, which are taken at
    their word."""
    (directory / name).write_bytes(content)
    return ShardInfo(
        name, n_documents, n_tokens, n_tokens, len(content), hashlib.sha256(content).hexdigest()
    )


def write_corpus(
    directory: Path,
    shards: list[list[np.ndarray]],
    split: str = "train",
    vocab_size: int = VOCAB_SIZE,
) -> CorpusIndex:
    """Write documents as shards with an index; the tokenizer is a name only."""
    infos = []
    for number, documents in enumerate(shards):
        n_tokens = sum(len(document) + 1 for document in documents)
        content = tar_bytes(document_members(documents))
        infos.append(
            write_shard(directory, f"{split}-{number:06d}.tar", content, len(documents), n_tokens)
        )
    tokenizer = TokenizerInfo("tokenizer.json", "0" * 64, vocab_size, EOT, "bpe")
    index = CorpusIndex("synthetic", "uint16", tokenizer, {split: tuple(infos)})
    index.save(directory)
    return index


def with_shard(index: CorpusIndex, shard: ShardInfo) -> CorpusIndex:
    """The index with its train shard of the same name replaced."""
    shards = tuple(shard if old.name == shard.name else old for old in index.split("train"))
    return replace(index, splits={"train": shards})


def random_documents(seed: int, n_shards: int = 3, n_documents: int = 5) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        [rng.integers(1, VOCAB_SIZE, rng.integers(1, 80)) for _ in range(n_documents)]
        for _ in range(n_shards)
    ]


def write_texts(directory: Path, n_files: int = 30) -> str:
    """Text files of made-up sentences; returns the glob that finds them."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(2, 7))) for _ in range(200)]
    for number in range(n_files):
        (directory / f"{number:03d}.txt").write_text(
            " ".join(rng.choice(words, 100)) + f"\nnumber {number}, ünïcode ✓\n"
        )
    return str(directory / "*.txt")


def text_config(pattern: str, cache_dir: Path, **changes: object) -> DataConfig:
    values = {
        "kind": "text_files",
        "path": pattern,
        "cache_dir": str(cache_dir),
        "val_fraction": 0.2,
        "shard_tokens": 2000,
    }
    return DataConfig.model_validate(values | changes)


BPE = TokenizerConfig(kind="bpe", vocab_size=400)
BYTE = TokenizerConfig(kind="byte", vocab_size=257)
