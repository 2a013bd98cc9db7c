"""Directories of embedded clusters: one a driver, and gone with it, at the latest when the next driver starts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path

_NAME = re.compile(r"^scaling-ray-(\d+)-")


def session_directory() -> Path:
    """A new directory for this driver's cluster; removes those that drivers killed outright have left behind.

    Its path is short: Ray puts Unix sockets into it, whose paths may have at most 107 bytes.
    """
    root = Path(tempfile.gettempdir())
    for path in root.glob("scaling-ray-*"):
        match = _NAME.match(path.name)
        if match and not _alive(int(match.group(1))):
            remove_tree(path)
    return Path(tempfile.mkdtemp(prefix=f"scaling-ray-{os.getpid()}-", dir=root))


def remove_tree(path: Path) -> None:
    """Remove a directory whose owner may still be closing its last files in it."""
    shutil.rmtree(path, ignore_errors=True)


def end_processes(session: Path) -> None:
    """End the processes that name this session's directory on their command lines, as all of Ray's do."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(entry.parent.name)
        with contextlib.suppress(OSError):
            if pid != os.getpid() and os.fsencode(session) in entry.read_bytes():
                os.kill(pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
