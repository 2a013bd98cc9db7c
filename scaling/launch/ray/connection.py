"""A connection to Ray that is watched from its start to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from scaling.launch.ray.cluster import RayCluster, lost_error

T = TypeVar("T")
_LOOK_S = 0.2
"""Interval of looks at Ray's processes. A choice."""
_SHUTDOWN_S = 30.0
"""Longest wait for Ray to end: assumption."""


class Connection:
    """Entered, it is connected to `cluster`.

    A thread connects and stays until the end, because Ray's servers end with the thread that
    started them, and because Ray waits a minute for a store that has died.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self._ready, self._release = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._hold, name="ray", daemon=True)

    def __enter__(self) -> Self:
        self._cluster.set_environment()
        self._thread.start()
        try:
            while not self._ready.wait(_LOOK_S):
                self.check()
        except BaseException:
            if not self.is_lost:
                self._cluster.abandon()
            raise
        if self._error is not None:
            raise self._error
        return self

    def _hold(self) -> None:
        try:
            self._cluster.connect()
        except BaseException as error:
            self._error = error
            self._ready.set()
            return
        self._ready.set()
        self._release.wait()
        self._cluster.shutdown()

    @property
    def is_lost(self) -> bool:
        """Whether `check` has found that one of Ray's processes has ended: Ray is not to be asked
        any more."""
        return self._lost is not None

    def check(self) -> None:
        """Raise LaunchError where one of Ray's own processes has ended on this machine.

        What is left of it is ended first, so that no worker writes to a run after its end.
        """
        if self._lost is None and (lost := self._cluster.lost_process()) is not None:
            self._lost = lost
            self._cluster.abandon()
        if self._lost is not None:
            raise lost_error(self._lost)

    def watch(self, act: Callable[[], T], between: Callable[[], None]) -> T:
        """What `act` returns in a thread of its own; meanwhile `between` is called in this one.

        Raises what `act` raises, and LaunchError as `check` does: `act` may then wait for ever.
        """
        found: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                found.append(act())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run, name="watched", daemon=True)
        thread.start()
        while thread.is_alive():
            between()
            self.check()
            thread.join(_LOOK_S)
        if errors:
            raise errors[0]
        return found[0]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_lost:  # the thread may wait for an answer that will not come
            return
        self._release.set()
        self._thread.join(_SHUTDOWN_S)


def unwatched() -> None:
    """A check for workers of a cluster that another process started: it ends them with itself."""
