"""Many independent tasks over several processes, each done once: what was finished before a kill is
not done again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO, Any

import numpy as np

from scaling.errors import DataError

Report = Callable[[str, float | None], None]
"""Receives what is being done, and the part of it that is done (0 to 1, None where that is not
known)."""


def silent(message: str, part: float | None) -> None:
    """A report that is not shown."""


Task = Callable[..., dict[str, Any]]
"""Called as task(directory, name, *arguments): writes files that begin with the name, returns what
JSON can hold."""


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Work:
    """A directory of unfinished work. The result of task NAME is NAME.json, written when all its
    files are on the disk."""

    def __init__(self, directory: Path, processes: int, report: Report) -> None:
        self.directory, self._processes, self._report = directory, processes, report
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def result(self, name: str) -> dict[str, Any] | None:
        """What a finished task returned."""
        try:
            found: dict[str, Any] = json.loads((self.directory / f"{name}.json").read_bytes())
        except FileNotFoundError:
            return None
        return found

    def run(
        self, task: Task, kind: str, arguments: Sequence[tuple[Any, ...]], message: str
    ) -> list[dict[str, Any]]:
        """Results of `task` on each of `arguments`, in order; task i is called KIND-i. Raises what
        a task raises, DataError for a process that died."""
        names = [f"{kind}-{number:06d}" for number in range(len(arguments))]
        results = [self.result(name) for name in names]
        left = [number for number, result in enumerate(results) if result is None]
        done = len(names) - len(left)
        if left:
            self._report(message, done / len(names))
        for number, result in self._perform(task, names, arguments, left):
            results[number] = result
            done += 1
            self._report(message, done / len(names))
        return [result for result in results if result is not None]

    def _perform(
        self,
        task: Task,
        names: Sequence[str],
        arguments: Sequence[tuple[Any, ...]],
        left: Sequence[int],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._processes == 1 or (len(left) < 2 and self._pool is None):
            for number in left:
                yield number, _perform(task, self.directory, names[number], arguments[number])
            return
        pool = self._started_pool()
        futures = {
            pool.submit(_perform, task, self.directory, names[number], arguments[number]): number
            for number in left
        }
        try:
            for future in concurrent.futures.as_completed(futures):
                yield futures.pop(future), future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process of the preparation died, probably for want of memory",
                fix="The same command continues where it ended; use fewer processes=, or a "
                "smaller max_document=.",
            ) from error

    def _started_pool(self) -> concurrent.futures.ProcessPoolExecutor:
        """New interpreters, not copies: a copy of a process with threads (the tokenizer's) may
        hang."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = concurrent.futures.ProcessPoolExecutor(
                self._processes, context, initializer=_begin
            )
        return self._pool


def _begin() -> None:
    """A process of the pool: one thread each, interrupted by nobody but its parent, and dead when
    that is."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _perform(task: Task, directory: Path, name: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
    result = task(directory, name, *arguments)
    put(directory / f"{name}.json", json.dumps(result).encode())
    return result


@contextlib.contextmanager
def synced(path: Path) -> Iterator[IO[bytes]]:
    """A file that is at `path`, whole and on the disk, or not at all. Several processes may write
    the same content."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put(path: Path, content: bytes | memoryview) -> None:
    """Write a file that is there whole or not at all."""
    with synced(path) as file:
        file.write(content)


def put_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file that is there whole or not at all."""
    # numpy's own writing to a file does not distinguish a full disk from another failure
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    put(path, buffer.getbuffer())
