"""The account of a run's time: every second is somewhere, and where it was is what is said."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import RunDirError
from scaling.runs.directory import RunDir
from scaling.runs.goodput import (
    CHECKPOINTING,
    EVALUATING,
    MEANING,
    PRODUCTIVE,
    RECOMPUTING,
    RESTARTING,
    STARTING,
    STOPPED,
    account,
    goodput,
    reached_step,
)
from scaling.train.control import Clock
from scaling.train.ledger import Ledger

WORK = (PRODUCTIVE, RECOMPUTING, CHECKPOINTING, EVALUATING)
seconds = st.integers(min_value=0, max_value=1000).map(float)


class History:
    """What happens to a run, the events that are written of it, and the truth beside them."""

    def __init__(self) -> None:
        self.now_s = 1.79e9
        self.events: list[dict[str, Any]] = []
        self.truth = dict.fromkeys(MEANING, 0.0)
        self.command_s = self.now_s
        self.n_groups = 0
        self.unsettled: dict[str, Any] | None = None

    def passes(self, activity: str, duration_s: float) -> None:
        self.truth[activity] += duration_s
        self.now_s += duration_s

    def command(self, after_s: float) -> None:
        self.passes(STOPPED, after_s)
        self.command_s = self.now_s

    def settle(self) -> None:
        if self.unsettled is not None:
            self.events.append(self.unsettled | {"kind": "account", "time_s": self.now_s})
        self.unsettled = None

    def group(self, waited_s: float, work: list[tuple[str, float]], unseen_s: float) -> None:
        """Workers start after `waited_s`, do this, and are last heard of `unseen_s` before their
        end."""
        self.passes(RESTARTING if self.n_groups else STARTING, waited_s)
        self.settle()
        self.n_groups += 1
        name = f"{self.n_groups:08x}"
        self.events.append(
            {
                "kind": "resume",
                "time_s": self.now_s,
                "command_s": self.command_s,
                "workers": name,
                "step": 0,
            }
        )
        own = dict.fromkeys(MEANING, 0.0)
        for activity, duration_s in work:
            self.passes(activity, duration_s)
            own[activity] += duration_s
        self.unsettled = {"workers": name, "step": 7, "seconds": own}
        self.passes(RESTARTING, unseen_s)

    def end(self, kind: str, took_s: float) -> None:
        self.settle()
        self.passes(EVALUATING if kind == "finished" else RESTARTING, took_s)
        self.events.append({"kind": kind, "time_s": self.now_s, "command_s": self.command_s})


group = st.tuples(seconds, st.lists(st.tuples(st.sampled_from(WORK), seconds), max_size=5), seconds)
driver = st.tuples(
    seconds,
    st.lists(group, min_size=1, max_size=3),
    st.sampled_from(["preempted", "failed"]),
    seconds,
)


@given(drivers=st.lists(driver, min_size=1, max_size=4), last=group, took_s=seconds)
def test_every_second_is_where_it_was(drivers: list[Any], last: Any, took_s: float) -> None:
    history = History()
    for number, (stopped_s, groups, kind, ending_s) in enumerate(drivers):
        history.command(stopped_s if number else 0.0)
        for parts in groups:
            history.group(*parts)
        history.end(kind, ending_s)
    history.command(5.0)
    history.group(*last[:2], 0.0)
    history.end("finished", took_s)
    found = account(history.events)
    assert found == pytest.approx(history.truth, abs=1e-5)
    begun_s = history.events[0]["command_s"]
    assert sum(found.values()) == pytest.approx(history.now_s - begun_s, abs=1e-5), (
        "a second is missing, or counted twice"
    )


def test_a_killed_driver_leaves_what_was_last_heard_and_nothing_counts_twice() -> None:
    history = History()
    history.group(10.0, [(PRODUCTIVE, 30.0), (CHECKPOINTING, 2.0)], 0.0)
    live = history.unsettled
    so_far = dict.fromkeys(MEANING, 0.0) | {STARTING: 10.0, PRODUCTIVE: 30.0, CHECKPOINTING: 2.0}
    assert account(history.events, live) == so_far
    history.command(1000.0)  # SIGKILL; somebody starts it again a quarter of an hour later
    history.group(8.0, [(RECOMPUTING, 5.0), (PRODUCTIVE, 5.0)], 0.0)
    # settled twice, by a crash in between
    history.events.append(history.events[-2] | {"time_s": history.now_s})
    history.end("finished", 1.0)
    found = account(history.events)
    assert found == so_far | {
        STOPPED: 1000.0,
        RESTARTING: 8.0,
        RECOMPUTING: 5.0,
        PRODUCTIVE: 35.0,
        EVALUATING: 1.0,
    }
    assert goodput(found) == 35.0 / (10 + 30 + 2 + 8 + 5 + 5 + 1)


def test_a_launch_that_fails_before_its_workers_begin_is_accounted_too() -> None:
    events = [{"kind": "failed", "time_s": 130.0, "command_s": 100.0}]
    assert account(events)[RESTARTING] == 30.0
    assert goodput(account([])) is None
    assert reached_step([]) == 0
    assert reached_step([{"kind": "a", "step": 9}, {"kind": "b"}, {"kind": "c", "step": 4}]) == 9


class Hand:
    """A clock that is moved by hand."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_clock_is_always_in_one_activity() -> None:
    hand = Hand()
    clock = Clock(hand)
    hand.now_s = 3.0
    clock.enter(PRODUCTIVE)
    hand.now_s = 10.0
    with clock.doing(EVALUATING):
        hand.now_s = 12.0
        with clock.doing(CHECKPOINTING):
            hand.now_s = 13.0
    hand.now_s = 14.0
    assert clock.seconds() == dict.fromkeys(MEANING, 0.0) | {
        STARTING: 3.0,
        PRODUCTIVE: 8.0,
        EVALUATING: 2.0,
        CHECKPOINTING: 1.0,
    }
    assert clock.activity == PRODUCTIVE
    clock.begin(RESTARTING)
    hand.now_s = 15.0
    assert clock.seconds()[RESTARTING] == sum(clock.seconds().values()) == 1.0


def test_the_ledger_goes_on_where_the_group_before_was_killed(tmp_path: Path) -> None:
    run_dir, hand = RunDir(tmp_path).create(), Hand()
    clock, told = Clock(hand), list[str]()
    ledger = Ledger(run_dir, "first", clock, told.append, lambda: None)
    assert ledger.restarts == 0
    run_dir.event("start", step=0, workers="first", command_s=0.0)
    clock.enter(PRODUCTIVE)
    hand.now_s = 6.0
    ledger.step(40)
    ledger.beat(last=True)
    assert run_dir.read_progress() == {"workers": "first", "step": 40, "seconds": clock.seconds()}
    run_dir.settle_account()
    assert run_dir.read_progress() is None
    after = Ledger(run_dir, "second", Clock(hand), told.append, lambda: None)
    assert (after.restarts, after.reached_step) == (1, 40)
    assert after.seconds()[PRODUCTIVE] == 6.0
    assert 0 < after.goodput < 1
    assert told == []


def test_a_disk_that_refuses_the_account_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, told = RunDir(tmp_path).create(), list[str]()
    ledger = Ledger(run_dir, "first", Clock(Hand()), told.append, lambda: None)

    def refuse(*_: Any) -> None:
        raise RunDirError("no space")

    monkeypatch.setattr(RunDir, "write_progress", refuse)
    thread = threading.Thread(target=lambda: [ledger.beat(last=True) for _ in range(3)])
    thread.start()
    thread.join()
    assert told == ["The account of the run's time is not kept: no space"]
