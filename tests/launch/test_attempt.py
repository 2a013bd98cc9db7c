"""One lifecycle for every run: each kind of trouble leaves the same events under a run, a study and
a search.

No worker is started: a scripted launch stands in for all three kinds of workers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scaling.channel import messages
from scaling.channel.base import LocalChannel
from scaling.channel.messages import (
    Began,
    CheckpointCommitted,
    CheckpointDamaged,
    ControllerLost,
    Crashed,
    DataStalled,
    Fatal,
    Hung,
    Lost,
    Message,
    NotRemoved,
    PreemptionNotice,
    Progress,
    RecordGap,
    Remark,
    RolledBack,
    StepSkipped,
    encode_error,
)
from scaling.config.run_config import RunConfig
from scaling.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    LaunchError,
    ScalingError,
    SupersededError,
)
from scaling.launch import run
from scaling.launch.attempt import Attempt
from scaling.launch.base import InProcessLaunch, Launch, WorkerKind
from scaling.launch.console import ProgressLine
from scaling.launch.ray.group import GroupLaunch
from scaling.launch.ray.trainer import RayLaunch
from scaling.launch.study import driver as study
from scaling.launch.study import runner
from scaling.planner.run_plan import make_plan
from scaling.runs import directory
from scaling.runs.directory import RunDir
from scaling.runs.startup import begin
from tests.support.configs import composed
from tests.support.reports import GLOO, crashed, hung

BEGAN = Began(0, 2)
UNFINISHED = {"finished": False, "step": 3, "reason": "a test stops it", "sample": None}


class Script:
    """A launch that gives its batches of messages one by one, and then ends."""

    def __init__(
        self,
        *batches: list[Message],
        error: Exception | None = None,
        kind: WorkerKind = "restarted",
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._batches, self._error, self._at_end = list(batches), error, at_end
        self.worker_kind: WorkerKind = kind
        self.left = self.stop_wanted = False

    def receive(self) -> list[Message]:
        if len(self._batches) == 1:
            self._at_end()
        return self._batches.pop(0) if self._batches else []

    def request_stop(self) -> None:
        self.stop_wanted = True

    def done(self, timeout_s: float) -> bool:
        return len(self._batches) <= 1

    def result(self) -> dict[str, Any]:
        if self._error:
            raise self._error
        return UNFINISHED

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *exc: object) -> None:
        self.left = True


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    two = ("cluster.devices_per_node=2", "cluster.device.name=CPU", "cluster.device.memory_gb=12")
    more = ("study.max_attempts=1", "logger=none", f"run.root={tmp_path}")
    return composed(*two, *more)


@pytest.fixture
def attempt(config: RunConfig) -> Attempt:
    return Attempt(config, make_plan(config), ProgressLine(Console(width=400)), begin())


def watched(attempt: Attempt, launch: Launch) -> dict[str, Any]:
    with attempt:
        attempt.open()
        attempt.launch(lambda spec: launch, ("", []))
        while not attempt.poll():
            pass
        return attempt.result()


def failures(attempt: Attempt) -> list[str]:
    events = attempt.run_dir.read_events()
    return [event["failure"] for event in events if event["kind"] == "worker_failed"]


# The verdict.


def test_every_restart_has_its_reason_on_the_screen_and_in_the_events(
    attempt: Attempt, capsys: pytest.CaptureFixture[str]
) -> None:
    noticed = crashed(0, f"RuntimeError: {GLOO}", consequence=True)
    watched(attempt, Script([BEGAN], [noticed], [Lost([1])], [Began(5, 2)]))
    out = capsys.readouterr().out
    assert "Rank 1 ended without an error" in out
    assert "Connection closed" not in out
    assert "Resuming after step 5." in out
    (event,) = attempt.run_dir.read_events()
    assert (event["kind"], event["failure"], event["ranks"]) == ("worker_failed", "lost", [1])


def test_the_first_verdict_of_a_group_stands(attempt: Attempt) -> None:
    """A hang was reported at the end as "killed, or out of memory": ranks that hang end themselves,
    and Ray sees them go."""
    both = [hung(0, waiting=False), hung(1, waiting=True)]
    launch = Script([BEGAN], [*both], [Lost([0, 1])], [], error=LaunchError("TrainingFailedError"))
    with pytest.raises(LaunchError, match="rank 0 hangs computing step 8"):
        watched(attempt, launch)
    assert failures(attempt) == ["hung"]


def test_a_group_that_ends_before_it_begins_has_a_verdict_of_its_own(attempt: Attempt) -> None:
    both = [hung(0, waiting=False), hung(1, waiting=True)]
    batches: list[list[Message]] = [[BEGAN], [*both], [Lost([0, 1])], [Lost([1])]]
    with pytest.raises(LaunchError, match="rank 1 ended without an error"):
        watched(attempt, Script(*batches, error=LaunchError("TrainingFailedError")))
    assert failures(attempt) == ["hung", "lost"]


def test_the_last_trouble_is_why_a_launch_failed(attempt: Attempt) -> None:
    noticed = crashed(0, f"RuntimeError: {GLOO}", consequence=True)
    own = crashed(1, "ValueError: bad thing", consequence=False)
    launch = Script([BEGAN], [noticed], [own], error=LaunchError("TrainingFailedError"))
    with pytest.raises(LaunchError, match="rank 1 failed: ValueError: bad thing") as caught:
        watched(attempt, launch)
    assert "The same command resumes from the last checkpoint" in str(caught.value)


# When an attempt ends.


def fatal(error: ScalingError) -> Fatal:
    return Fatal(encode_error(error), 0)


@pytest.mark.parametrize(("kind", "left"), [("restarted", 3), ("kept", 0), ("thread", 0)])
def test_after_an_error_of_the_users_only_workers_that_end_are_waited_for(
    attempt: Attempt, kind: WorkerKind, left: int
) -> None:
    """Ray Train would start the workers again; others end, and may still commit a checkpoint."""
    launch = Script([fatal(CheckpointError("no room"))], [], [], [], kind=kind)
    with pytest.raises(CheckpointError, match="no room"):
        watched(attempt, launch)
    assert launch.left
    assert len(launch._batches) == left


def test_a_thread_of_the_driver_that_hangs_ends_the_driver(attempt: Attempt) -> None:
    launch = Script([Began(0, 1)], [hung(0, waiting=False)], [], [], kind="thread")
    with pytest.raises(LaunchError, match="rank 0 hangs computing step 8, at loop"):
        watched(attempt, launch)


@pytest.mark.parametrize(("kind", "over"), [("restarted", True), ("thread", True), ("kept", False)])
def test_a_stop_before_training_leaves_workers_of_this_run_alone(
    attempt: Attempt, kind: WorkerKind, over: bool
) -> None:
    launch = Script([], [], [], kind=kind)
    with attempt:
        attempt.open()
        attempt.launch(lambda spec: launch, ("", []))
        assert not attempt.poll()
        attempt.stop()
        assert launch.stop_wanted
        assert attempt.poll() is over
        if over:
            attempt.stopped(attempt.result(), "SIGTERM")
            (event,) = attempt.run_dir.read_events()
            assert (event["kind"], event["reason"]) == ("preempted", "SIGTERM")


def test_every_launch_has_every_member_that_an_attempt_uses() -> None:
    members = {name for name in {*vars(Launch), *Launch.__annotations__} if name[0] != "_"}
    assert members >= {"worker_kind", "receive", "request_stop", "done", "result"}
    for kind in (InProcessLaunch, RayLaunch, GroupLaunch):
        assert members | {"__enter__", "__exit__"} <= set(dir(kind)), kind


# The same events under a run, a study and a search.


def as_run(
    config: RunConfig, launch: Script, patch: pytest.MonkeyPatch, capsys: Any
) -> tuple[Path, str]:
    for name in ("check_inputs", "check_available"):
        patch.setattr(run, name, lambda _: None)
    patch.setattr(run, "prepare_corpus", lambda *_: ("", []))
    patch.setattr(run, "_launch", lambda *_: launch)
    with contextlib.suppress(ScalingError):
        run.drive(config)
    return RunDir.for_config(config).path, capsys.readouterr().out


def as_study(
    config: RunConfig, launch: Script, patch: pytest.MonkeyPatch, capsys: Any
) -> tuple[Path, str]:
    launch.worker_kind = "kept"

    class Pool(contextlib.nullcontext[Any]):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(self)

        def poll(self) -> None: ...

        def room(self, *_: Any, **__: Any) -> list[Any]:
            return []

        def launch(self, *_: Any) -> Script:
            return launch

    for name in ("check_inputs", "check_available"):
        patch.setattr(study, name, lambda _: None)
    patch.setattr(runner, "WorkerPool", Pool)
    patch.setattr(runner, "_POLL_S", 0.0)
    patch.setattr(
        runner.Runner,
        "_prepare",
        lambda self, trial: self._corpora.update({self._corpus_key(trial): ("", [])}),
    )
    study.drive_study([(config, ())])
    (path,) = config_dirs(config)
    return path, capsys.readouterr().out


def as_search(
    config: RunConfig, launch: Script, patch: pytest.MonkeyPatch, capsys: Any
) -> tuple[Path, str]:
    from scaling.launch.search import trainable

    launch.worker_kind = "kept"
    sent = LocalChannel()
    patch.setattr(LocalChannel, "stop_signal", lambda _: None, raising=False)
    patch.setattr(trainable, "KvChannel", lambda *_: sent)
    patch.setattr(trainable, "GroupLaunch", lambda *_: launch)
    patch.setattr(trainable, "meeting_address", lambda *_: "")
    patch.setattr(trainable.RunTrainable, "_start_workers", lambda self: None)
    patch.setattr(trainable.RunTrainable, "trial_id", "trial")
    spec = trainable.SearchSpec(
        config.model_dump(), config.run.root, "", [], [10], False, 2, "prefix", None
    )
    trial = trainable.RunTrainable.__new__(trainable.RunTrainable)
    trial._workers, trial._locations = [None], [None]
    trial.setup({}, spec=spec)
    with contextlib.suppress(ScalingError):
        trial.step()
    (path,) = config_dirs(config)
    said = [message.line for message in sent.receive() if isinstance(message, Remark)]
    return path, "\n".join(said)


def config_dirs(config: RunConfig) -> list[Path]:
    return [path.parent for path in Path(config.run.root).rglob("driver.lock") if is_run(path)]


def is_run(lock: Path) -> bool:
    return (lock.parent / "checkpoints").is_dir()


CALLERS = {"run": as_run, "study": as_study, "search": as_search}
NOTICED = crashed(0, f"RuntimeError: {GLOO}", consequence=True)
CRASH: list[Message] = [NOTICED, crashed(1, "ValueError: bad", consequence=False), Lost([])]
HANG: list[Message] = [hung(0, waiting=False), hung(1)]
HANG_TEXT = "rank 0 hangs computing step 8, at loop.py:12 (no step for 61 s after step 7)"
LOST_TEXT = "rank 1 ended without an error: killed, out of memory, or its machine is gone"
ENDED = LaunchError("the group ended")

DEATHS: dict[str, tuple[list[list[Message]], list[tuple[str, ...]]]] = {
    "error": ([[fatal(DataError("a shard is gone"))]], [("failed", "a shard is gone.")]),
    "diverged": ([[fatal(DivergedError("nan"))]], [("failed", "nan.")]),
    "crash": (
        [CRASH],
        [
            ("worker_failed", "crashed", "rank 1 failed: ValueError: bad"),
            ("failed", "rank 1 failed: ValueError: bad."),
        ],
    ),
    "hang": (
        [HANG, [Lost([0, 1])]],
        [("worker_failed", "hung", HANG_TEXT), ("failed", f"{HANG_TEXT}.")],
    ),
    "killed": (
        [[NOTICED], [Lost([1])]],
        [("worker_failed", "lost", LOST_TEXT), ("failed", f"{LOST_TEXT}.")],
    ),
}


def events(path: Path) -> list[tuple[str, ...]]:
    """kind, failure and the first line of the reason of every event."""
    return [
        tuple(
            str(event[key]).splitlines()[0] for key in ("kind", "failure", "reason") if key in event
        )
        for event in RunDir(path).read_events()
    ]


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("death", DEATHS)
def test_workers_that_fail_leave_the_same_events(
    death: str,
    caller: str,
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    batches, expected = DEATHS[death]
    launch = Script([BEGAN], *batches, [], error=ENDED)
    path, shown = CALLERS[caller](config, launch, monkeypatch, capsys)
    assert events(path) == expected
    assert launch.left
    for kind, *_, reason in expected:
        if kind == "worker_failed":
            assert f"{reason[0].upper()}{reason[1:]}." in shown


MESSAGES: list[Message] = [
    StepSkipped(4, [32], "its gradients are not finite"),
    DataStalled(1, 31.0, ["shard-3.tar"]),
    CheckpointDamaged("step-2", "its manifest is torn"),
    PreemptionNotice([1], 90.0, False),
    RolledBack(2, 4, [32, 40], "its loss is a spike"),
    NotRemoved("step-1", "Permission denied"),
    RecordGap(1, 2),
    Remark("W&B does not answer"),
    ControllerLost(),
]


@pytest.mark.parametrize("caller", CALLERS)
def test_what_workers_report_is_shown_everywhere(
    caller: str,
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Workers write these events themselves; only the driver writes what is asserted here."""
    path, shown = CALLERS[caller](config, Script([BEGAN], MESSAGES, []), monkeypatch, capsys)
    lost = "Ray Train's controller ended without an error"
    stop = ("preempted", "a test stops it")
    assert events(path) == [("worker_failed", "controller", lost), stop]
    for message in MESSAGES:
        assert (message.text() or lost) in shown


