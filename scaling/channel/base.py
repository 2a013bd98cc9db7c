"""The channel between a worker and its driver: messages go up, a wish to stop comes down."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from scaling.channel.messages import Message, Progress


@dataclass(frozen=True)
class Notice:
    """The machines of some ranks will be taken back. deadline_s: when, in seconds since the epoch;
    None where unknown."""

    ranks: tuple[int, ...]
    deadline_s: float | None


class Channel(Protocol):
    """One rank's end.

    watches_machines: whether somebody gives notice of machines that will be taken back.
    """

    watches_machines: bool

    def send(self, message: Message) -> None:
        """Report to the driver. It sees only the latest Progress, and every other message."""
        ...

    def stop_requested(self) -> bool:
        """True once the driver wants the run to be checkpointed and ended."""
        ...

    def notice(self) -> Notice | None:
        """The newest notice; a collective over all ranks, only where machines are watched."""
        ...

    def abandon(self) -> None:
        """End this rank's process at once, where it has one of its own; else the driver ends it."""
        ...


class LocalChannel:
    """Both ends in one process: the worker runs in a thread of the driver."""

    watches_machines = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: list[Message] = []
        self._progress: Progress | None = None
        self._stop = threading.Event()

    def send(self, message: Message) -> None:
        with self._lock:
            if isinstance(message, Progress):
                self._progress = message
            else:
                self._messages.append(message)

    def stop_requested(self) -> bool:
        return self._stop.is_set()

    def notice(self) -> Notice | None:
        return None

    def abandon(self) -> None:
        """The process is the driver's."""

    def request_stop(self) -> None:
        self._stop.set()

    def receive(self) -> list[Message]:
        """Everything new since the last call, in order, progress last."""
        with self._lock:
            found, self._messages = self._messages, []
            if self._progress is not None:
                found.append(self._progress)
                self._progress = None
        return found


class Heartbeat:
    """A thread of the first rank that sends the latest progress and watches for the wish to stop,
    twice a second.

    The training loop itself never waits for the driver.
    """

    def __init__(self, channel: Channel, interval_s: float = 0.5) -> None:
        self._channel = channel
        self._interval_s = interval_s
        self._progress: dict[str, Any] | None = None
        self._others: list[Callable[[], None]] = []
        self._stop = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def progress(self, **fields: Any) -> None:
        self._progress = fields

    def also(self, act: Callable[[], None]) -> None:
        """Do `act` with every beat from now on; it must be quick, and raise nothing."""
        self._others.append(act)

    @property
    def stop_requested(self) -> bool:
        return self._stop

    def _beat(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            self._channel.send(Progress(progress))
        self._stop = self._stop or self._channel.stop_requested()
        for act in self._others:
            act()

    def _run(self) -> None:
        while not self._done.wait(self._interval_s):
            self._beat()

    def close(self) -> None:
        """Send what is left and end the thread."""
        self._done.set()
        self._thread.join()
        self._beat()
