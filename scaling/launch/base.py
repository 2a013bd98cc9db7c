"""The driver's view of running workers, wherever they run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal, Protocol

from scaling.channel.base import Channel, LocalChannel
from scaling.channel.failure import report
from scaling.channel.messages import Message
from scaling.errors import LaunchError, ScalingError
from scaling.parallel.grid import Ranks

WorkerFn = Callable[[dict[str, Any], Ranks, Channel, str], dict[str, Any]]
"""(spec, ranks, channel, rendezvous) -> result. A module-level function: other processes import it
by name."""


WorkerKind = Literal["thread", "restarted", "kept"]
"""thread: a thread of the driver, which nobody can end. restarted: processes of this run alone,
started again when they fail. kept: processes that serve the next run too."""


class Launch(Protocol):
    """Workers of one run. Used as a context manager: leaving it removes what belongs to this run
    alone, and ends workers that are still at work."""

    worker_kind: WorkerKind

    def receive(self) -> list[Message]:
        """New messages of the workers, in order."""
        ...

    def request_stop(self) -> None:
        """Ask the workers to write a checkpoint and end."""
        ...

    def done(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s`; whether the workers have ended."""
        ...

    def result(self) -> dict[str, Any]:
        """What the first rank returned. Raises LaunchError, or the worker's own ScalingError."""
        ...

    def __enter__(self) -> Launch: ...

    def __exit__(self, *exc: object) -> None: ...


def guarded(
    worker_fn: WorkerFn, spec: dict[str, Any], ranks: Ranks, channel: Channel, rendezvous: str
) -> dict[str, Any]:
    """Run a worker; its error reaches the driver as a message, and its traceback a file of the run
    directory."""
    try:
        return worker_fn(spec, ranks, channel, rendezvous)
    except Exception as error:
        report(error, channel, spec["run_dir"], ranks.rank)
        raise


class InProcessLaunch:
    """A single worker in a thread of the driver: no Ray, no second process, the first step two
    seconds after the start."""

    worker_kind: WorkerKind = "thread"

    def __init__(self, worker_fn: WorkerFn, spec: dict[str, Any]) -> None:
        self._channel = LocalChannel()
        self._result: dict[str, Any] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(worker_fn, spec), name="worker", daemon=True
        )

    def _run(self, worker_fn: WorkerFn, spec: dict[str, Any]) -> None:
        try:
            self._result = guarded(
                worker_fn, spec, Ranks(rank=0, world_size=1, local_rank=0), self._channel, ""
            )
        except BaseException as error:
            self._error = error

    def receive(self) -> list[Message]:
        return self._channel.receive()

    def request_stop(self) -> None:
        self._channel.request_stop()

    def done(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def result(self) -> dict[str, Any]:
        if isinstance(self._error, ScalingError):
            raise self._error
        if self._result is None:
            raise LaunchError(f"the worker failed: {self._error!r}") from self._error
        return self._result

    def __enter__(self) -> InProcessLaunch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to remove: the thread ends with its worker, or with the process."""
