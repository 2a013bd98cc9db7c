"""Who failed first: the rank whose own error it is, the one that hangs, the one that is silent, and
last who only noticed."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from scaling.channel import failure
from scaling.channel.base import LocalChannel
from scaling.channel.failure import is_consequence, tell
from scaling.errors import CheckpointError, DataError, LaunchError, SupersededError
from scaling.launch.blame import Trouble, Troubles
from scaling.launch.console import ProgressLine
from scaling.launch.signals import StopSignals
from scaling.launch.watch import Watch
from scaling.parallel.grid import Ranks
from scaling.runs.directory import RunDir
from scaling.runs.goodput import EVALUATING, PRODUCTIVE
from scaling.train import watchdog
from scaling.train.clock import AGREEING, COMPUTING, PLACES, READING, Clock
from scaling.train.watchdog import Watchdog, limit_s
from tests.support.ranks import run_ranks

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3412"


def crashed(rank: int, error: str, *, consequence: bool) -> tuple[str, dict[str, Any]]:
    return "crashed", {
        "rank": rank,
        "error": error,
        "traceback": f"rank-{rank}.txt",
        "consequence": consequence,
    }


def hung(
    rank: int, *, step: int = 7, place: str = COMPUTING, waiting: bool = True
) -> tuple[str, dict[str, Any]]:
    return "hung", {
        "rank": rank,
        "step": step,
        "place": PLACES.index(place),
        "doing": place,
        "still_s": 61.4,
        "where": "loop.py:12",
        "waiting": waiting,
        "stacks": f"hang-{rank}.txt",
    }


def verdict(world_size: int, *reports: tuple[str, dict[str, Any]]) -> Trouble:
    troubles = Troubles(world_size)
    for kind, report in reports:
        troubles.add(kind, report)
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
        found = verdict(4, *reports, ("lost", {"ranks": [2]}))
        assert (found.kind, found.ranks, found.text) == (
            "crashed",
            [1],
            "rank 1 failed: ValueError: bad thing",
        )
        assert "rank-1.txt" in found.fix


def test_a_rank_that_was_killed_is_the_one_that_says_nothing() -> None:
    noticed = [crashed(rank, f"RuntimeError: {GLOO}", consequence=True) for rank in (0, 1, 3)]
    assert verdict(4, *noticed).ranks == [2]
    assert verdict(4, ("lost", {"ranks": [2]})).ranks == [2]
    assert verdict(4, noticed[0], ("lost", {"ranks": [2]})).text.startswith(
        "rank 2 ended without an error"
    )
    assert verdict(4, ("lost", {"ranks": [0, 2]}), noticed[0]).ranks == [2], (
        "rank 0 noticed, and ended because of that"
    )
    assert verdict(2, ("lost", {"ranks": [0]}), noticed[0]).ranks == [0], (
        "its machine went first, and it lived on a little"
    )
    assert verdict(16, ("lost", {"ranks": list(range(9))})).text.startswith(
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
    behind = verdict(3, hung(0), hung(1, place=READING), hung(2))
    assert (
        behind.text
        == "rank 1 hangs reading the batch of step 8, at loop.py:12 (no step for 61 s after step 7)"
    )
    earlier = verdict(3, hung(0, place=AGREEING), hung(1, step=6), hung(2, place=AGREEING))
    assert (earlier.kind, earlier.ranks) == ("hung", [1])
    assert verdict(3, hung(0), hung(1), hung(2, waiting=False)).ranks == [2]
    assert verdict(3, hung(0), hung(1), hung(2)).text.startswith("all ranks hang, computing step 8")
    assert verdict(1, hung(0, waiting=False)).ranks == [0]
    real = verdict(2, hung(0), crashed(1, "OSError: disk", consequence=False))
    assert real.ranks == [1], "who waits for a rank that crashed does not hang"


def test_no_report_is_no_trouble() -> None:
    assert Troubles(2).verdict() is None
    troubles = Troubles(2)
    troubles.add(*hung(0))
    assert not troubles.complete
    troubles.add(*hung(1))
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
            tell(error, channel, tmp_path, 3)
    tell(SupersededError("another group"), channel, tmp_path, 3)
    tell(KeyboardInterrupt(), channel, tmp_path, 3)
    fatal, own, noticed = channel.receive()
    assert fatal == (
        "fatal",
        {
            "type": "DataError",
            "what": "a shard is gone",
            "where": "data.path",
            "fix": "restore it",
            "rank": 3,
        },
    )
    assert (own[1]["error"], own[1]["consequence"]) == ("ZeroDivisionError: 1/0", False)
    assert noticed[1]["consequence"]
    assert "Connection closed by peer" in Path(noticed[1]["traceback"]).read_text()


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
    ((kind, report),) = channel.receive()
    assert (kind, report["rank"], report["step"], report["doing"]) == ("hung", 2, 11, READING)
    assert report["still_s"] >= 0.2
    assert not report["waiting"]
    stacks = Path(report["stacks"]).read_text()
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


# What the driver makes of it.


class Script:
    """A launch that says what it is told to say, batch by batch, and then ends."""

    dies_with_its_worker = False

    def __init__(
        self, *batches: list[tuple[str, dict[str, Any]]], error: LaunchError | None = None
    ) -> None:
        self._batches, self._error = list(batches), error

    def receive(self) -> list[tuple[str, dict[str, Any]]]:
        return self._batches.pop(0) if self._batches else []

    def request_stop(self) -> None: ...

    def done(self, timeout_s: float) -> bool:
        return len(self._batches) <= 1

    def result(self) -> dict[str, Any]:
        if self._error:
            raise self._error
        return {"finished": True}


def watch(run_dir: RunDir, launch: Script, capsys: pytest.CaptureFixture[str]) -> str:
    from rich.console import Console

    with StopSignals() as signals, ProgressLine(Console(width=400)) as progress:
        Watch(launch, signals, progress, run_dir, 2).result()
    return capsys.readouterr().out


BEGAN = ("began", {"step": 0, "world_size": 2})


def test_every_restart_has_its_reason_on_the_screen_and_in_the_events(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = RunDir(tmp_path).create()
    noticed = crashed(0, f"RuntimeError: {GLOO}", consequence=True)
    out = watch(
        run_dir,
        Script(
            [BEGAN],
            [noticed],
            [("lost", {"ranks": [1]})],
            [("began", {"step": 5, "world_size": 2})],
        ),
        capsys,
    )
    assert "Rank 1 ended without an error" in out
    assert "Connection closed" not in out
    assert "Resuming after step 5." in out
    ((event),) = run_dir.read_events()
    assert (event["kind"], event["failure"], event["ranks"]) == ("worker_failed", "lost", [1])


def test_the_first_verdict_of_a_group_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hang was reported at the end as "killed, or out of memory": ranks that hang end themselves,
    and Ray sees them go."""
    run_dir, both = RunDir(tmp_path).create(), [hung(0, waiting=False), hung(1, waiting=True)]
    launch = Script(
        [BEGAN], both, [("lost", {"ranks": [0, 1]})], [], error=LaunchError("TrainingFailedError")
    )
    with pytest.raises(LaunchError, match="rank 0 hangs computing step 8"):
        watch(run_dir, launch, capsys)
    assert [event["failure"] for event in run_dir.read_events()] == ["hung"]


