"""What the loop asks before each step: every rank gets the same answer, from one collective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch.distributed as dist

from scaling.channel.base import LocalChannel
from scaling.checkpoint.state import TrainState
from scaling.errors import CheckpointError
from scaling.parallel.grid import Ranks
from scaling.runs.goodput import CHECKPOINTING, PRODUCTIVE, RECOMPUTING
from scaling.train.control import (
    AGREEING,
    READING,
    RECORDING,
    SAVING,
    Agreement,
    Clock,
    Control,
    Decision,
    Preemption,
)
from tests.support.ranks import run_ranks


class Saves:
    """A checkpointer that is due at step 4, or when any rank's clock says so."""

    failed = timely = False
    waited = 0

    def due(self, state: TrainState, *, timely: bool) -> bool:
        return timely or state.step == 4

    def wait(self) -> None:
        self.waited += 1
        if self.failed:
            raise CheckpointError("the disk is full")


class Counted(Agreement):
    """An agreement with ranks whose answers are given; counts its collectives."""

    def __init__(self, *others: bool) -> None:
        super().__init__(None)
        self.others, self.n_collectives = others, 0

    def any(self, *seen: bool) -> Sequence[bool]:
        self.n_collectives += 1
        others = self.others or (False,) * len(seen)
        return [own or other for own, other in zip(seen, others, strict=True)]


def control(agreement: Agreement, *, stop: bool = False) -> tuple[Control, Any]:
    clock, saves = Clock(), Saves()
    preemption = Preemption(
        LocalChannel(),
        clock,
        world_size=2,
        sizes=(1, 2),
        grace_s=30.0,
        write_s=lambda: 0.0,
        on_event=lambda kind, **fields: None,
    )
    stand_in: Any = saves
    return Control(clock, agreement, preemption, stand_in, lambda: stop), saves


@pytest.mark.parametrize(
    ("step", "others", "decision"),
    [
        (3, (), Decision(stop=False, save=False)),
        (4, (), Decision(stop=False, save=True)),
        (3, (False, False, True, False), Decision(stop=False, save=True)),
        (4, (True, False, False, False), Decision(stop=True, save=False)),
    ],
)
def test_one_collective_decides_for_every_rank(
    step: int, others: tuple[bool, ...], decision: Decision
) -> None:
    agreement = Counted(*others)
    ours, saves = control(agreement)
    assert ours.decide(TrainState(step=step)) == decision
    assert (agreement.n_collectives, saves.waited) == (1, 0)
    assert (ours.clock.phase, ours.clock.step) == (AGREEING, step)
    assert ours.reason is None


def test_a_write_that_failed_on_another_rank_is_waited_for_here() -> None:
    ours, saves = control(Counted(False, True, False, False))
    ours.decide(TrainState(step=1))
    assert saves.waited == 1
    saves.failed = True
    with pytest.raises(CheckpointError, match="disk is full"):
        ours.decide(TrainState(step=2))


def test_a_step_and_a_save_count_where_they_belong() -> None:
    ours, _ = control(Counted())
    with ours.step(TrainState(step=6), again=True) as timing:
        assert (ours.clock.activity, ours.clock.phase, ours.clock.step) == (RECOMPUTING, READING, 6)
    assert (ours.clock.phase, ours.clock.step) == (RECORDING, 7)
    assert timing.step_time_s == ours.clock.longest_step_s > 0
    with pytest.raises(ZeroDivisionError), ours.step(TrainState(step=7), again=False):
        raise ZeroDivisionError
    assert ours.clock.phase == READING, "the report names the phase in which the step failed"
    with ours.saving(TrainState(step=7)):
        assert (ours.clock.activity, ours.clock.phase) == (CHECKPOINTING, SAVING)
    assert ours.clock.activity == PRODUCTIVE
    ours.end()
    assert ours.clock.activity == CHECKPOINTING


def _agreed(ranks: Ranks) -> list[list[bool]]:
    agreement = Agreement(dist.group.WORLD)
    return [
        list(agreement.any(ranks.rank == 1, False, ranks.rank == 0)),
        list(agreement.any(False)),
    ]


def test_what_one_rank_sees_all_act_on() -> None:
    assert run_ranks(_agreed, 2) == [[[True, False, True], [False]]] * 2
    assert list(Agreement(None).any(True, False)) == [True, False]
