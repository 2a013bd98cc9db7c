"""Measure layouts on this machine: tokens/s and peak memory beside one process, traffic, and the
pipeline's bubble.

Usage: python tools/bench/layouts.py [ROUNDS [STEPS]]      default: 4 rounds; in each, every layout
  trains 2 steps, in turn

Every layout has processes of its own, of one thread, that sleep while the others run, so a round
compares neighbours in time. A random batch is trained on: the loader is measured by loop.py. Two
ranks on two cores cannot be faster than one process by more than two; what is lost against that is
communication through gloo and DeepSpeed's own work. The vocabulary is of bytes, so that the head is
small and stages of equally many blocks take as long as each other. The bubble is counted while
micro-batches run: the time in which a rank runs neither forward nor backward, over the time from
the first forward to the last backward.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from quiet import wait_for_quiet
from rich.console import Console
from rich.table import Table

from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig
from scaling.planner.layout import Layout
from scaling.planner.machines.detect import resolve_cluster

MODEL = ("model=gpt_10m", "tokenizer=byte", "precision=fp32")
BATCH, SEQ_LEN = 8, 256
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
LAYOUTS = {
    "one process": ONE,
    "ddp": replace(ONE, dp=2, zero_stage=0, micro_batch_size=4, grad_accum_steps=1, engine="ddp"),
    "zero1": replace(ONE, dp=2, micro_batch_size=4, grad_accum_steps=1, engine="deepspeed"),
    "zero2": replace(
        ONE, dp=2, zero_stage=2, micro_batch_size=4, grad_accum_steps=1, engine="deepspeed"
    ),
    "zero3": replace(
        ONE, dp=2, zero_stage=3, micro_batch_size=4, grad_accum_steps=1, engine="deepspeed"
    ),
    "tp2": replace(ONE, tp=2, engine="deepspeed"),
    "tp2, sequence_parallel": replace(ONE, tp=2, sequence_parallel=True, engine="deepspeed"),
    "cp2": replace(ONE, cp=2, engine="deepspeed"),
    "cp2, ring": replace(ONE, cp=2, cp_attention="ring", engine="deepspeed"),
    "pp2, 2 micro-batches": replace(ONE, pp=2, engine="deepspeed"),
    "pp2, 8 micro-batches": replace(
        ONE, pp=2, micro_batch_size=1, grad_accum_steps=8, engine="deepspeed"
    ),
    "pp2 dualpipev, 8 micro-batches": replace(
        ONE,
        pp=2,
        pp_schedule="dualpipev",
        micro_batch_size=1,
        grad_accum_steps=8,
        engine="deepspeed",
    ),
    "compiled blocks": ONE,
    "full recompute": replace(ONE, activation_checkpointing="full"),
    "selective recompute": replace(ONE, activation_checkpointing="selective"),
}


@dataclass(frozen=True)
class Turn:
    """Some steps of one rank. busy: (begin, end) of each forward and backward pass of a stage, on
    the common clock."""

    wall_s: float
    peak_bytes: int
    sent: dict[str, int]
    busy: list[tuple[float, float]]


def config_of(name: str) -> RunConfig:
    words = [
        *MODEL,
        f"train.compile={str(name == 'compiled blocks').lower()}",
        f"train.global_batch_size={BATCH}",
        f"train.seq_len={SEQ_LEN}",
        "cluster=local",
    ]
    return resolve_cluster(compose(words))


def rank_main(pipe: Connection, name: str, rank: int, rendezvous: str) -> None:
    """The process of one rank: trains some steps for each message from the pipe."""
    # torch warns about names of collectives that DeepSpeed calls
    warnings.simplefilter("ignore", FutureWarning)
    import torch
    import torch.distributed as dist
    from traffic import counted

    from scaling.batch import Batch
    from scaling.engine.build import build_engine
    from scaling.parallel.grid import Ranks

    torch.set_num_threads(1)
    layout = LAYOUTS[name]
    world = layout.world_size
    if world > 1:
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    ranks = Ranks(rank, world, rank).laid_out(tp=layout.tp, pp=layout.pp, cp=layout.cp)
    config = config_of(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with counted(deepspeed=layout.engine == "deepspeed") as counts:
        engine = build_engine(config, layout, ranks, torch.device("cpu"))
        busy = _watched(engine) if layout.pp > 1 else []
        generator = torch.Generator().manual_seed(ranks.dp_rank)
        shape = (BATCH // ranks.dp, SEQ_LEN + 1)
        rows = torch.randint(config.vocab_size, shape, generator=generator).split(
            layout.micro_batch_size
        )
        batches = [Batch(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]
        while (n_steps := pipe.recv()) is not None:
            counts.clear()
            busy.clear()
            begun_s = time.perf_counter()
            for _ in range(n_steps):
                engine.step(batches, lr=1e-4)
            wall_s = time.perf_counter() - begun_s
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            pipe.send(Turn(wall_s, peak, dict(counts), list(busy)))


def _watched(engine: Any) -> list[tuple[float, float]]:
    """Record when DeepSpeed's pipeline runs a forward or a backward pass."""
    from deepspeed.runtime.pipe import schedule

    spans: list[tuple[float, float]] = []
    pipeline = engine._engine
    pipeline._INSTRUCTION_MAP = dict(pipeline._INSTRUCTION_MAP)
    for kind in (schedule.ForwardPass, schedule.BackwardPass):
        run = pipeline._INSTRUCTION_MAP[kind]

        def timed(self: Any, *args: Any, run: Any = run, **kwargs: Any) -> None:
            begun_s = time.monotonic()
            run(self, *args, **kwargs)
            spans.append((begun_s, time.monotonic()))

        pipeline._INSTRUCTION_MAP[kind] = timed
    return spans


