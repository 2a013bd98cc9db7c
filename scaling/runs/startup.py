"""The way from the command to the first step: which stage was reached when, across the processes it
passes through."""

from __future__ import annotations

import os
import time
from pathlib import Path

STAGES = {
    "composed": "interpreter, Hydra, configuration",
    "prepared": "plan, run directory, corpus checked",
    "cluster_ready": "Ray's own processes and its imports (no Ray: the worker's thread)",
    "worker_entered": "controller and worker processes",
    "imported": "the worker's imports of torch",
    "engine_ready": "model, optimiser, DeepSpeed and its imports",
    "first_step": "checkpoint looked for, records opened, first batch, first step",
}
"""Stages in order: each name with what its time, since the stage before, was spent on."""

Marks = dict[str, float]
"""Stage -> seconds since the epoch; "command" is when the driver's process was started. Nodes'
clocks are taken to agree."""


def begin() -> Marks:
    """Marks of the command that this process is."""
    return {"command": time.time() - _process_age_s()}


def mark(marks: Marks, stage: str) -> None:
    assert stage in STAGES, stage
    marks[stage] = time.time()


def since_command(marks: Marks) -> dict[str, float]:
    """Stage -> seconds from the command until it was reached, to a hundredth."""
    return {stage: round(marks[stage] - marks["command"], 2) for stage in STAGES if stage in marks}


def _process_age_s() -> float:
    """Age read from /proc/self/stat, whose 22nd field counts clock ticks from boot to the start
    (proc_pid_stat(5))."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
