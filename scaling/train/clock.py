"""What a rank is doing, and since when: for the account of its time, and for whoever waits for a sign of life."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from scaling.goodput import MEANING, STARTING, Seconds


class Clock:
    """Always in exactly one activity (`scaling.goodput`); begins with starting, and ends with the process.

    `since_s`: when it last changed, on the clock `now`. Read by other threads.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self.begin()

    def begin(self, activity: str = STARTING) -> None:
        """Count from now on."""
        with self._lock:
            self._seconds: Seconds = dict.fromkeys(MEANING, 0.0)
            self.activity, self.since_s = activity, self._now()

    def enter(self, activity: str) -> None:
        """From now on, `activity`; the same one again is a sign of life."""
        with self._lock:
            now_s = self._now()
            self._seconds[self.activity] += now_s - self.since_s
            self.activity, self.since_s = activity, now_s

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
            running = self._seconds[self.activity] + self._now() - self.since_s
            return self._seconds | {self.activity: running}
