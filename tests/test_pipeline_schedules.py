"""What a pipeline waits, and what it keeps, by following DeepSpeed's own instructions with a clock: the planner's formulas."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from scaling.engine.deepspeed import import_deepspeed
from scaling.plan.degrees import Layout, PipelineSchedule
from scaling.plan.memory_model import in_flight
from scaling.plan.time_model import bubble_s


def followed(kind: PipelineSchedule, pp: int, n_micro: int, forward_s: float, backward_s: float) -> tuple[float, int]:
    """(seconds that the whole takes, most forwards that the first rank has kept), of stages that take as long as each other."""
    import_deepspeed()
    from deepspeed.runtime.pipe import schedule

    made = {"1f1b": schedule.TrainSchedule, "dualpipev": schedule.DualPipeVSchedule}[kind]
    layout = Layout(1, 1, pp, 1, 1, n_micro, "none", "deepspeed", pp_schedule=kind)
    waiting: list[list[Any]] = []
    for rank in range(pp):
        steps = made(micro_batches=n_micro, stages=pp, stage_id=rank).steps()
        passes = (schedule.ForwardPass, schedule.BackwardPass)
        waiting.append([command for commands in steps for command in commands if isinstance(command, passes)])
    done: dict[tuple[str, int, int], float] = {}  # of (pass, stage, micro-batch): when
    clock, kept, most = [0.0] * pp, [0] * pp, [0] * pp
    counts: Counter[tuple[str, int]] = Counter()
    while any(waiting):
        before = len(done)
        for rank in range(pp):
            while waiting[rank]:
                command = waiting[rank][0]
                name, stage = command.name, layout.stages_of(rank)[getattr(command, "phase", 0)]
                number, last = counts[name, stage], layout.n_stages - 1
                needed = (name, stage - 1, number) if name == "ForwardPass" else (name, stage + 1, number)
                if name == "BackwardPass" and stage == last:
                    needed = ("ForwardPass", stage, number)
                if needed[1] >= 0 and needed not in done:
                    break
                clock[rank] = max(clock[rank], done.get(needed, 0.0)) + (forward_s if name == "ForwardPass" else backward_s)
                done[name, stage, number] = clock[rank]
                counts[name, stage] += 1
                kept[rank] += 1 if name == "ForwardPass" else -1
                most[rank] = max(most[rank], kept[rank])
                waiting[rank].pop(0)
        assert len(done) > before, "the schedule never ends"
    return max(clock), most[0]


@pytest.mark.parametrize("kind", ["1f1b", "dualpipev"])
@pytest.mark.parametrize("pp", [2, 3, 4, 8])
@pytest.mark.parametrize("ratio", [1.0, 2.0, 2.5, 3.0])
def test_the_bubble_is_the_planners(kind: PipelineSchedule, pp: int, ratio: float) -> None:
    for n_micro in (2 * pp, 5 * pp):
        layout = Layout(1, 1, pp, 1, 1, n_micro, "none", "deepspeed", pp_schedule=kind)
        per_rank = layout.n_stages // pp
        took_s, most = followed(kind, pp, n_micro, 1.0, ratio)
        waited_s = took_s - n_micro * per_rank * (1 + ratio)
        assert waited_s == pytest.approx(bubble_s(layout, per_rank * (1 + ratio), per_rank * ratio))
        assert most / per_rank == in_flight(layout)
        if ratio == 2.0:
            assert waited_s / took_s == pytest.approx(layout.bubble_share)


def test_the_bubble_of_1f1b_is_the_published_one() -> None:
    layout = Layout(1, 1, 4, 1, 1, 16, "none", "deepspeed")
    assert layout.bubble_share == pytest.approx((4 - 1) / (16 + 4 - 1))
