"""Directories of embedded clusters: one a driver, and gone with it, at the latest when the next driver starts."""

from __future__ import annotations

import os
import re
import shutil
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


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
