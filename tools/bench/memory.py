"""Memory that ranks really take, beside what the planner predicts: states, activations, loss and
buffers, over layouts.

Usage: python tools/bench/memory.py [PRECISION [OVERRIDE ...]]      default: fp32, of a GPT of 12
  layers, d_model 512, 8 heads

Every layout is trained for three steps on a random batch by processes of its own, one at a time. Of
the fullest rank it shows the bytes of tensors at the peak of the third step (those alive before it,
and what torch's profiler sees given out and taken back), which is what the planner predicts but for
its `runtime`; and by how much the resident memory rose above that of the process before it had an
engine: its peak, as the kernel kept it (VmHWM), set back before. That has the C library's allocator
in it, which keeps much of what was given back.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from multiprocessing.connection import Connection
from pathlib import Path

from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig
from scaling.planner.cost.memory import estimate_memory
from scaling.planner.layout import Layout
from scaling.planner.machines.detect import resolve_cluster
from scaling.units import format_bytes

MODEL = ("model=gpt_50m", "model.n_layers=12", "model.d_model=512", "model.n_heads=8")
BATCH, SEQ_LEN, STEPS = 8, 512, 3
ONE = Layout(
    dp=1,
    tp=1,
    pp=1,
    zero_stage=1,
    micro_batch_size=4,
    grad_accum_steps=2,
    activation_checkpointing="none",
    engine="reference",
)
TWO = replace(ONE, dp=2, grad_accum_steps=1, engine="deepspeed")
SPLIT = replace(ONE, engine="deepspeed")
LAYOUTS = {
    "reference": ONE,
    "reference, micro-batch 8": replace(ONE, micro_batch_size=8, grad_accum_steps=1),
    "reference, selective": replace(ONE, activation_checkpointing="selective"),
    "reference, full": replace(ONE, activation_checkpointing="full"),
    "ddp": replace(TWO, zero_stage=0, engine="ddp"),
    "zero1": TWO,
    "zero2": replace(TWO, zero_stage=2),
    "zero2, 4 micro-batches": replace(TWO, zero_stage=2, micro_batch_size=1, grad_accum_steps=4),
    "zero3": replace(TWO, zero_stage=3),
    "zero3, full": replace(TWO, zero_stage=3, activation_checkpointing="full"),
    "tp2": replace(SPLIT, tp=2, sequence_parallel=True),
    "tp2, whole residuals": replace(SPLIT, tp=2),
    "cp2": replace(SPLIT, cp=2),
    "cp2, ring": replace(SPLIT, cp=2, cp_attention="ring"),
    "pp2, 2 micro-batches": replace(SPLIT, pp=2),
    "pp2, 8 micro-batches": replace(SPLIT, pp=2, micro_batch_size=1, grad_accum_steps=8),
}


def config_of(words: list[str]) -> RunConfig:
    batch = (f"train.global_batch_size={BATCH}", f"train.seq_len={SEQ_LEN}")
    return resolve_cluster(compose([*MODEL, *batch, "cluster=local", *words]))


def rank_main(
    pipe: Connection, layout: Layout, rank: int, rendezvous: str, words: list[str]
) -> None:
    """The process of one rank: sends the bytes of its tensors at the peak, and the rise of its
    resident memory."""
    import torch
    import torch.distributed as dist

    from scaling.batch import Batch
    from scaling.engine.build import build_engine
    from scaling.parallel.grid import Ranks

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    world = layout.world_size
    if world > 1:
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    ranks = Ranks(rank, world, rank).laid_out(tp=layout.tp, pp=layout.pp, cp=layout.cp)
    config = config_of(words)
    if layout.engine == "deepspeed":
        # imported before the first measurement, so that its memory is not counted
        import deepspeed  # noqa: F401
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    engine = build_engine(config, layout, ranks, torch.device("cpu"))
    generator = torch.Generator().manual_seed(ranks.dp_rank)
    rows = torch.randint(config.vocab_size, (BATCH // ranks.dp, SEQ_LEN + 1), generator=generator)
    batches = [
        Batch(row[:, :-1].contiguous(), row[:, 1:].contiguous())
        for row in rows.split(layout.micro_batch_size)
    ]
    for _ in range(STEPS - 1):
        engine.step(batches, lr=1e-4)
    peak = _live_bytes() + _most_given_out(lambda: engine.step(batches, lr=1e-4))
    pipe.send((peak, _status_bytes("VmHWM") - before))


def _live_bytes() -> int:
    import torch

    tensors = (
        one
        for one in gc.get_objects()
        if isinstance(one, torch.Tensor) and one.device.type == "cpu"
    )
    return sum(
        {
            one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors
        }.values()
    )


def _most_given_out(work: Callable[[], object]) -> int:
    """The largest sum of tensor memory in use while `work` runs."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    return max(accumulate((n_bytes for _, n_bytes in changes), initial=0))


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measured_bytes(layout: Layout, root: str, words: list[str]) -> tuple[int, int]:
    """The fullest rank's tensors at the peak, and the rise of its resident memory."""
    context = multiprocessing.get_context("spawn")
    rendezvous = f"file://{root}/{abs(hash(layout))}"
    pipes, processes = [], []
    for rank in range(layout.world_size):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=rank_main, args=(theirs, layout, rank, rendezvous, words), daemon=True
        )
        process.start()
        pipes.append(ours)
        processes.append(process)
    found = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return max(tensors for tensors, _ in found), max(rose for _, rose in found)


def main() -> None:
    precision, *overrides = sys.argv[1:] or ["fp32"]
    words = [f"precision={precision}", *overrides]
    os.environ["OMP_NUM_THREADS"] = "1"
    config = config_of(words)
    print(
        _line(
            "layout",
            ["states", "activations", "loss", "buffers", "all", "tensors", "off", "resident"],
        ),
        flush=True,
    )
    with tempfile.TemporaryDirectory() as root:
        for name, layout in LAYOUTS.items():
            memory = estimate_memory(config, layout)
            tensors, resident = measured_bytes(layout, root, words)
            held, buffers = memory.total - memory.runtime, memory.gathered + memory.communication
            cells = [
                format_bytes(n)
                for n in (memory.states, memory.activations, memory.logits, buffers, held, tensors)
            ]
            print(
                _line(name, [*cells, f"{held / tensors - 1:+.0%}", format_bytes(resident)]),
                flush=True,
            )


def _line(name: str, cells: list[str]) -> str:
    return f"{name:<26}" + "".join(
        cell.rjust(width) for cell, width in zip(cells, (9, 13, 9, 9, 9, 9, 6, 10), strict=True)
    )


if __name__ == "__main__":
    main()
