"""Pipeline schedules as DeepSpeed's own instructions give them: which stage computes what, and
when."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from scaling.config.cluster import PipelineSchedule
from scaling.engine.deepspeed.library import import_deepspeed
from scaling.planner.layout import Layout


@dataclass(frozen=True)
class Work:
    """One pass of a micro-batch through a stage of a rank. Times are in an arbitrary unit."""

    rank: int
    stage: int
    kind: Literal["forward", "backward"]
    micro_batch: int
    start: float
    end: float


def followed(
    schedule: PipelineSchedule,
    pp: int,
    n_micro_batches: int,
    *,
    forward: float = 1.0,
    backward: float = 2.0,
) -> list[Work]:
    """Every piece of work, as early as it can be: a rank takes its own in order, and what it needs
    of another stage before.

    All stages take as long as each other, and messages no time. By default backward has two
    products for each of forward's.
    """
    layout = Layout(
        dp=1,
        tp=1,
        pp=pp,
        zero_stage=1,
        micro_batch_size=1,
        grad_accum_steps=n_micro_batches,
        activation_checkpointing="none",
        engine="deepspeed",
        pp_schedule=schedule,
    )
    orders = [_passes(layout, rank) for rank in range(pp)]
    ends: dict[tuple[str, int, int], float] = {}
    counts: Counter[tuple[str, int]] = Counter()
    free, done = [0.0] * pp, list[Work]()
    while any(orders):
        before = len(done)
        for rank, order in enumerate(orders):
            while order:
                kind, stage = order[0]
                number = counts[kind, stage]
                ready = _ready(kind, stage, number, layout.n_stages, ends)
                if ready is None:
                    break
                order.pop(0)
                start = max(free[rank], ready)
                free[rank] = ends[kind, stage, number] = start + (
                    forward if kind == "forward" else backward
                )
                counts[kind, stage] += 1
                done.append(Work(rank, stage, kind, number, start, free[rank]))
        assert len(done) > before, "the schedule never ends"
    return done


def _passes(layout: Layout, rank: int) -> list[tuple[Literal["forward", "backward"], int]]:
    """(kind, stage) of a rank's passes, in DeepSpeed's order."""
    import_deepspeed()
    from deepspeed.runtime.pipe import schedule

    kinds: dict[Any, Literal["forward", "backward"]] = {
        schedule.ForwardPass: "forward",
        schedule.BackwardPass: "backward",
    }
    made = (
        schedule.DualPipeVSchedule if layout.pp_schedule == "dualpipev" else schedule.TrainSchedule
    )
    steps = made(micro_batches=layout.grad_accum_steps, stages=layout.pp, stage_id=rank).steps()
    stages = layout.stages_of(rank)
    return [
        (kinds[type(c)], stages[getattr(c, "phase", 0)])
        for commands in steps
        for c in commands
        if type(c) in kinds
    ]


def _ready(
    kind: str, stage: int, number: int, n_stages: int, ends: dict[tuple[str, int, int], float]
) -> float | None:
    """The time at which the inputs of the work are ready; None while it is unknown."""
    if kind == "forward":
        return 0.0 if stage == 0 else ends.get((kind, stage - 1, number))
    return ends.get(
        ("forward", stage, number) if stage == n_stages - 1 else (kind, stage + 1, number)
    )


def waited(work: list[Work]) -> float:
    """The share of the whole time in which the first rank waits."""
    return max(piece.end for piece in work) - sum(
        piece.end - piece.start for piece in work if piece.rank == 0
    )


def bubble(work: list[Work]) -> float:
    """The share of the time in which a rank waits, on average over the ranks."""
    end, n_ranks = max(piece.end for piece in work), max(piece.rank for piece in work) + 1
    return 1 - sum(piece.end - piece.start for piece in work) / (end * n_ranks)
