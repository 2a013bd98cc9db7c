"""Who failed first: the rank whose own error it is, the one that hangs, the one that is silent, and
last who only noticed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from scaling.channel import failure
from scaling.channel.base import LocalChannel
from scaling.channel.failure import is_consequence, report
from scaling.channel.messages import Crashed, Fatal, Hung, Lost
from scaling.errors import DataError, SupersededError
from scaling.launch.blame import Trouble, Troubles
from scaling.parallel.grid import Ranks
from scaling.runs.goodput import EVALUATING, PRODUCTIVE
from scaling.train import watchdog
from scaling.train.control import AGREEING, COMPUTING, READING, Clock
from scaling.train.watchdog import Watchdog, limit_s
from tests.support.ranks import run_ranks
from tests.support.reports import GLOO, crashed, hung


def verdict(world_size: int, *reports: Crashed | Hung | Lost) -> Trouble:
    troubles = Troubles(world_size)
    for one in reports:
        troubles.add(one)
    found = troubles.verdict()
    assert found is not None
    return found


def test_a_rank_with_an_error_of_its_own_is_named_whoever_speaks_first() -> None:
    noticed = [crashed(rank, f"RuntimeError: {GLOO}", consequence=True) for rank in (0, 2, 3)]
    for place in range(4):
        reports = [
            *noticed[:place],
            crashed(1, "ValueError: bad thing", consequence=False),
            *noticed[place:],
        ]
        found = verdict(4, *reports, Lost([2]))
        assert (found.kind, found.ranks, found.text) == (
            "crashed",
            [1],
            "rank 1 failed: ValueError: bad thing",
        )
        assert "rank-1.txt" in found.fix


def test_a_rank_that_was_killed_is_the_one_that_says_nothing() -> None:
    noticed = [crashed(rank, f"RuntimeError: {GLOO}", consequence=True) for rank in (0, 1, 3)]
    assert verdict(4, *noticed).ranks == [2]
    assert verdict(4, Lost([2])).ranks == [2]
    assert verdict(4, noticed[0], Lost([2])).text.startswith("rank 2 ended without an error")
    assert verdict(4, Lost([0, 2]), noticed[0]).ranks == [2], (
        "rank 0 noticed, and ended because of that"
    )
    assert verdict(2, Lost([0]), noticed[0]).ranks == [0], (
        "its machine went first, and it lived on a little"
    )
    assert verdict(16, Lost(list(range(9)))).text.startswith(
        "9 ranks (0, 1, 2, 3, 4, 5, 6, 7, ...) ended"
    )


def test_where_everyone_only_noticed_the_first_to_notice_is_told() -> None:
    found = verdict(
        2, *[crashed(rank, f"RuntimeError: {GLOO}", consequence=True) for rank in (1, 0)]
    )
    assert (found.kind, found.ranks) == ("crashed", [1])


def test_the_rank_that_hangs_answers_nothing_or_is_behind_or_does_not_wait() -> None:
    silent = verdict(3, hung(0), hung(2))
    assert (silent.ranks, silent.text) == (
        [1],
        "rank 1 hangs and answers nothing (no step for 61 s after step 7)",
    )
    assert "hang-0.txt, hang-2.txt" in silent.fix
    assert "cluster.hang_s" in silent.fix
    behind = verdict(3, hung(0), hung(1, phase=READING), hung(2))
    assert (
        behind.text
        == "rank 1 hangs reading the batch of step 8, at loop.py:12 (no step for 61 s after step 7)"
    )
    earlier = verdict(3, hung(0, phase=AGREEING), hung(1, step=6), hung(2, phase=AGREEING))
    assert (earlier.kind, earlier.ranks) == ("hung", [1])
    assert verdict(3, hung(0), hung(1), hung(2, waiting=False)).ranks == [2]
    assert verdict(3, hung(0), hung(1), hung(2)).text.startswith("all ranks hang, computing step 8")
    assert verdict(1, hung(0, waiting=False)).ranks == [0]
    real = verdict(2, hung(0), crashed(1, "OSError: disk", consequence=False))
    assert real.ranks == [1], "who waits for a rank that crashed does not hang"


def test_no_report_is_no_trouble() -> None:
    assert Troubles(2).verdict() is None
    troubles = Troubles(2)
    troubles.add(hung(0))
    assert not troubles.complete
    troubles.add(hung(1))
    assert troubles.complete


# What ranks tell.


def test_an_error_is_told_once_as_what_it_is(tmp_path: Path) -> None:
    channel = LocalChannel()
    errors = [
        DataError("a shard is gone", "data.path", "restore it"),
        ZeroDivisionError("1/0"),
        RuntimeError(GLOO),
    ]
    for error in errors:
        for _ in range(2):
            report(error, channel, tmp_path, 3)
    report(SupersededError("another group"), channel, tmp_path, 3)
    report(KeyboardInterrupt(), channel, tmp_path, 3)
    fatal, own, noticed = channel.receive()
    data = {
        "type": "DataError",
        "what": "a shard is gone",
        "where": "data.path",
        "fix": "restore it",
    }
    assert fatal == Fatal(data, 3)
    assert isinstance(own, Crashed)
    assert (own.error, own.consequence) == ("ZeroDivisionError: 1/0", False)
    assert isinstance(noticed, Crashed)
    assert noticed.consequence
    assert "Connection closed by peer" in Path(noticed.traceback).read_text()


def _lose_a_rank(ranks: Ranks) -> bool:
    """Rank 1 leaves a group of its own; whether what rank 0 meets then is known for a
    consequence."""
    import torch

    group = dist.new_group(backend="gloo")
    if ranks.rank == 1:
        dist.destroy_process_group(group)
        return True
    try:
        for _ in range(100):
            dist.all_reduce(torch.zeros(1), group=group)
    except Exception as error:
        return is_consequence(error)
    raise AssertionError("nothing was noticed")


def test_what_gloo_raises_when_a_rank_has_gone_is_a_consequence() -> None:
    assert run_ranks(_lose_a_rank, 2) == [True, True]
    assert is_consequence(dist.DistNetworkError("timed out"))
    assert not is_consequence(RuntimeError("size mismatch"))
    assert not is_consequence(ConnectionResetError("connection reset by peer")), (
        "of a shard's server, say"
    )


class Recorder(LocalChannel):
    """A channel whose rank has a process of its own, or would have."""

    abandoned = threading.Event()

    def abandon(self) -> None:
        self.abandoned.set()


def test_a_rank_without_a_step_leaves_its_stacks_and_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_GRACE_S", 0.0)
    channel, clock = Recorder(), Clock()
    clock.enter(PRODUCTIVE)
    clock.at(READING, 11)
    dog = Watchdog(clock, channel, tmp_path, 2, bound_s=0.2)
    assert channel.abandoned.wait(20)
    dog.close()
    (hang,) = channel.receive()
    assert isinstance(hang, Hung)
    assert (hang.rank, hang.step, hang.doing) == (2, 11, READING)
    assert hang.still_s >= 0.2
    assert not hang.waiting
    stacks = Path(hang.stacks).read_text()
    assert "test_a_rank_without_a_step_leaves_its_stacks_and_gives_up" in stacks
    assert "Thread" in stacks


def test_what_is_slow_is_given_time(tmp_path: Path) -> None:
    now_s = 0.0
    clock = Clock(lambda: now_s)
    assert limit_s(clock, 60.0) == 180.0, "a start takes longer than a step"
    clock.enter(PRODUCTIVE)
    clock.at(COMPUTING, 8)
    now_s = 59.0
    assert (clock.still_s(), limit_s(clock, 60.0)) == (59.0, 60.0)
    clock.stepped(7.0)
    assert limit_s(clock, 60.0) == 70.0, "a run of long steps does not hang"
    with clock.doing(EVALUATING):
        assert limit_s(clock, 60.0) == 180.0
    clock.at(AGREEING, 9)
    assert clock.still_s() == 0.0


def test_errors_have_a_place(tmp_path: Path) -> None:
    assert failure.errors_dir(tmp_path) == failure.errors_dir(str(tmp_path)) == tmp_path / "errors"
    assert os.listdir(tmp_path) == ["errors"]
