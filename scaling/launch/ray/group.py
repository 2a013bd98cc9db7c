"""One run on a group of kept workers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from scaling.channel.messages import Lost, Message
from scaling.errors import LaunchError
from scaling.launch.base import WorkerFn, WorkerKind
from scaling.launch.ray.channel import KvInbox
from scaling.launch.ray.connection import unwatched
from scaling.launch.ray.warm_worker import Location
from scaling.parallel.grid import Ranks

_LAST_WORDS_S = 2.0
"""Time for the other ranks of a failed run to report: assumption."""


class GroupLaunch:
    """One run on a group of warm workers: the `Launch` that its driver sees.

    locations: of the workers, in the ranks' order. on_over: called once, with whether all workers
    are sound. check: raises LaunchError where Ray itself has lost a process, which then answers
    nobody.
    """

    worker_kind: WorkerKind = "kept"

    def __init__(
        self,
        worker_fn: WorkerFn,
        spec: dict[str, Any],
        workers: Sequence[Any],
        locations: Sequence[Location],
        rendezvous: str,
        on_over: Callable[[bool], None],
        check: Callable[[], None] = unwatched,
    ) -> None:
        prefix = f"scaling/{uuid.uuid4().hex}"
        self._inbox, self._on_over, self._check = KvInbox(prefix), on_over, check
        self._ray_is_lost = False
        self._result: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._failed_s: float | None = None
        self._own_messages: list[Message] = []
        self._is_over = False
        self._running = [
            worker.run.remote(worker_fn, spec, ranks, prefix, rendezvous)
            for worker, ranks in zip(workers, _ranks(locations), strict=True)
        ]
        self._ranks = {ref: rank for rank, ref in enumerate(self._running)}
        self._lost: list[int] = []

    def receive(self) -> list[Message]:
        own, self._own_messages = self._own_messages, []
        return own if self._ray_is_lost else self._inbox.receive() + own

    def request_stop(self) -> None:
        if not self._ray_is_lost:
            self._inbox.request_stop()

    def done(self, timeout_s: float) -> bool:
        """Whether all workers have ended, or one has failed and the others have had time to
        report, or Ray has lost a process of its own."""
        import ray

        try:
            self._check()
        except LaunchError as error:
            self._error, self._ray_is_lost = error, True
            self._end(sound=False)
            return True
        ended, self._running = ray.wait(
            self._running, num_returns=len(self._running), timeout=timeout_s
        )
        for ref in ended:
            try:
                value = ray.get(ref)
            except Exception as error:  # a worker that raises one has reported it
                self._error = self._error or error
                if isinstance(error, ray.exceptions.RayActorError):
                    self._lost.append(self._ranks[ref])
            else:
                self._result = value if self._ranks[ref] == 0 else self._result
        if self._error is not None and self._failed_s is None:
            self._failed_s = time.monotonic()
        waited = self._failed_s is not None and time.monotonic() - self._failed_s > _LAST_WORDS_S
        if self._running and not waited:
            return False
        if self._lost:
            self._own_messages.append(Lost(sorted(self._lost)))
        self._end(sound=self._error is None)
        return True

    def _end(self, *, sound: bool) -> None:
        self._running, self._is_over = [], True
        self._on_over(sound)

    def result(self) -> dict[str, Any]:
        if isinstance(self._error, LaunchError):
            raise self._error
        if self._error is not None or self._result is None:
            raise LaunchError(_last_line(self._error)) from self._error
        return self._result

    def __enter__(self) -> GroupLaunch:
        return self

    def __exit__(self, *exc: object) -> None:
        """Workers outlive the run, but for those that are still at work on it."""
        if not self._is_over:
            self._end(sound=False)


def _ranks(locations: Sequence[Location]) -> list[Ranks]:
    """Ranks in the workers' order, each with its number on its node."""
    seen: dict[str, int] = {}
    ranks = []
    for rank, location in enumerate(locations):
        local = seen.get(location.node, 0)
        seen[location.node] = local + 1
        ranks.append(Ranks(rank, len(locations), local))
    return ranks


def _last_line(error: Exception | None) -> str:
    import ray

    if isinstance(error, ray.exceptions.RayActorError):
        return "its worker died (killed, or out of memory)"
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "its worker ended without a result"
