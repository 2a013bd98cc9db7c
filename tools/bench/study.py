"""Measure the overhead of a study: the trials' seconds in training steps over wall time x devices.

Usage: python tools/bench/study.py [N_TOKENS]      default 1.2M a trial

Runs `python -m scaling.run -m` with 16 trials of one small GPT (4 learning rates x 4 seeds, 123k
parameters, the corpus cached) on two workers, from an empty directory, and reads the trials' own
summaries back. Wall time is the whole command's: interpreter, Ray, starts of workers, evaluations,
checkpoints and summaries included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from quiet import wait_for_quiet

N_WORKERS, N_TRIALS = 2, 16
OVERRIDES = (
    "model.d_model=64",
    "model.n_heads=4",
    "tokenizer=byte",
    "train.eval_every=null",
    "train.sample_tokens=0",
    "train.eval_sequences=64",
    f"cluster.devices_per_node={N_WORKERS}",
    "optim.lr=1e-3,2e-3,3e-3,4e-3",
    "train.seed=0,1,2,3",
    "study.name=bench",
)


def run(*words: str) -> float:
    """Run one command; returns its seconds."""
    begun_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "scaling.run", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(
            f"the command ended with code {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
    return time.perf_counter() - begun_s


def main() -> None:
    n_tokens = sys.argv[1] if len(sys.argv) > 1 else "1.2M"
    with tempfile.TemporaryDirectory(prefix="scaling-bench-") as root:
        run(
            "tokenizer=byte",
            "train.n_tokens=2048",
            "train.sample_tokens=0",
            f"run.root={root}/corpus",
        )
        busy = wait_for_quiet()
        wall_s = run("-m", *OVERRIDES, f"train.n_tokens={n_tokens}", f"run.root={root}")
        directories = [path.parent for path in Path(root, "bench").glob("*/summary.json")]
        summaries = [json.loads((path / "summary.json").read_text()) for path in directories]
        events = [
            json.loads(line)
            for path in directories
            for line in (path / "events.jsonl").read_text().splitlines()
        ]
    assert len(summaries) == N_TRIALS
    training_s, wall_of_trials_s = (
        sum(summary[name] for summary in summaries) for name in ("training_s", "wall_s")
    )
    starts = sorted(
        event["startup_s"]["first_step"] for event in events if event["kind"] == "first_step"
    )
    device_s = N_WORKERS * wall_s
    print(f"{N_TRIALS} trials of {n_tokens} tokens on {N_WORKERS} workers: {wall_s:.1f} s")
    print(
        f"  in training steps: {training_s:.1f} of {device_s:.1f} device seconds, "
        f"{training_s / device_s:.3f}"
    )
    print(
        f"  with evaluation and checkpoints: {wall_of_trials_s:.1f}, "
        f"{wall_of_trials_s / device_s:.3f}"
    )
    print(
        f"  a trial's start to its first step: median {starts[len(starts) // 2]:.2f} s, "
        f"at most {starts[-1]:.2f} s"
    )
    print(
        f"  other processes kept {busy:.1f} cores busy before; "
        f"load average {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
