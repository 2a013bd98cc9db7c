"""The first rank's account of the group's time, kept where the next group and the driver find
it."""

from __future__ import annotations

import time
from collections.abc import Callable

from scaling.errors import RunDirError, SupersededError
from scaling.runs.directory import RunDir
from scaling.runs.goodput import Seconds, account, goodput, reached_step
from scaling.train.control import Clock

_INTERVAL_S = 2.0
"""Between two writes: what a kill leaves unaccounted. A choice."""


class Ledger:
    """Of one group of workers, whose name the fence gave, from its start or resume event on.

    notice: tells the person. check: raises SupersededError where another group has the run.
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
        self._told = False

    def step(self, step: int) -> None:
        """Where training stands."""
        self._step = step
        self.reached_step = max(self.reached_step, step)

    def beat(self, *, last: bool = False) -> None:
        """Write the account where it is due; called by another thread. A disk that refuses is told
        once, and no end."""
        now_s = time.monotonic()
        if last or now_s - self._written_s >= _INTERVAL_S:
            self._written_s = now_s
            try:
                self._check()
                self._run_dir.write_progress(self._workers, self._step, self._clock.seconds())
            except SupersededError:
                return
            except RunDirError as error:
                if not self._told:
                    self._notice(f"The account of the run's time is not kept: {error.what}")
                self._told = True

    def seconds(self) -> Seconds:
        """Of the whole run so far."""
        now = self._clock.seconds()
        return {activity: seconds + now[activity] for activity, seconds in self._before.items()}

    @property
    def goodput(self) -> float:
        return goodput(self.seconds()) or 0.0
