"""Directories of embedded clusters: one a driver, and gone with it, at the latest when the next
driver starts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scaling.launch.ray import guardian

_NAME = re.compile(r"^scaling-ray-(\d+)-")
_OWNER = "owner.json"
_UNNAMED_S = 600
"""How long a directory without its owner's name may belong to a driver that starts, in seconds."""
_guardians: list[subprocess.Popen[bytes]] = []
"""Kept, so that Python does not warn of children that still run."""


def session_directory() -> Path:
    """A new directory for this driver's cluster, with a guardian; removes those that drivers killed
    outright have left behind.

    Its path is short: Ray puts Unix sockets into it, whose paths may have at most 107 bytes.
    """
    root = Path(tempfile.gettempdir())
    for path in root.glob("scaling-ray-*"):
        match = _NAME.match(path.name)
        if match and not _is_driven(path, int(match.group(1))):
            remove_tree(path)
    path = Path(tempfile.mkdtemp(prefix=f"scaling-ray-{os.getpid()}-", dir=root))
    unfinished = path / f"{_OWNER}.new"
    unfinished.write_text(json.dumps(_identity(os.getpid())))
    unfinished.rename(path / _OWNER)
    _guard(path)
    return path


def remove_tree(path: Path) -> None:
    """Remove a directory whose owner may still be closing its last files in it."""
    shutil.rmtree(path, ignore_errors=True)


def end_processes(session: Path) -> None:
    """End the processes that name this session's directory on their command lines, as all of Ray's
    do."""
    for pid in guardian.belonging_to(str(session)):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _guard(path: Path) -> None:
    command = [sys.executable, "-I", "-S", guardian.__file__, str(path)]
    null = subprocess.DEVNULL
    # A bare descriptor, not Popen's pipe: the interpreter closes its files while it shuts down, and
    # a driver that still holds a log of the session open then would be killed by its own guardian.
    # The kernel closes this one when the process has gone.
    guarded, _kept_open = os.pipe()
    _guardians.append(
        subprocess.Popen(command, stdin=guarded, stdout=null, stderr=null, start_new_session=True)
    )
    os.close(guarded)


def _is_driven(path: Path, pid: int) -> bool:
    """Whether the process that made the directory lives: another may have its number by now."""
    now = _identity(pid)
    try:
        made_by = json.loads((path / _OWNER).read_text())
    except (OSError, ValueError):
        # its driver writes the name next, unless it was killed between the two
        made_by = now if _age_s(path) < _UNNAMED_S else None
    return now is not None and now == made_by


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _identity(pid: int) -> list[str] | None:
    """What distinguishes a process from all others: the kernel's start, and its own, in ticks since
    then; None where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), fields[19]]
    except (OSError, IndexError):
        return None
