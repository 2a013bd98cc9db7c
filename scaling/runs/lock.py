"""One driver a run: a lock that the system frees when its holder ends, with the holder's name and a
beat inside.

On one machine the system alone decides. Between machines that share a disk it may not: its locks
can stop at the machine, outlive one that has gone, or be missing. There a living holder is told by
its beat, which it renews, and one whose beat has stood still for the length of a lease holds no
longer. No clocks are compared: whoever wants the lock watches.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, cast

from scaling.errors import RunDirError, SupersededError
from scaling.runs.files import NO_LOCKS, disk_error, read_object

# A reader that probes the lock holds it for microseconds; five tries bridge that (assumption: 0.2 s
# is ample).
_TRIES, _PAUSE_S = 5, 0.05
LEASE_S, _BEAT_S = 60.0, 10.0
"""How long a beat may stand still, and how often it is renewed. A choice: a disk that hangs for so
long stops training too."""
_OUTWAITING = 1.25
"""Leases for which one who was not given the lock watches, so that one who was given it and watches
too comes first."""
_SETTLING_S = 2.0
"""Wait after which, on a disk without locks, the name in the file is that of the one who wrote
last: assumption."""


class Owner(TypedDict):
    """The owner of a lock: `started` is when it was taken, as ISO 8601 in UTC; `machine` names one
    start of one kernel."""

    host: str
    machine: str
    pid: int
    started: str
    token: str
    beat: int


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


class DriverLock:
    """The lock file at `path`. It stays when the lock is freed: removing it would let two drivers
    hold one each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def hold(self, say: Callable[[str], None] = print) -> Iterator[Callable[[], None]]:
        """Be the one driver. Raises RunDirError when another, here or on a machine that shares the
        disk, is it.

        Gives a check that raises SupersededError once another has taken the lock over, also one
        that is done since.

        `say` tells whoever waits why that takes up to a lease. A driver that finds its lock taken
        over, after having been cut off for so long, sends itself SIGTERM.
        """
        fd, locked = self._take(say)
        owner = Owner(
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            token=secrets.token_hex(8),
            beat=0,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        done = threading.Event()
        try:
            self._write(fd, json.dumps(owner))
            if not locked:
                time.sleep(_SETTLING_S)
                if not self._is_ours(owner):
                    raise self._refusal(self.owner())
            thread = threading.Thread(
                target=self._keep, args=(fd, owner, done), name="driver lock", daemon=True
            )
            thread.start()
            try:
                yield lambda: self._require(owner)
            finally:
                done.set()
                thread.join()
                if self._is_ours(owner):
                    self._write(fd, "")
        finally:
            os.close(fd)

    def owner(self) -> Owner | None:
        """Who holds the lock, or held it when killed. Never waits; None when nobody is named."""
        found = read_object(self.path, strict=False)
        return (
            cast(Owner, found)
            if found is not None and Owner.__required_keys__ <= found.keys()
            else None
        )

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
        owner = self.owner()
        return owner is not None and owner["machine"] != _machine() and self._beats()

    def _beats(self) -> bool:
        """Whether the file was written to within a lease, by the clock of whoever asks."""
        with contextlib.suppress(OSError):
            return time.time() - self.path.stat().st_mtime < LEASE_S
        return False

    def _take(self, say: Callable[[str], None]) -> tuple[int, bool]:
        """The open lock file, and whether it is locked: not where the disk has no locks. Raises
        RunDirError."""
        while True:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise disk_error("lock", self.path, error) from error
            try:
                locked, owner = self._locked(fd), self.owner()
                elsewhere = owner is not None and owner["machine"] != _machine()
                if locked and not elsewhere:
                    return fd, True
                if locked is False and not elsewhere:
                    raise self._refusal(owner)
                if owner is not None:
                    self._watch(owner, say, LEASE_S if locked else _OUTWAITING * LEASE_S)
                # Another driver may have put the file aside after it was opened here.
                if locked is not False and self._names(fd):
                    return fd, bool(locked)
                if self._names(fd):
                    self._put_aside()  # the lock of a machine that has gone: a new file has none
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _locked(self, fd: int) -> bool | None:
        """Whether the system gave us the lock; None where the disk has no locks."""
        for _ in range(_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                time.sleep(_PAUSE_S)
            except OSError as error:
                if error.errno in NO_LOCKS:
                    return None
                raise disk_error("lock", self.path, error) from error
        return False

    def _watch(self, owner: Owner, say: Callable[[str], None], lease_s: float) -> None:
        """Return when the beat of `owner` has stood still for so long. Raises RunDirError when it
        moves."""
        say(
            f"This run was driven by pid {owner['pid']} on {owner['host']}: "
            f"waiting {lease_s:.0f} s to see whether it is alive."
        )
        until_s = time.monotonic() + lease_s
        while time.monotonic() < until_s:
            # The beat is compared with itself, never with a clock: machines disagree on the time.
            time.sleep(min(1.0, LEASE_S / 10))
            now = self.owner()
            if now is not None and (now["token"], now["beat"]) != (owner["token"], owner["beat"]):
                raise self._refusal(now)
            if now is None and self.path.exists() and self.path.stat().st_size == 0:
                return  # it has left in the meantime

    def _names(self, fd: int) -> bool:
        """Whether the path still leads to the open file."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(fd), self.path.stat())
        return False

    def _put_aside(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path, self.path.with_name(f".{self.path.name}.broken"))

    def _refusal(self, owner: Owner | None) -> RunDirError:
        who = (
            "pid {pid} on {host} since {started}".format_map(owner)
            if owner
            else "one that has not said who it is"
        )
        stop = (
            f"stop it (kill {owner['pid']} on {owner['host']}: it checkpoints and leaves)"
            if owner
            else "stop it"
        )
        return RunDirError(
            f"{self.path.parent} is in use by another driver: {who}",
            fix=f"Wait for it, {stop}, or give this run its own directory with run.root=DIR or "
            "run.name=NAME.",
        )

    def _keep(self, fd: int, owner: Owner, done: threading.Event) -> None:
        """Renew the beat, and leave when another has taken the lock over."""
        while not done.wait(_BEAT_S):
            if not self._is_ours(owner):
                # As a scheduler would: the driver leaves the way it leaves any preemption.
                os.kill(os.getpid(), signal.SIGTERM)
                return
            owner["beat"] += 1
            # a disk that refuses for a moment; for a lease, others take over
            with contextlib.suppress(RunDirError):
                self._write(fd, json.dumps(owner))

    def _is_ours(self, owner: Owner) -> bool:
        """False only where the file names another, or another has emptied it: a holder does so when
        it leaves."""
        now = self.owner()
        if now is not None:
            return now["token"] == owner["token"]
        with contextlib.suppress(OSError):
            return self.path.stat().st_size > 0
        return True

    def _require(self, owner: Owner) -> None:
        if self._is_ours(owner):
            return
        now = self.owner()
        who = "pid {pid} on {host}".format_map(now) if now else "another, which is done by now"
        raise SupersededError(
            f"{self.path.parent} was taken over from this driver while it stood still: by {who}",
            fix="Nothing is to be done, and nothing was written: scaling.status tells how the run "
            "stands.",
        )

    def _write(self, fd: int, text: str) -> None:
        """Write over what is there; a reader that comes in between sees no JSON, which names
        nobody."""
        try:
            # Cut after writing: an empty file would mean that the holder has left.
            os.pwrite(fd, text.encode(), 0)
            os.ftruncate(fd, len(text.encode()))
            os.fsync(fd)
        except OSError as error:
            raise disk_error("write", self.path, error) from error
