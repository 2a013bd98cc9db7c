"""One attempt at a run: lock -> open -> launch -> watch -> settle -> finish.

The command, a study and a search drive their runs through this class; they differ in what they
show, in when they ask for a stop, and in what they do next.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from scaling.channel.messages import (
    Began,
    ControllerLost,
    Crashed,
    Fatal,
    Hung,
    Lost,
    Message,
    Progress,
    decode_error,
)
from scaling.checkpoint.branch import take_over
from scaling.config.run_config import RunConfig
from scaling.data.corpus import Corpus
from scaling.errors import LaunchError, RunDirError, ScalingError, SupersededError
from scaling.launch.base import Launch
from scaling.launch.blame import Trouble, Troubles
from scaling.launch.interrupt import Stopped
from scaling.launch.signals import event_of
from scaling.launch.summary import draw_curve, finish
from scaling.planner.run_plan import RunPlan
from scaling.runs.directory import RunDir
from scaling.runs.startup import Marks
from scaling.worker.spec import WorkerSpec

_REPORTING_S = 5.0
"""Wait between the first report of a trouble and its verdict, so that other ranks can report: more
than a rank that hangs waits."""
_ENDING_S = 30.0
"""Longest wait for workers to end after an error of theirs, which may still commit a checkpoint:
assumption."""


class Display(Protocol):
    """Where an attempt shows what happens."""

    def show(self, progress: dict[str, Any]) -> None: ...

    def say(self, text: str) -> None: ...

    def began(self, message: Began) -> None: ...


class Attempt:
    """One run under its one driver. Entered, it holds the run directory's lock; left, it has noted
    how the attempt ended. marks: of the way to the first step, "command" among them.

    began_step: where the latest group of workers began to train; None before the first.
    """

    def __init__(self, config: RunConfig, plan: RunPlan, display: Display, marks: Marks) -> None:
        self.config, self.plan, self.run_dir = config, plan, RunDir.for_config(config)
        self.progress: dict[str, Any] = {}
        self.began_step: int | None = None
        self.stopping = False
        self._display, self._marks = display, marks
        self._held, self._launched = ExitStack(), ExitStack()
        self._opened = self._over = self._left_early = False
        self._launch: Launch
        self._corpus: tuple[Path | str, list[str]]
        self._fatal: ScalingError | None = None
        self._fatal_s = 0.0
        self._troubles = Troubles(plan.layout.world_size)
        self._world_size = plan.layout.world_size
        self._reported_s: float | None = None
        self._last_trouble: Trouble | None = None
        self._group_is_judged = self._group_has_ended = False

    # Lock and open.

    def __enter__(self) -> Self:
        self.run_dir.create()
        with ExitStack() as held:
            held.enter_context(self.run_dir.lock())
            for text in self.run_dir.mend():
                self._display.say(text)
            self._held = held.pop_all()
        return self

    def open(self, *, trunk: RunDir | None = None, at_step: int = 0) -> None:
        """Write what the run is, and take over the trunk's checkpoint. Raises ScalingError.

        From here on an error is an event of the run.
        """
        run_dir = self.run_dir
        if self.config.run.resume == "never" and run_dir.state() != "new":
            raise RunDirError(
                f"{run_dir.path} holds a run that has begun",
                "run.resume=never",
                "Continue it with run.resume=auto, or begin another with run.name=NAME.",
            )
        run_dir.write_config(self.config)
        run_dir.write_plan(self.plan.to_dict())
        run_dir.write_provenance([self.config.cluster.device.name] * self.plan.layout.world_size)
        self._opened = True
        if trunk is not None:
            take_over(trunk, run_dir, self.config, at_step)

    # Launch and watch.

    def launch(
        self,
        start: Callable[[WorkerSpec], Launch],
        corpus: tuple[Path | str, list[str]],
        *,
        sizes: Sequence[int] = (),
        until_step: int | None = None,
    ) -> None:
        """Start the workers. start: makes the launch out of the workers' spec. corpus: directory,
        and shards to leave out. sizes, until_step: as in `WorkerSpec`.
        """
        self._corpus = corpus
        spec = WorkerSpec(
            config=self.config,
            plan=self.plan,
            run_dir=str(self.run_dir.path),
            corpus_dir=str(corpus[0]),
            skipped_shards=tuple(corpus[1]),
            until_step=until_step,
            startup=self._marks,
            sizes=tuple(sizes),
        )
        self._launch = self._launched.enter_context(start(spec))

    def poll(self, timeout_s: float = 0.0) -> bool:
        """Wait up to `timeout_s`, pass on what is new, and return whether the workers have
        ended."""
        if self._over:
            return True
        over = self._launch.done(timeout_s)
        try:
            for message in self._launch.receive():
                self._take(message)
            self._judge_when_due(over)
        except ScalingError as error:  # an event could not be written: this run ends, no other
            self._fatal, over = self._fatal or error, True
        self._left_early = self._left_early and not over
        if over or self._left_early or self._given_up():
            self._over = True
            # Free the workers first: the next trial need not wait for this run's summary.
            self._launched.close()
        return self._over

    def stop(self) -> None:
        """Ask the workers to write a checkpoint and end.

        Before they have begun to train there is nothing to write: workers of this run alone are
        left at once, while kept ones soon read the wish.
        """
        self.stopping = True
        self._launch.request_stop()
        self._left_early = self.began_step is None and self._launch.worker_kind != "kept"

    def result(self) -> dict[str, Any]:
        """What the first rank returned. Raises the first error that a rank reported, or
        LaunchError with the last verdict."""
        assert self._over
        if self._fatal is not None:
            raise self._fatal
        if self._left_early:
            return {"finished": False, "step": None, "reason": None}
        try:
            if self._hangs_the_driver:
                raise LaunchError("the worker hangs")
            return self._launch.result()
        except LaunchError as error:
            if self._last_trouble is None:
                raise
            raise LaunchError(
                self._last_trouble.text,
                None,
                f"{self._last_trouble.fix} The same command resumes from the last checkpoint.",
            ) from error

    def _take(self, message: Message) -> None:
        if isinstance(message, Progress):
            self.progress = message.fields
            self._display.show(message.fields)
        elif isinstance(message, Fatal):
            if self._fatal is None:
                self._fatal, self._fatal_s = decode_error(message.error), time.monotonic()
        elif isinstance(message, ControllerLost):
            reason = "Ray Train's controller ended without an error"
            self.run_dir.event("worker_failed", failure="controller", ranks=[], reason=reason)
            self._display.say(f"{reason}; its workers are started again under another.")
        elif isinstance(message, Crashed | Hung | Lost):
            self._accuse(message)
        elif isinstance(message, Began):
            self._judge()
            self.began_step, self._world_size = message.step, message.world_size
            self._troubles, self._group_is_judged = Troubles(self._world_size), False
            self._display.began(message)
        elif (text := message.text()) is not None:
            self._display.say(text)

    def _given_up(self) -> bool:
        """Whether waiting for the workers' own end is of no use."""
        if self._fatal is not None:
            # Ray Train would start them again, to meet the same error.
            waited_s = time.monotonic() - self._fatal_s
            return self._launch.worker_kind == "restarted" or waited_s > _ENDING_S
        return self._hangs_the_driver

    @property
    def _hangs_the_driver(self) -> bool:
        """Whether a thread of the driver hangs: nothing can end it but the driver's own end."""
        trouble = self._last_trouble
        return (
            trouble is not None and trouble.kind == "hung" and self._launch.worker_kind == "thread"
        )

    # The verdict.

    def _accuse(self, report: Crashed | Hung | Lost) -> None:
        """Collect a report. What comes after a group's verdict only follows from it: ranks that
        hang end themselves.

        Lost is the last message about a group. It names no ranks where all reported an error.
        """
        if not self._group_is_judged:
            self._troubles.add(report)
            self._reported_s = self._reported_s or time.monotonic()
        if isinstance(report, Lost):
            self._group_has_ended, self._group_is_judged = not self._group_is_judged, False

    def _judge_when_due(self, over: bool) -> None:
        """Give the verdict once all ranks have reported, or none will."""
        if self._reported_s is None or self._fatal is not None:
            return
        if over or self._troubles.complete or time.monotonic() - self._reported_s > _REPORTING_S:
            self._judge()

    def _judge(self) -> None:
        self._reported_s = None
        ended, self._group_has_ended = self._group_has_ended, False
        trouble, self._troubles = self._troubles.verdict(), Troubles(self._world_size)
        if trouble is None:
            return
        self._last_trouble, self._group_is_judged = trouble, not ended
        self.run_dir.event(
            "worker_failed", failure=trouble.kind, ranks=trouble.ranks, reason=trouble.text
        )
        self._display.say(trouble.text[0].upper() + trouble.text[1:] + ".")

    # Settle and finish.

    def finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Write the end of a finished run; returns its summary."""
        self.run_dir.settle_account()
        corpus = Corpus.open(*self._corpus)
        return finish(self.config, self.plan, self.run_dir, corpus, result)

    def stopped(
        self, result: dict[str, Any], signal: str | None, received_s: float | None = None
    ) -> None:
        """Write the end of a run that was stopped. signal: its name; None where the workers
        themselves decided. received_s: when it came, in seconds since the epoch.
        """
        self.run_dir.settle_account()
        took_s = None if received_s is None else round(time.time() - received_s, 2)
        self.run_dir.event(
            event_of(signal),
            step=result["step"],
            reason=signal or result["reason"],
            command_s=self._marks["command"],
            took_s=took_s,
        )
        draw_curve(self.config, self.run_dir)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._held:
            self._launched.close()
            if self._opened and isinstance(error, Stopped | ScalingError):
                # Another driver has taken the run over: its records stand.
                with contextlib.suppress(SupersededError):
                    self._failed(error)

    def _failed(self, error: Stopped | ScalingError) -> None:
        command_s = self._marks["command"]
        if isinstance(error, Stopped):
            self.run_dir.settle_account()
            self.run_dir.event(event_of(error.signal), reason=error.signal, command_s=command_s)
        else:
            self.run_dir.failed(error, command_s=command_s)
            draw_curve(self.config, self.run_dir)
