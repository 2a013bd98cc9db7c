"""Ends what is left of an embedded cluster when its driver has gone, however it went. Run as a
file, beside the driver.

Ray's servers die with the driver (PR_SET_PDEATHSIG), but two agents of theirs look for a store that
is gone for a minute (62 s measured). The driver holds the other end of this process's standard
input, so its end is an end of file here.

    python guardian.py SESSION_DIRECTORY
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

_PAUSE_S = 0.1


def belonging_to(session: str) -> list[int]:
    """Processes, this one left out, that name the session's directory on their command line or hold
    a file of it open.

    Ray's agents give themselves other command lines, and log into it.
    """
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):  # it ends, or is another user's
            if pid != os.getpid() and _belongs(Path(f"/proc/{pid}"), session):
                found.append(pid)
    return found


def _belongs(process: Path, session: str) -> bool:
    if session.encode() in (process / "cmdline").read_bytes():
        return True
    for handle in (process / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed since it was listed
            if os.readlink(handle).startswith(session + "/"):
                return True
    return False


def main(session: str) -> None:
    sys.stdin.buffer.read()
    while left := belonging_to(session):  # a server that goes may have started another just before
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)
    shutil.rmtree(session, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
