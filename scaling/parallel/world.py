"""The default process group of a run, and the gloo groups beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from scaling.parallel.exchange import Group
from scaling.parallel.grid import Ranks

_WRITING_PATIENCE = 6
"""How many times as long as in training a rank that has written its files of a checkpoint waits for
the others: assumption."""


@contextlib.contextmanager
def process_groups(
    ranks: Ranks, device: torch.device, *, rendezvous: str, timeout_s: float, always: bool
) -> Iterator[tuple[Group, Group]]:
    """Start the default process group, and give two gloo groups for small values: one for training,
    one for the threads that write checkpoints.

    Both are None for a single rank, which has a default group only where `always` asks for one.
    rendezvous: init_method of torch.distributed.
    """
    alone = ranks.world_size == 1
    if alone and not always:
        yield None, None
        return
    timeout = timedelta(seconds=timeout_s)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=None if alone else rendezvous,
        store=dist.HashStore() if alone else None,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timeout,
    )
    try:
        if alone:
            yield None, None
        else:
            # Small values are on the host, so NCCL's group needs one of gloo beside it.
            group = (
                dist.new_group(backend="gloo", timeout=timeout)
                if device.type == "cuda"
                else dist.group.WORLD
            )
            yield group, dist.new_group(backend="gloo", timeout=_WRITING_PATIENCE * timeout)
    finally:
        dist.destroy_process_group()
