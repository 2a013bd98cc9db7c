"""Wait until no other process keeps the cores busy, so that a measurement is not disturbed."""

from __future__ import annotations

import time
from pathlib import Path

BUSY_CORES = 0.2
"""Cores that other processes can use on a quiet machine: a tenth of two cores, by choice."""


def busy_cores(seconds: float) -> float:
    """Cores that all processes kept busy over the next `seconds` (/proc/stat, first line;
    proc_stat(5))."""
    before, begun_s = _busy_ticks(), time.perf_counter()
    time.sleep(seconds)
    return (_busy_ticks() - before) / 100 / (time.perf_counter() - begun_s)


def wait_for_quiet(limit_s: float = 60.0) -> float:
    """Return after a quiet second, or after `limit_s` at the latest; returns the busy cores of the
    last second."""
    end_s = time.perf_counter() + limit_s
    while (busy := busy_cores(1.0)) > BUSY_CORES and time.perf_counter() < end_s:
        pass
    return busy


def _busy_ticks() -> int:
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (
        sum(ticks) - ticks[3] - ticks[4]
    )  # without the time that a core is idle or waits for a disk
