"""Which documents each shard holds, and the task that writes one."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from scaling.data.prepare.tasks import synced
from scaling.data.shards import DTYPES, ShardInfo

SPLITS = ("train", "val")
Slice = tuple[int, int, int]
"""Bucket, first document, and the one behind the last."""


def plan_shards(
    directory: Path,
    split: str,
    n_documents: Sequence[int],
    n_held_out: Sequence[int],
    shard_tokens: int,
) -> list[list[Slice]]:
    """Documents of each shard of a split: a shard ends with the document that fills it."""
    plans: list[list[Slice]] = []
    current: list[Slice] = []
    room = shard_tokens
    for bucket, (n, held_out) in enumerate(zip(n_documents, n_held_out, strict=True)):
        first, end = (held_out, n) if split == "train" else (0, held_out)
        if first == end:
            continue
        totals = np.concatenate(
            [
                [0],
                np.cumsum(
                    np.lib.format.open_memmap(directory / f"tokens-{bucket:06d}.npy", mode="r")[
                        :, 0
                    ]
                    + 1
                ),
            ]
        )
        while first < end:
            # behind the document that fills it
            last = min(int(np.searchsorted(totals, totals[first] + room)), end)
            current.append((bucket, first, last))
            room -= int(totals[last] - totals[first])
            if room <= 0:
                plans.append(current)
                current, room = [], shard_tokens
            first = last
    return [*plans, current] if current else plans


def write_shard(
    directory: Path, name: str, target: str, file_name: str, dtype: str, slices: list[Slice]
) -> dict[str, Any]:
    """Task: one tar. Equal documents give equal bytes: times, owners and modes are fixed."""
    path = Path(target, file_name)
    n_documents = n_tokens = n_bytes = 0
    with (
        synced(path) as file,
        tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for ids, document_tokens, document_bytes in _documents(
            directory, slices, np.dtype(dtype).itemsize
        ):
            member = tarfile.TarInfo(f"{n_documents:09d}.{DTYPES[dtype]}")
            member.size, member.mode, member.mtime = len(ids), 0o644, 0
            tar.addfile(member, BytesIO(ids))
            tar.members = []  # type: ignore[attr-defined]  # the library would keep every one
            n_documents, n_tokens, n_bytes = (
                n_documents + 1,
                n_tokens + document_tokens + 1,
                n_bytes + document_bytes,
            )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return asdict(ShardInfo(file_name, n_documents, n_tokens, n_bytes, path.stat().st_size, digest))


def _documents(
    directory: Path, slices: list[Slice], item_bytes: int
) -> Iterator[tuple[bytes, int, int]]:
    """Raw tokens of each document, their number, and the bytes of its text."""
    for bucket, first, end in slices:
        lengths = np.lib.format.open_memmap(directory / f"tokens-{bucket:06d}.npy", mode="r")
        with (directory / f"tokens-{bucket:06d}.ids").open("rb") as file:
            file.seek(int(lengths[:first, 0].sum()) * item_bytes)
            for n_tokens, n_bytes in lengths[first:end].tolist():
                yield file.read(n_tokens * item_bytes), n_tokens, n_bytes
