"""The driver's eye on running workers: shows what they say, passes on the wish to stop, and says
who failed first."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from scaling.channel.base import decode_error
from scaling.errors import LaunchError
from scaling.launch.base import Launch
from scaling.launch.blame import Trouble, Troubles
from scaling.launch.console import ProgressLine
from scaling.launch.signals import StopSignals
from scaling.runs.directory import RunDir

_POLL_S = 0.2
_HEARING_S = 5.0
"""From the first report of a trouble until it is judged, for the other ranks' reports: more than a
rank that hangs waits."""


class Watch:
    """One launch, from its start to its end."""

    def __init__(
        self,
        launch: Launch,
        signals: StopSignals,
        progress: ProgressLine,
        run_dir: RunDir,
        world_size: int,
    ) -> None:
        self._launch, self._signals, self._progress, self._run_dir = (
            launch,
            signals,
            progress,
            run_dir,
        )
        self._world_size = world_size
        self._began = self._told_to_stop = False
        self._troubles = Troubles(world_size)
        self._heard_s: float | None = None
        self._last_trouble: Trouble | None = None
        self._group_is_judged = self._group_has_ended = False

    def result(self) -> dict[str, Any]:
        """What the first rank returned at the end. Raises the first error that a rank told, or
        LaunchError."""
        while True:
            over = self._launch.done(_POLL_S)
            self._signals.renew()
            for kind, message in self._launch.receive():
                self._take(kind, message)
            self._hear(over)
            if self._signals.received and not self._began:
                return {"finished": False, "step": None}
            if self._signals.received and not self._told_to_stop:
                self._ask_to_stop()
            if over:
                return self._end()

    def _take(self, kind: str, message: dict[str, Any]) -> None:
        if kind == "progress":
            self._progress.show(message)
        elif kind == "fatal":
            raise decode_error(message)
        elif kind == "controller_lost":
            reason = "Ray Train's controller ended without a word"
            self._run_dir.event("worker_failed", failure="controller", ranks=[], reason=reason)
            self._progress.say(f"{reason}; its workers are started again under another.")
        elif kind in ("crashed", "hung", "lost"):
            self._accuse(kind, message)
        else:
            if kind == "began":
                self._judge()
                self._began, self._world_size = True, message["world_size"]
                self._troubles, self._group_is_judged = Troubles(self._world_size), False
            told(kind, message, self._progress.say)

    def _accuse(self, kind: str, report: dict[str, Any]) -> None:
        """Collect a report. What comes after a group's verdict only follows from it: ranks that
        hang end themselves.

        "lost" is the last that is told of a group, by Ray, with no ranks where all have spoken for
        themselves.
        """
        if not self._group_is_judged:
            self._troubles.add(kind, report)
            self._heard_s = self._heard_s or time.monotonic()
        if kind == "lost":
            self._group_has_ended, self._group_is_judged = not self._group_is_judged, False

    def _hear(self, over: bool) -> None:
        """Judge a trouble once everyone has been heard, or nobody will say more."""
        if self._heard_s is None:
            return
        if over or self._troubles.complete or time.monotonic() - self._heard_s > _HEARING_S:
            self._judge()

    def _judge(self) -> None:
        self._heard_s = None
        ended, self._group_has_ended = self._group_has_ended, False
        trouble, self._troubles = self._troubles.verdict(), Troubles(self._world_size)
        if trouble is None:
            return
        self._last_trouble, self._group_is_judged = trouble, not ended
        self._run_dir.event(
            "worker_failed", failure=trouble.kind, ranks=trouble.ranks, reason=trouble.text
        )
        self._progress.say(trouble.text[0].upper() + trouble.text[1:] + ".")
        if trouble.kind == "hung" and self._launch.dies_with_its_worker:
            raise self._error(trouble)

    def _ask_to_stop(self) -> None:
        self._told_to_stop = True
        self._launch.request_stop()
        self._progress.say(
            f"{self._signals.by}: writing a checkpoint and stopping; Ctrl-C{self._signals.again} leaves at once."
        )

    def _end(self) -> dict[str, Any]:
        try:
            return self._launch.result()
        except LaunchError as error:
            if self._last_trouble is None:
                raise
            raise self._error(self._last_trouble) from error

    def _error(self, trouble: Trouble) -> LaunchError:
        return LaunchError(
            trouble.text, None, f"{trouble.fix} The same command resumes from the last checkpoint."
        )


def told(kind: str, message: dict[str, Any], say: Callable[[str], None]) -> None:
    """Pass a worker's message on to the person who waits."""
    if kind == "began":
        step = message["step"]
        say(f"Resuming after step {step}." if step else "Training begins.")
    elif kind == "notice":
        say(message["text"])
    elif kind == "rolled_back":
        first, end = message["sequences"]
        say(
            f"Step {message['from_step']} is bad, {message['reason']}: going back to step {message['step']}, and on without "
            f"sequences {first} to {end - 1}."
        )
    elif kind == "preemption_notice":
        ranks = ", ".join(str(rank) for rank in message["ranks"])
        then = (
            "too few would stay, so the run stops"
            if message["ends_run"]
            else "the run goes on with the others"
        )
        say(
            f"The machines of ranks {ranks} are taken back in {message['left_s']:.0f} s: a checkpoint is written, and {then}."
        )
    elif kind == "step_skipped":
        say(f"The update of step {message['step']} is left out: {message['reason']}.")
    elif kind == "not_removed":
        say(f"{message['path']} cannot be removed ({message['reason']}); the run goes on.")
    elif kind == "record_gap":
        first, last = message["first_step"], message["last_step"]
        say(
            f"metrics.jsonl lacks the records of steps {first} to {last}; the run goes on, and its curve has that gap."
        )
    elif kind == "data_stalled":
        shards = ", ".join(message["shards"]) or "its batch"
        say(f"Rank {message['rank']} has waited {message['waited_s']:.0f} s for {shards}.")
    elif kind == "checkpoint_damaged":
        say(f"Passing over a damaged checkpoint, {message['path']}: {message['reason']}.")
