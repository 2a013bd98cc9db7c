"""SIGTERM, SIGUSR1, SIGHUP and Ctrl-C: the first asks for a checkpoint and an end, a second Ctrl-C
leaves at once."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Literal

from scaling.errors import EXIT_STOPPED
from scaling.launch import interrupt as door


def event_of(received: str | None) -> Literal["stopped", "preempted"]:
    """What a signal makes of a run: a person stops it; the others, or none, are of those who take
    machines back."""
    return "stopped" if received == signal.SIGINT.name else "preempted"


class StopSignals:
    """While entered, signals set `received` to their name instead of ending the process. For the
    main thread.

    received_s: when the first came, in seconds since the epoch.
    """

    def __init__(self) -> None:
        self._numbers = [number for number in door.SIGNALS if not door.is_ignored(number)]
        # one that came before, and was swallowed by what it interrupted
        self.received = door.received()
        self.received_s = None if self.received is None else time.time()
        self._before: dict[signal.Signals, Any] = {}

    @property
    def by(self) -> str | None:
        """Who has asked, as shown to a person."""
        return "Ctrl-C" if self.received == signal.SIGINT.name else self.received

    @property
    def again(self) -> str:
        return " again" if self.by == "Ctrl-C" else ""

    @property
    def event(self) -> Literal["stopped", "preempted"]:
        return event_of(self.received)

    def __enter__(self) -> StopSignals:
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def renew(self) -> None:
        """Take the signals back from whoever took them since.

        Ray's C++ core does when it connects: its SIGTERM handler prints a stack and sets an alarm
        that aborts the process three seconds later, be the checkpoint written or not.
        """
        for number in self._numbers:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            os._exit(EXIT_STOPPED)
        door.hung_up(number)
        signal.alarm(0)  # the signal may have come through Ray's handler: see `renew`
        self.received, self.received_s = signal.Signals(number).name, self.received_s or time.time()
