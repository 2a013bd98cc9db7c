"""Measure tokens per second of the training loop on gpt_10m, beside a plain PyTorch loop of the
same model.

Usage: python tools/bench/loop.py [ROUNDS [STEPS]]      default: 8 rounds; in each, every side
  trains 3 steps, in turn

Sides, each in processes of its own that sleep while the others run:
  plain 1, plain 2   plain.py with one and two threads
  main 1             what `run_worker` does with one worker of one thread: reference engine, loader,
                     recorder, no checkpoints
  main 2             the same with two workers of one thread: DeepSpeed, ZeRO-1
All begin from the same weights, read the same sequences, and must show the same loss. A round
compares its neighbours in time, so the median of the rounds' ratios holds on a machine that others
use too; CPU seconds say what a side costs where its wall time is disturbed. Each round waits up to
half a minute for a quiet machine.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from quiet import wait_for_quiet
from rich.console import Console
from rich.table import Table

from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig
from scaling.planner.machines.detect import resolve_cluster

GLOBAL_BATCH_SIZE, SEQ_LEN = 8, 256
DTYPES = ("fp32", "bf16")
LOSS_TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}
"""Relative tolerance for a segment's mean loss after some dozen steps: rounding errors grow with
training."""


@dataclass(frozen=True)
class Segment:
    """Some steps of one side: wall seconds, CPU seconds of its processes, mean loss."""

    wall_s: float
    cpu_s: float
    loss: float


def config_for(dtype: str, n_workers: int, steps: int, root: str) -> RunConfig:
    return resolve_cluster(
        compose(
            [
                "model=gpt_10m",
                f"precision={dtype}",
                "schedule=constant",
                "schedule.warmup_tokens=0%",
                "cluster=local",
                f"cluster.devices_per_node={n_workers}",
                f"train.global_batch_size={GLOBAL_BATCH_SIZE}",
                f"train.seq_len={SEQ_LEN}",
                f"train.log_every={steps}",
                f"run.root={root}",
            ]
        )
    )


def plain_side(pipe: Connection, dtype: str, n_threads: int, steps: int, root: str) -> None:
    """The process of the plain side: trains one segment for each message from the pipe."""
    import numpy as np
    import torch
    from plain import PlainGPT, PlainLoop

    from scaling.data.prepare.cached import ensure_corpus
    from scaling.data.read.stream import SequenceStream
    from scaling.data.shards import CorpusIndex
    from scaling.model import build_model, initialise

    torch.set_num_threads(n_threads)
    config = config_for(dtype, 1, steps, root)
    corpus = str(ensure_corpus(config.data, config.tokenizer))
    stream = SequenceStream(
        corpus, CorpusIndex.load(corpus), "train", SEQ_LEN, seed=config.train.seed
    )
    rows = torch.from_numpy(stream.read(np.arange(200 * GLOBAL_BATCH_SIZE))).split(
        GLOBAL_BATCH_SIZE
    )
    batches = [(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]
    ours = build_model(config, device="cpu")
    initialise(ours, config.train.seed)
    model = PlainGPT(config.model, config.vocab_size, SEQ_LEN, config.position.theta)
    model.load_state_dict(ours.state_dict())
    loop = PlainLoop(model, batches, config.optim, bf16=dtype == "bf16")
    for n_steps in _turns(pipe):
        pipe.send(_timed(lambda n_steps=n_steps: loop.run(n_steps)))


def main_side(
    pipe: Connection, dtype: str, rank: int, n_workers: int, steps: int, root: str
) -> None:
    """The process of one rank of the real worker: runs its loop one segment at a time."""
    from scaling.channel.base import LocalChannel
    from scaling.data.prepare.cached import ensure_corpus
    from scaling.metrics import names
    from scaling.metrics.record import read_metrics
    from scaling.parallel.grid import Ranks
    from scaling.planner.run_plan import make_plan
    from scaling.runs.directory import RunDir
    from scaling.worker import rank as worker
    from scaling.worker.spec import WorkerSpec

    config = config_for(dtype, n_workers, steps, root)
    run_dir = RunDir(Path(root) / f"{dtype}-{n_workers}").create()
    spec = WorkerSpec(
        config=config,
        plan=make_plan(config),
        run_dir=str(run_dir.path),
        corpus_dir=str(ensure_corpus(config.data, config.tokenizer)),
    )
    whole_loop = worker.train

    def in_segments(
        engine: Any, steps: Any, state: Any, *, checkpoints: Any, control: Any, **parts: Any
    ) -> Any:
        none = _NoCheckpoints()
        unsaved = replace(control, checkpoints=none)
        for more in _turns(pipe):

            def segment(before: Any = state, more: int = more) -> float:
                nonlocal state
                steps.end = before.step + more
                state = whole_loop(
                    engine, steps, before, checkpoints=none, control=unsaved, **parts
                )
                return 0.0

            timed = _timed(segment)
            records = (
                [r for r in read_metrics(run_dir.metrics) if names.TRAIN_LOSS in r]
                if rank == 0
                else []
            )
            pipe.send(
                Segment(
                    timed.wall_s,
                    timed.cpu_s,
                    records[-1][names.TRAIN_LOSS] if records else float("nan"),
                )
            )
        return state

    worker.train = in_segments
    rendezvous = f"file://{root}/rendezvous-{dtype}-{n_workers}"
    worker.run_worker(spec, Ranks(rank, n_workers, rank), LocalChannel(), rendezvous=rendezvous)


class _NoCheckpoints:
    """A Checkpointer for which no checkpoint is due, and which saves nothing at the end."""

    last_step = None
    failed = timely = False

    def wait(self) -> None:
        """Return at once, because nothing is being written."""

    def save(self, engine: Any, state: Any) -> float:
        return 0.0

    def due(self, state: Any, *, timely: bool) -> bool:
        return False


def _turns(pipe: Connection) -> Iterator[int]:
    while (n_steps := pipe.recv()) is not None:
        yield n_steps


def _timed(run: Callable[[], float]) -> Segment:
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    loss = run()
    return Segment(time.perf_counter() - begun_s, time.process_time() - begun_cpu_s, loss)


@dataclass
class Side:
    """The processes of one side, and their results so far."""

    name: str
    processes: list[tuple[multiprocessing.process.BaseProcess, Connection]] = field(
        default_factory=list
    )
    segments: list[Segment] = field(default_factory=list)

    def start(self, target: Callable[..., None], *args: Any, n_threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(n_threads)
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=target, args=(theirs, *args), daemon=True
        )
        process.start()
        theirs.close()
        self.processes.append((process, ours))

    def turn(self, n_steps: int, *, keep: bool = True) -> None:
        for _, pipe in self.processes:
            pipe.send(n_steps)
        parts = [pipe.recv() for _, pipe in self.processes]
        if keep:
            whole = Segment(
                max(p.wall_s for p in parts), sum(p.cpu_s for p in parts), parts[0].loss
            )
            self.segments.append(whole)

    def end(self) -> None:
        for process, pipe in self.processes:
            pipe.send(None)
            process.join()


def start_sides(dtype: str, steps: int, root: str) -> dict[str, Side]:
    sides = {name: Side(name) for name in ("plain 1", "plain 2", "main 1", "main 2")}
    for n_threads in (1, 2):
        sides[f"plain {n_threads}"].start(
            plain_side, dtype, n_threads, steps, root, n_threads=n_threads
        )
    for n_workers in (1, 2):
        for rank in range(n_workers):
            sides[f"main {n_workers}"].start(
                main_side, dtype, rank, n_workers, steps, root, n_threads=1
            )
    return sides


def measure(dtype: str, rounds: int, steps: int) -> dict[str, list[Segment]]:
    with tempfile.TemporaryDirectory(prefix="scaling-bench-") as root:
        sides = start_sides(dtype, steps, root)
        for side in sides.values():
            side.turn(steps, keep=False)
        for index in range(rounds):
            wait_for_quiet(30.0)
            for side in list(sides.values())[:: 1 if index % 2 == 0 else -1]:
                side.turn(steps)
        for side in sides.values():
            side.end()
    _check_losses(dtype, sides)
    return {name: side.segments for name, side in sides.items()}


def _check_losses(dtype: str, sides: dict[str, Side]) -> None:
    expected = sides["plain 1"].segments[0].loss
    for side in sides.values():
        loss = side.segments[0].loss
        if abs(loss - expected) > LOSS_TOLERANCE[dtype] * expected:
            raise SystemExit(
                f"{side.name} does other work: its loss is {loss}, "
                f"that of the plain loop {expected}"
            )


def ratio(ours: list[Segment], theirs: list[Segment], clock: str = "wall_s") -> str:
    """Rate of `ours` over that of `theirs`: the median of the rounds and its quartiles."""
    ratios = [getattr(b, clock) / getattr(a, clock) for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    rounds, steps = (int(word) for word in (sys.argv[1:] + ["8", "3"][len(sys.argv) - 1 :])[:2])
    table = Table(
        "dtype",
        "side",
        "tokens/s",
        "to plain 1",
        "to plain 2",
        "CPU s per step",
        "CPU to plain 1",
        "loss",
    )
    for dtype in DTYPES:
        sides = measure(dtype, rounds, steps)
        for name, segments in sides.items():
            tokens = GLOBAL_BATCH_SIZE * SEQ_LEN * steps
            table.add_row(
                dtype,
                name,
                f"{tokens / statistics.median(s.wall_s for s in segments):.0f}",
                ratio(segments, sides["plain 1"]),
                ratio(segments, sides["plain 2"]),
                f"{statistics.median(s.cpu_s for s in segments) / steps:.2f}",
                ratio(segments, sides["plain 1"], "cpu_s"),
                f"{segments[-1].loss:.4f}",
            )
    Console(width=140).print(table)
    load = os.getloadavg()
    print(
        f"{rounds} rounds of {steps} steps, batch {GLOBAL_BATCH_SIZE} x {SEQ_LEN}; "
        f"load average {load[0]:.1f} {load[1]:.1f}"
    )


if __name__ == "__main__":
    main()
