"""Runs a function on several gloo ranks in fresh processes, quickly: a forkserver that has torch and DeepSpeed loaded."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from scaling.parallel.grid import Ranks

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "deepspeed", "scaling.engine.deepspeed"])


def _main(function: Callable[..., Any], ranks: Ranks, rendezvous: str, args: tuple[Any, ...], out: Connection) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        if ranks.world_size > 1 or rendezvous:
            dist.init_process_group(
                "gloo", init_method=rendezvous, rank=ranks.rank, world_size=ranks.world_size, timeout=timedelta(seconds=60)
            )
        out.send((True, function(ranks, *args)))
    except BaseException:
        out.send((False, traceback.format_exc()))
    finally:
        out.close()


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120) -> list[Any]:
    """function(ranks, *args) on every rank, a module-level function; returns the ranks' results, raises the first error."""
    with tempfile.TemporaryDirectory() as directory:
        rendezvous = f"file://{Path(directory) / 'rendezvous'}"
        started = []
        for rank in range(world_size):
            receiver, sender = _CONTEXT.Pipe(duplex=False)
            place = Ranks(rank=rank, world_size=world_size, local_rank=rank)
            process = _CONTEXT.Process(target=_main, args=(function, place, rendezvous, args, sender), daemon=True)
            process.start()
            sender.close()
            started.append((process, receiver))
        results = []
        try:
            for _, receiver in started:
                assert receiver.poll(timeout_s), f"a rank did not answer within {timeout_s} s"
                good, value = receiver.recv()
                assert good, value
                results.append(value)
        finally:
            for process, _ in started:
                process.join(10)
                if process.is_alive():
                    process.kill()
        return results
