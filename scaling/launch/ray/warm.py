"""What a worker that is kept from run to run does before the first and after each: everything
imported, nothing left over."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

import torch

from scaling.engine.build import forget_engines
from scaling.worker.rank import run_worker  # noqa: F401 - with it all that a run imports


def up() -> None:
    """Import what a first optimiser step would (torch's dynamo: a second)."""
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], fused=True).step()


@contextlib.contextmanager
def one_run() -> Iterator[None]:
    """A run whose memory peak is its own, and that leaves no process group, engine or cached memory
    to the next."""
    _forget_peak()
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        forget_engines()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _forget_peak() -> None:
    """Start the peak of resident memory again: "5" resets it (proc_pid_clear_refs(5))."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # a kernel without it: the peak is then the largest run's so far
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
