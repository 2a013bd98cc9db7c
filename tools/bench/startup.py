"""Measure the seconds from the command to the first optimiser step, by stage.

Usage: python tools/bench/startup.py [REPEATS]      default 5

Runs `python -m scaling.run` (gpt_nano, two steps, each time in a fresh run directory, the corpus
cached) with the embedded default of two workers under Ray and DeepSpeed, and with one in-process
worker, by turns. What each run notes in events.jsonl is read back; shown are the medians of the
stages, and of the whole with its range. Each run waits up to a minute for a quiet machine.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from quiet import wait_for_quiet
from rich.console import Console
from rich.table import Table

from scaling.runs.directory import RunDir
from scaling.runs.startup import STAGES

KINDS = {"two workers, Ray and DeepSpeed": 2, "one worker, in process": 1}
TOKENS = 2 * 16 * 256


def start(root: Path, n_workers: int) -> dict[str, float]:
    """Time one run. Returns stage -> seconds since the command."""
    overrides = [
        "model=gpt_nano",
        "cluster=local",
        f"cluster.devices_per_node={n_workers}",
        f"train.n_tokens={TOKENS}",
        "train.sample_tokens=0",
        "train.eval_sequences=1",
        f"run.root={root}",
    ]
    wait_for_quiet()
    done = subprocess.run(
        [sys.executable, "-m", "scaling.run", *overrides],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(
            f"the run ended with code {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
    [directory] = root.iterdir()
    [event] = [event for event in RunDir(directory).read_events() if event["kind"] == "first_step"]
    return event["startup_s"]


def stages(startup_s: dict[str, float]) -> dict[str, float]:
    """Seconds of each stage: the time at its end minus the time at its start."""
    took_s = [after - before for before, after in pairwise([0.0, *startup_s.values()])]
    return dict(zip(startup_s, took_s, strict=True))


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seen: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind, n_workers in KINDS.items():
            with tempfile.TemporaryDirectory(prefix="scaling-bench-") as root:
                seen[kind].append(start(Path(root), n_workers))
    table = Table("stage", "spent on", *KINDS)
    for stage, meaning in STAGES.items():
        medians = [[stages(s)[stage] for s in runs if stage in s] for runs in seen.values()]
        table.add_row(
            stage, meaning, *(f"{statistics.median(m):.2f}" if m else "-" for m in medians)
        )
    totals = [[s["first_step"] for s in runs] for runs in seen.values()]
    table.add_section()
    table.add_row(
        "first_step",
        "from the command",
        *(f"{statistics.median(t):.2f} ({min(t):.2f}-{max(t):.2f})" for t in totals),
    )
    Console(width=140).print(table)
    print(f"{repeats} runs each; load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
