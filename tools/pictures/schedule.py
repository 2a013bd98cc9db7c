"""The 1F1B schedule of a pipeline (Narayanan et al. 2019, arXiv:1806.03377), by running it: who computes what, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

FORWARD_TIME, BACKWARD_TIME = 1, 2
"""Backward has two products for each of forward's."""


@dataclass(frozen=True)
class Work:
    stage: int
    kind: Literal["forward", "backward"]
    micro_batch: int
    start: int
    end: int


def one_forward_one_backward(n_stages: int, n_micro_batches: int) -> list[Work]:
    """Every piece of work, as early as it can be: a stage takes its own in order, and what it needs of its neighbour before."""
    orders = [list(_order(stage, n_stages, n_micro_batches)) for stage in range(n_stages)]
    ends: dict[tuple[int, str, int], int] = {}
    free, done = [0] * n_stages, []
    while any(orders):
        for stage, order in enumerate(orders):
            while order and (ready := _ready(stage, *order[0], n_stages, ends)) is not None:
                kind, micro_batch = order.pop(0)
                start = max(free[stage], ready)
                free[stage] = ends[stage, kind, micro_batch] = start + (FORWARD_TIME if kind == "forward" else BACKWARD_TIME)
                done.append(Work(stage, kind, micro_batch, start, free[stage]))
    return done


def _order(stage: int, n_stages: int, n_micro_batches: int) -> Iterator[tuple[Literal["forward", "backward"], int]]:
    """Forwards until the first backward can come, then one of each in turn, then the backwards that are left."""
    n_ahead = min(n_stages - stage, n_micro_batches)
    yield from (("forward", number) for number in range(n_ahead))
    for number in range(n_micro_batches):
        yield "backward", number
        if number + n_ahead < n_micro_batches:
            yield "forward", number + n_ahead


def _ready(stage: int, kind: str, micro_batch: int, n_stages: int, ends: dict[tuple[int, str, int], int]) -> int | None:
    """When what the work needs is there; None while that is not known."""
    if kind == "forward":
        return 0 if stage == 0 else ends.get((stage - 1, kind, micro_batch))
    return ends.get((stage, "forward", micro_batch) if stage == n_stages - 1 else (stage + 1, kind, micro_batch))


def bubble(work: list[Work]) -> float:
    """The part of the time in which a stage waits, on average over the stages."""
    end, n_stages = max(piece.end for piece in work), max(piece.stage for piece in work) + 1
    return 1 - sum(piece.end - piece.start for piece in work) / (end * n_stages)