@pytest.mark.parametrize("caller", CALLERS)
def test_a_run_that_another_driver_has_taken_over_is_left_as_it_is(
    caller: str,
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def superseded() -> None:
        raise SupersededError("another driver has the run")

    def take() -> None:
        for path in directory._CHECKS:
            directory._CHECKS[path] = superseded

    launch = Script([BEGAN], [], CRASH, error=ENDED, at_end=take)
    path, _ = CALLERS[caller](config, launch, monkeypatch, capsys)
    assert events(path) == []
    assert launch.left


# Messages as data.


def test_every_message_is_the_same_after_its_json() -> None:
    examples = [
        *MESSAGES,
        *CRASH,
        *HANG,
        BEGAN,
        Progress({"step": 1, "loss": 2.5}),
        fatal(DataError("gone", "data.path")),
        CheckpointCommitted(3, 100, 0.1, 0.2),
        Crashed(0, "e", "t", True),
        Hung(0, 1, 2, "reading", 1.0, "w", False, "s"),
    ]
    assert {message.kind for message in examples} == set(messages.KINDS)
    for message in examples:
        assert messages.decode(*messages.encode(message)) == message


def test_only_errors_are_built_from_a_reported_name() -> None:
    for name in ("EXIT_STOPPED", "redact", "NoSuchError"):
        data = {"type": name, "what": "what", "where": None, "fix": None}
        assert type(messages.decode_error(data)) is ScalingError