def test_a_group_that_ends_before_it_begins_has_a_verdict_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, both = RunDir(tmp_path).create(), [hung(0, waiting=False), hung(1, waiting=True)]
    gone = [("lost", {"ranks": [0, 1]})]
    launch = Script(
        [BEGAN], both, gone, [("lost", {"ranks": [1]})], error=LaunchError("TrainingFailedError")
    )
    with pytest.raises(LaunchError, match="rank 1 ended without an error"):
        watch(run_dir, launch, capsys)
    assert [event["failure"] for event in run_dir.read_events()] == ["hung", "lost"]


def test_the_last_trouble_is_why_a_launch_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noticed, own = (
        crashed(0, f"RuntimeError: {GLOO}", consequence=True),
        crashed(1, "ValueError: bad thing", consequence=False),
    )
    launch = Script([BEGAN], [noticed], [own], error=LaunchError("TrainingFailedError"))
    with pytest.raises(LaunchError, match="rank 1 failed: ValueError: bad thing") as caught:
        watch(RunDir(tmp_path).create(), launch, capsys)
    assert "The same command resumes from the last checkpoint" in str(caught.value)


def test_an_error_of_the_users_ends_the_launch_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = Script(
        [
            (
                "fatal",
                {
                    "type": "CheckpointError",
                    "what": "no room",
                    "where": None,
                    "fix": None,
                    "rank": 0,
                },
            )
        ],
        [],
        [],
    )
    with pytest.raises(CheckpointError, match="no room"):
        watch(RunDir(tmp_path).create(), launch, capsys)


def test_a_worker_that_hangs_in_the_drivers_own_process_ends_the_driver(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = Script([("began", {"step": 0, "world_size": 1})], [hung(0, waiting=False)], [], [])
    launch.dies_with_its_worker = True
    with pytest.raises(LaunchError, match="rank 0 hangs computing step 8, at loop"):
        watch(RunDir(tmp_path).create(), launch, capsys)


def test_errors_have_a_place(tmp_path: Path) -> None:
    assert failure.errors_dir(tmp_path) == failure.errors_dir(str(tmp_path)) == tmp_path / "errors"
    assert os.listdir(tmp_path) == ["errors"]
