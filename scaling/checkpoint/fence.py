"""The mark that says which group of workers a run belongs to: an older one may still live behind a
broken network.

A group takes the fence when it starts. From then on no earlier group can commit a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from scaling.errors import SupersededError
from scaling.runs.files import disk_error, locked


class Fence:
    """The file at `path`, which holds the name of the newest group."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def take(self) -> str:
        """Become the newest group; returns its name. Waits for a commit that is under way. Raises
        RunDirError."""
        name = secrets.token_hex(4)
        with self._open() as fd:
            os.ftruncate(fd, 0)
            os.pwrite(fd, name.encode(), 0)
            os.fsync(fd)
        return name

    @contextlib.contextmanager
    def passing(self, name: str) -> Iterator[None]:
        """Hold the fence, so that no other group can take it meanwhile. Raises SupersededError if
        one has taken it since `name` did."""
        with self._open() as fd:
            _compare(os.pread(fd, 64, 0), name)
            yield

    def check(self, name: str) -> None:
        """Raise SupersededError if another group has taken the fence since `name` did. Quick: it
        waits for no lock."""
        try:
            newest = self.path.read_bytes()
        except OSError as error:
            raise disk_error("read", self.path, error) from error
        _compare(newest, name)

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        try:
            # Not truncated: the lock is not held yet, and the name may be another group's.
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise disk_error("open", self.path, error) from error
        try:
            with locked(fd):
                yield fd
        finally:
            os.close(fd)


def _compare(newest: bytes, name: str) -> None:
    if newest != name.encode():
        raise SupersededError(
            f"another group of workers ({newest.decode(errors='replace')}) has taken over the run"
            f" of this one ({name})",
            fix="There is nothing to do: the other group continues from the last checkpoint.",
        )
