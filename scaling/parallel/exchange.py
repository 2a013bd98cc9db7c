"""Small values between ranks as JSON: nothing that a rank sends is unpickled by another, as torch's
object collectives would."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist

Group = dist.ProcessGroup | None
"""None stands for a single rank. Tensors are the CPU's, so the group must be of gloo."""


def gather_json(value: Any, group: Group) -> list[Any]:
    """Every rank's value, on every rank, in the ranks' order."""
    if group is None:
        return [value]
    own = _bytes(value)
    n_ranks = dist.get_world_size(group)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(n_ranks)]
    dist.all_gather(lengths, torch.tensor([own.numel()]), group=group)
    longest = max(int(length) for length in lengths)
    # all_gather takes tensors of one size only.
    padded = torch.zeros(longest, dtype=torch.uint8)
    padded[: own.numel()] = own
    parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(n_ranks)]
    dist.all_gather(parts, padded, group=group)
    return [_value(part[: int(length)]) for part, length in zip(parts, lengths, strict=True)]


def broadcast_json(value: Any, group: Group) -> Any:
    """The first rank's value, on every rank; what the others give is ignored."""
    if group is None:
        return value
    is_first = dist.get_rank(group) == 0
    own = _bytes(value) if is_first else torch.zeros(0, dtype=torch.uint8)
    length = torch.tensor([own.numel()])
    dist.broadcast(length, group_src=0, group=group)
    content = own if is_first else torch.zeros(int(length), dtype=torch.uint8)
    dist.broadcast(content, group_src=0, group=group)
    return _value(content)


def _bytes(value: Any) -> torch.Tensor:
    # A bytearray: torch warns of bytes, which cannot be written.
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _value(content: torch.Tensor) -> Any:
    return json.loads(content.numpy().tobytes())
