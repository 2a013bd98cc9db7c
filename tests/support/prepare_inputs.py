"""Small inputs of every format for the tests of scaling.prepare, and what the corpora made of them
hold."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scaling.data.read.shard_reader import read_shard
from scaling.data.shards import CorpusIndex
from scaling.data.tokenizer.byte_level import load_tokenizer


def texts(n: int, start: int = 0) -> list[str]:
    """Documents that are all different, some with characters of several bytes."""
    return [
        f"document {i}\n" + " ".join(f"wörd{i * j % 97}" for j in range(i % 40 + 3))
        for i in range(start, start + n)
    ]


def json_lines(documents: Sequence[str], field: str = "text") -> bytes:
    return "".join(
        json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(documents)
    ).encode()


def tar_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def write_inputs(folder: Path, documents: Sequence[str]) -> str:
    """The documents spread over files of every format that needs no library; returns the glob that
    finds them."""
    folder.mkdir(parents=True)
    parts = [list(documents[i::5]) for i in range(5)]
    (folder / "a.jsonl").write_bytes(json_lines(parts[0]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(json_lines(parts[1])))
    (folder / "c.tar").write_bytes(
        tar_of({f"../{i}.txt": text.encode() for i, text in enumerate(parts[2])})
    )
    for i, text in enumerate(parts[3]):
        (folder / f"d{i}.txt").write_text(text)
    (folder / "e.ndjson").write_bytes(json_lines(parts[4]).replace(b"\n", b"\r\n"))
    return f"{folder}/*"


def documents_of(directory: Path, split: str) -> list[str]:
    """The texts of a split, decoded from its shards."""
    index = CorpusIndex.load(directory)
    tokenizer = load_tokenizer(directory, index)
    tokens = np.concatenate([read_shard(directory, index, shard) for shard in index.split(split)])
    ends = np.flatnonzero(tokens == index.tokenizer.eot_id)
    return [
        tokenizer.decode(tokens[begin:end])
        for begin, end in zip([0, *(ends[:-1] + 1)], ends, strict=True)
    ]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a corpus but the mark of who made it."""
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if not path.name.startswith(".")
    }
