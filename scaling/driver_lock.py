"""One driver a run: a lock that the system frees when its holder ends, however it ends, with the holder's name inside."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, cast

from scaling.errors import RunDirError
from scaling.files import disk_error, read_object

# A reader that probes the lock holds it for microseconds; five tries bridge that (assumption: 0.2 s is ample).
_TRIES, _PAUSE_S = 5, 0.05


class Owner(TypedDict):
    """Of a lock: `started` is when it was taken, as ISO 8601 in UTC."""

    host: str
    pid: int
    started: str


class DriverLock:
    """The lock file at `path`. It stays when the lock is freed: removing it would let two drivers hold one each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Be the one driver. Raises RunDirError when another, here or on a host that shares the disk, is it."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise disk_error("lock", self.path, error) from error
        try:
            self._take(fd)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            self._write(fd, json.dumps(Owner(host=socket.gethostname(), pid=os.getpid(), started=started)))
            try:
                yield
            finally:
                self._write(fd, "")
        finally:
            os.close(fd)

    def owner(self) -> Owner | None:
        """Who holds the lock, or held it when killed. Never waits; None when nobody is named."""
        found = read_object(self.path, strict=False)
        return cast(Owner, found) if found is not None and Owner.__required_keys__ <= found.keys() else None

    def is_held(self) -> bool | None:
        """Whether a living driver holds the lock; None where this cannot be told. Never waits."""
        try:
            fd = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return None
        finally:
            os.close(fd)
        return False

    def _take(self, fd: int) -> None:
        for _ in range(_TRIES):
            try:
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_PAUSE_S)
            except OSError as error:
                raise disk_error("lock", self.path, error) from error
        owner = self.owner()
        who = "pid {pid} on {host} since {started}".format_map(owner) if owner else "one that has not said who it is"
        stop = f"stop it (kill {owner['pid']} on {owner['host']}: it checkpoints and leaves)" if owner else "stop it"
        raise RunDirError(
            f"{self.path.parent} is in use by another driver: {who}",
            fix=f"Wait for it, {stop}, or give this run its own directory with run.root=DIR or run.name=NAME.",
        )

    def _write(self, fd: int, text: str) -> None:
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, text.encode(), 0)
            os.fsync(fd)
        except OSError as error:
            raise disk_error("write", self.path, error) from error
