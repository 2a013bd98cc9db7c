"""The account of a group's time: the first rank writes it, the next group and the driver read
it."""

from __future__ import annotations

import time
from collections.abc import Callable

from scaling.errors import RunDirError, SupersededError
from scaling.runs.directory import RunDir
from scaling.runs.goodput import Seconds, account, goodput, reached_step
from scaling.train.control import Clock

_INTERVAL_S = 2.0
"""Interval of writes, which bounds what a kill leaves unaccounted. A choice."""


class Ledger:
    """The account of one group of workers, from its start or resume event on. workers: its name, as
    the fence gave it.

    notice: shows a text to the person. check: raises SupersededError if another group has the run.
    """

    def __init__(
        self,
        run_dir: RunDir,
        workers: str,
        clock: Clock,
        notice: Callable[[str], None],
        check: Callable[[], None],
    ) -> None:
        self._run_dir, self._workers, self._clock, self._notice, self._check = (
            run_dir,
            workers,
            clock,
            notice,
            check,
        )
        events = run_dir.read_events()
        self._before = account(events)
        self.reached_step = reached_step(events)
        self.restarts = sum(event["kind"] in ("start", "resume") for event in events)
        self._step = 0
        self._written_s = 0.0
        self._reported = False

    def step(self, step: int) -> None:
        """Take note of the step that training has reached."""
        self._step = step
        self.reached_step = max(self.reached_step, step)

    def beat(self, *, last: bool = False) -> None:
        """Write the account where it is due; called by another thread. A failed write is reported
        once, and does not end the run."""
        now_s = time.monotonic()
        if last or now_s - self._written_s >= _INTERVAL_S:
            self._written_s = now_s
            try:
                self._check()
                self._run_dir.write_progress(self._workers, self._step, self._clock.seconds())
            except SupersededError:
                return
            except RunDirError as error:
                if not self._reported:
                    self._notice(f"The account of the run's time is not kept: {error.what}")
                self._reported = True

    def seconds(self) -> Seconds:
        """Seconds of the whole run so far, by activity."""
        now = self._clock.seconds()
        return {activity: seconds + now[activity] for activity, seconds in self._before.items()}

    @property
    def goodput(self) -> float:
        return goodput(self.seconds()) or 0.0
