"""What a rank is doing, and since when: for the account of its time, and for whoever waits for a
sign of life."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from scaling.runs.goodput import MEANING, STARTING, Seconds

STARTED, AGREEING, READING, COMPUTING, RECORDING, EVALUATED, SAVING = PLACES = (
    "starting",
    "waiting for the other ranks to agree on",
    "reading the batch of",
    "computing",
    "recording",
    "evaluating after",
    "saving a checkpoint after",
)
"""Where in a step a rank can be, in the order of a step: who is behind the others keeps them
waiting."""


class Clock:
    """Always in exactly one activity (`scaling.runs.goodput`); begins with starting, and ends with
    the process.

    step, place: where the rank is. longest_step_s: of the steps so far. Written by one thread, read
    by others.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self.step, self.place, self.longest_step_s = 0, STARTED, 0.0
        self._moved_s = now()
        self.begin()

    def at(self, place: str, step: int) -> None:
        """The rank has got to `place` of the step after `step`."""
        self.step, self.place, self._moved_s = step, place, self._now()

    def stepped(self, step_time_s: float) -> None:
        self.longest_step_s = max(self.longest_step_s, step_time_s)

    def still_s(self) -> float:
        """Seconds since the rank last got anywhere."""
        return self._now() - self._moved_s

    def begin(self, activity: str = STARTING) -> None:
        """Count from now on."""
        with self._lock:
            self._seconds: Seconds = dict.fromkeys(MEANING, 0.0)
            self.activity, self._since_s = activity, self._now()

    def enter(self, activity: str) -> None:
        """From now on, `activity`."""
        with self._lock:
            now_s = self._now()
            self._seconds[self.activity] += now_s - self._since_s
            self.activity, self._since_s = activity, now_s

    @contextlib.contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """`activity` while the context lasts, and then what was before."""
        before = self.activity
        self.enter(activity)
        try:
            yield
        finally:
            self.enter(before)

    def seconds(self) -> Seconds:
        """So far, the present activity included; their sum is the time since the beginning."""
        with self._lock:
            running = self._seconds[self.activity] + self._now() - self._since_s
            return self._seconds | {self.activity: running}