class Side:
    """The processes of one layout."""

    def __init__(self, name: str, layout: Layout, root: str) -> None:
        self.layout, self.pipes, self.turns = layout, [], list[list[Turn]]()
        rendezvous = f"file://{root}/{abs(hash(name))}"
        context = multiprocessing.get_context("spawn")
        self.processes = []
        for rank in range(layout.world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=rank_main, args=(theirs, name, rank, rendezvous), daemon=True
            )
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def train(self, n_steps: int) -> list[Turn]:
        for pipe in self.pipes:
            pipe.send(n_steps)
        return [pipe.recv() for pipe in self.pipes]

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join()


def bubble(turns: list[Turn]) -> float:
    """The share of one step in which the stages wait."""
    begun = min(begin for turn in turns for begin, _ in turn.busy)
    ended = max(end for turn in turns for _, end in turn.busy)
    worked = sum(end - begin for turn in turns for begin, end in turn.busy)
    return 1 - worked / (len(turns) * (ended - begun))


def main() -> None:
    rounds, steps = (int(word) for word in (*sys.argv[1:], *("4", "2")[len(sys.argv) - 1 :]))
    os.environ["OMP_NUM_THREADS"] = "1"
    console = Console()
    with tempfile.TemporaryDirectory() as root:
        sides = {name: Side(name, layout, root) for name, layout in LAYOUTS.items()}
        for side in sides.values():
            side.train(1)
        for _ in range(rounds):
            for side in sides.values():
                wait_for_quiet()
                side.turns.append(side.train(steps))
        bubbles = {
            name: [bubble(side.train(1)) for _ in range(rounds)]
            for name, side in sides.items()
            if side.layout.pp > 1
        }
        for side in sides.values():
            side.close()
    _print(console, sides, bubbles, steps)


def _print(
    console: Console, sides: dict[str, Side], bubbles: dict[str, list[float]], steps: int
) -> None:
    table = Table(
        "layout",
        "tokens/s",
        "to one process",
        "peak memory of a rank",
        "sent by a rank",
        "bubble",
        "in theory",
    )
    plain = [turn[0].wall_s for turn in sides["one process"].turns]
    for name, side in sides.items():
        walls = [max(turn.wall_s for turn in turns) for turns in side.turns]
        ratio = statistics.median(one / own for one, own in zip(plain, walls, strict=True))
        sent = (
            sum(n for kind, n in side.turns[-1][0].sent.items() if not kind.endswith(" calls"))
            * 4
            / steps
        )
        table.add_row(
            name,
            f"{BATCH * SEQ_LEN * steps / statistics.median(walls):.0f}",
            f"{ratio:.2f}",
            f"{max(turn.peak_bytes for turn in side.turns[-1]) / 1e6:.0f} MB",
            f"{sent / 1e6:.1f} MB" if sent else "-",
            f"{statistics.median(bubbles[name]):.1%}" if name in bubbles else "",
            f"{side.layout.bubble_share:.1%}" if name in bubbles else "",
        )
    console.print(table)


if __name__ == "__main__":
    main()
