"""Runs functions on several gloo ranks, quickly: processes that have torch and DeepSpeed loaded,
kept for the next call.

The first import of all that `deepspeed.initialize` and a first optimiser step want takes three
seconds a process, an engine of a tiny model a quarter of one. So a forkserver imports once, and the
ranks of each world size stay until the end of the tests. After every call what DeepSpeed keeps
process-wide is put back, and all process groups are left: each has three threads that wake a
hundred times a second, and a few hundred calls' worth of them would leave no core to the tests.
"""

from __future__ import annotations

import atexit
import gc
import itertools
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scaling.parallel.grid import Ranks

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torch",
        "torch.distributed",
        "torch._dynamo",
        "torch._inductor",
        "deepspeed",
        "deepspeed.runtime.zero.muon",
        "scaling.worker.rank",
    ]
)
_COLLECTIVE_TIMEOUT = timedelta(seconds=60)


def _serve(ranks: Ranks, rendezvous: str, pipe: Connection) -> None:
    """One rank's life: answer (function, args) with (True, result) or (False, traceback) until None
    comes."""
    import torch
    import torch.distributed as dist

    from scaling.engine.build import forget_engines

    linear = torch.nn.functional.linear
    torch.set_num_threads(1)
    for number in itertools.count():
        if (call := pipe.recv()) is None:
            return
        function, args = call
        dist.init_process_group(
            "gloo",
            init_method=f"{rendezvous}-{number}",
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=_COLLECTIVE_TIMEOUT,
        )
        try:
            pipe.send((True, function(ranks, *args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        dist.destroy_process_group()
        forget_engines()
        gc.collect()
        assert torch.nn.functional.linear is linear, "an engine has left F.linear patched"


class _Pool:
    """The ranks of one world size."""

    def __init__(self, world_size: int) -> None:
        self._directory = tempfile.TemporaryDirectory()
        rendezvous = f"file://{Path(self._directory.name) / 'rendezvous'}"
        self._ranks = []
        for rank in range(world_size):
            ours, theirs = _CONTEXT.Pipe()
            place = Ranks(rank=rank, world_size=world_size, local_rank=rank)
            process = _CONTEXT.Process(target=_serve, args=(place, rendezvous, theirs), daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def call(
        self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float
    ) -> list[Any]:
        for _, pipe in self._ranks:
            pipe.send((function, args))
        results = []
        for _, pipe in self._ranks:
            assert pipe.poll(timeout_s), f"a rank did not answer within {timeout_s} s"
            good, value = pipe.recv()
            assert good, value
            results.append(value)
        return results

    def close(self) -> None:
        for process, pipe in self._ranks:
            process.kill()
            process.join()
            pipe.close()
        self._directory.cleanup()


_POOLS: dict[int, _Pool] = {}


@atexit.register
def _close_all() -> None:
    while _POOLS:
        _POOLS.popitem()[1].close()


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120
) -> list[Any]:
    """function(ranks, *args) on every rank, a module-level function; returns the ranks' results,
    raises the first error.

    An error takes the processes with it: the next call begins with fresh ones.
    """
    pool = _POOLS.get(world_size)
    if pool is None:
        pool = _POOLS[world_size] = _Pool(world_size)
    try:
        return pool.call(function, args, timeout_s)
    except BaseException:
        _POOLS.pop(world_size).close()
        raise
