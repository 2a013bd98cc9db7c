"""The processes of a run on this machine, by what they do; read from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

WORKER, CONTROLLER, NODE, DRIVER = KINDS = ("worker", "controller", "node", "driver")
"""node: the raylet, Ray's process on a machine."""


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # the process has ended
        return b""


def descendants(pid: int) -> Iterator[int]:
    """Every living process below `pid`."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
        if fields and fields[0] != b"Z":
            children.setdefault(int(fields[1]), []).append(int(name))
    waiting = list(children.get(pid, []))
    while waiting:
        found = waiting.pop()
        waiting += children.get(found, [])
        yield found


def kind_of(pid: int) -> str | None:
    """What a process of Ray does for a run; None for one that serves otherwise."""
    command = _read(f"/proc/{pid}/cmdline")
    name = command.split(b"\0")[0]
    if name.startswith(b"ray::") and b"TrainWorker" in name:
        return WORKER
    if name.startswith(b"ray::") and b"Controller" in name:
        return CONTROLLER
    return NODE if name.endswith(b"/raylet") else None


def by_kind(root: int) -> dict[str, list[int]]:
    """Processes below `root`, by kind."""
    found: dict[str, list[int]] = {}
    for pid in descendants(root):
        kind = kind_of(pid)
        if kind is not None:
            found.setdefault(kind, []).append(pid)
    return found
