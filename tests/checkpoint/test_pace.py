"""How often training is saved: where the least is lost, by what saves cost and how often the
cluster fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.checkpoint.pace import Pace
from scaling.checkpoint.state import TrainState
from scaling.checkpoint.store import committed
from scaling.composition.compose import compose
from scaling.errors import ConfigError
from scaling.planner.cost.failures import (
    checkpoint_interval_s,
    hours_between_failures,
    with_experience,
)
from scaling.runs.goodput import n_failures
from tests.checkpoint.test_store import checkpointer


@given(cost_s=st.floats(1e-3, 1e3), hours=st.floats(0.01, 1e5), write_s=st.floats(0, 1e4))
def test_no_other_interval_loses_less(cost_s: float, hours: float, write_s: float) -> None:
    best = checkpoint_interval_s(cost_s, write_s, hours)
    assert best >= write_s, "there is never more than one on its way"
    others = np.geomspace(max(write_s, best / 50), best * 50, 500)

    def lost(every_s: Any) -> Any:
        return cost_s / every_s + (every_s / 2 + write_s) / (3600 * hours)

    assert lost(best) <= lost(others[others >= write_s]).min() * (1 + 1e-12)


def test_a_cluster_fails_as_often_as_its_parts_and_its_people() -> None:
    def hours(cluster: str, n_devices: int) -> float:
        return hours_between_failures(compose([f"cluster={cluster}"]).cluster, n_devices)

    assert hours("2048x8xH100", 16_384) == pytest.approx(54 * 24 / 419, rel=0.02)
    assert hours("4x8xA100-spot", 32) == pytest.approx(5.0, rel=0.01)
    assert hours("local", 2) == pytest.approx(8.0, rel=0.01)
    assert with_experience(5.0, hours=0.0, n_failures=0) == 5.0
    assert with_experience(5.0, hours=95.0, n_failures=0) == 100.0, (
        "a cluster that does not fail is better than was feared"
    )
    assert with_experience(5000.0, hours=10.0, n_failures=100) == pytest.approx(50, rel=0.01)


def test_only_an_end_that_nobody_asked_for_is_a_failure() -> None:
    def kinds(*names: str) -> list[dict[str, str]]:
        return [{"kind": name} for name in names]

    assert n_failures(kinds("start", "checkpoint_committed")) == 0
    assert n_failures(kinds("start", "preempted", "resume")) == 0
    assert n_failures(kinds("start", "resume", "failed", "resume", "preempted", "resume")) == 2


class Hand:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_the_interval_follows_what_saves_cost() -> None:
    hand = Hand()
    pace = Pace(None, 1.0, 2e9, hand)
    assert pace.interval_s == pytest.approx((2 * 2 * 3600) ** 0.5), (
        "two seconds for two gigabytes, until one is measured"
    )
    hand.now_s += 119.0
    assert not pace.wanted
    hand.now_s += 2.0
    assert pace.wanted
    pace.saving()
    assert not pace.wanted
    pace.measured(0.5, 1.0)
    assert pace.interval_s == pytest.approx(60.0)
    pace.measured(1.5, 3.0)
    assert pace.interval_s == pytest.approx((2 * 1.0 * 3600) ** 0.5)
    pace.measured(1.0, 1000.0)
    assert pace.interval_s > 300, "what takes long to write is not asked for sooner"


def test_fixed_minutes_are_fixed() -> None:
    hand = Hand()
    pace = Pace(2.0, 1e-3, 1.0, hand)
    pace.measured(9.0, 9.0)
    assert pace.interval_s == 120.0


def test_steps_and_minutes_are_not_both_given() -> None:
    assert compose(["checkpoint.every_minutes=5"]).checkpoint.every_minutes == 5
    assert compose().checkpoint.every == "auto"
    with pytest.raises(
        ConfigError,
        match=r"checkpoint\.every_steps and checkpoint\.every_minutes are both set; give one",
    ):
        compose(["checkpoint.every_steps=5", "checkpoint.every_minutes=5"])
    with pytest.raises(
        ConfigError, match=r"checkpoint\.every=end leaves no room for checkpoint\.every_steps"
    ):
        compose(["checkpoint.every=end", "checkpoint.every_steps=5"])


def test_a_save_is_measured_and_starts_the_interval_anew(tmp_path: Path) -> None:
    ours, engine = checkpointer(tmp_path)
    hand = Hand()
    ours._pace = pace = Pace(None, 8.0, 1e6, hand)
    assert not ours.due(TrainState(step=3), timely=False)
    hand.now_s += 1e4
    assert ours.timely
    assert ours.due(TrainState(step=3), timely=True)
    ours.save(engine, TrainState(step=3))
    assert not ours.timely
    assert not ours.due(TrainState(step=3), timely=True), "it is saved already"
    ours.wait()
    assert [step for step, _ in committed(tmp_path)] == [3]
    (cost_s,), (write_s,) = pace._costs_s, pace._writes_s
    assert 0 < cost_s < 10
    assert 0 < write_s < 60
