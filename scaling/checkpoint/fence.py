"""Which group of workers a run belongs to, where an older one may still live behind a broken
network.

A group takes the fence when it starts; from then on whoever took it before can commit nothing more.
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
    """The file at `path`, with the name of the newest group in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def take(self) -> str:
        """Be the newest group; returns its name. Waits for a commit that is under way. Raises
        RunDirError."""
        name = secrets.token_hex(4)
        with self._open() as fd:
            os.ftruncate(fd, 0)
            os.pwrite(fd, name.encode(), 0)
            os.fsync(fd)
        return name

    @contextlib.contextmanager
    def passing(self, name: str) -> Iterator[None]:
        """No other group can take the fence meanwhile. Raises SupersededError if one has, since
        `name` did."""
        with self._open() as fd:
            _compare(os.pread(fd, 64, 0), name)
            yield

    def check(self, name: str) -> None:
        """Raise SupersededError if another group has taken the fence since `name` did. Quick, and
        waits for nobody."""
        try:
            newest = self.path.read_bytes()
        except OSError as error:
            raise disk_error("read", self.path, error) from error
        _compare(newest, name)

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        try:
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
            f"another group of workers ({newest.decode(errors='replace')}) has taken over the run of this one ({name})",
            fix="Nothing is to be done: the other one goes on from the last checkpoint.",
        )
