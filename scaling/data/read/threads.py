"""Threads that work in the background and hold nobody up: neither the interpreter's exit nor who
drops them."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class DaemonPool:
    """Runs what is submitted, first come, first served, on `n_threads` daemon threads.

    concurrent.futures joins its threads when the interpreter exits, and one that hangs in a read
    would keep a killed run from ending. A pool that is dropped ends like one that is closed: what
    has not begun is forgotten, and the rest is waited for, for `wait_s` at most.
    """

    def __init__(self, n_threads: int, name: str, wait_s: float = 5.0) -> None:
        assert n_threads > 0
        jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        threads = [
            threading.Thread(target=_work, args=(jobs,), name=name, daemon=True)
            for _ in range(n_threads)
        ]
        self._jobs = jobs
        self._finalizer = weakref.finalize(self, _end, threads, jobs, wait_s)
        for thread in threads:
            thread.start()

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        assert self._finalizer.alive, "nothing is run after close"
        future: Future[T] = Future()
        self._jobs.put((future, function, arguments))
        return future

    def close(self) -> None:
        """End the threads. Nothing may be submitted afterwards."""
        self._finalizer()


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        future, function, arguments = job
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        del job, future, function, arguments  # what a job held is not held until the next one comes


def _end(
    threads: list[threading.Thread], jobs: queue.SimpleQueue[_Job | None], wait_s: float
) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            if (job := jobs.get_nowait()) is not None:
                job[0].cancel()
    for _ in threads:
        jobs.put(None)
    end_s = time.monotonic() + wait_s
    for thread in threads:
        if thread is not threading.current_thread():
            # a daemon: one that hangs dies with the process
            thread.join(timeout=max(0.0, end_s - time.monotonic()))
