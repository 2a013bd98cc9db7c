"""Runs of one worker in the driver's own process: stopped, resumed, shared, viewed; and the golden
first losses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.support.runs import (
    N_STEPS_ALONE,
    ONE_WORKER,
    Run,
    Workplace,
    curve,
    events,
    fp32_rtol,
    secrets_shown,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "first_losses.txt"
GOLDEN_STEPS = 20
TIMED = ("cluster.device.peak_tflops_fp32=0.1", "cluster.device.memory_gb_per_s=10")
"""So that the planner predicts times of these CPUs."""


def stop(run: Run, step: int, number: signal.Signals) -> None:
    run.wait_for_step(step)
    run.signal(number)


def test_the_first_losses_are_those_of_the_golden_file(single: Run) -> None:
    losses = [record["train/loss"] for record in curve(single) if "train/loss" in record][
        :GOLDEN_STEPS
    ]
    if os.environ.get("SCALING_REWRITE_GOLDEN"):
        GOLDEN.write_text("".join(f"{loss!r}\n" for loss in losses))
    expected = [float(line) for line in GOLDEN.read_text().split()]
    message = (
        "The first losses have moved: model, initial weights, data order, optimiser or schedule "
        "are not what they were. "
        "If that was meant, rewrite them with SCALING_REWRITE_GOLDEN=1 and say why; "
        "in a refactor it is a mistake."
    )
    assert len(losses) == len(expected) == GOLDEN_STEPS
    np.testing.assert_allclose(losses, expected, rtol=fp32_rtol(GOLDEN_STEPS), err_msg=message)


def test_ctrl_c_checkpoints_and_the_run_continues_to_the_same_end(
    workplace: Workplace, single: Run
) -> None:
    root = workplace.root / "interrupted"
    first = workplace.start(*ONE_WORKER, root=root)
    stop(first, 33, signal.SIGINT)
    assert first.wait() == 75, first.output
    (stopped,) = events(first, "stopped")
    assert stopped["reason"] == "SIGINT"
    assert events(first, "preempted") == []
    assert (
        f"Stopped at step {stopped['step']} by Ctrl-C; the same command continues from there."
        in first.output
    )
    assert (first.directory / "loss.png").exists()
    last = max((first.directory / "checkpoints").iterdir()).name
    assert last == f"step-{stopped['step']:08d}", "what was trained is not lost"
    second = workplace.finish(*ONE_WORKER, *TIMED, "plan.calibrate_from_run=true", root=root)
    assert curve(second) == curve(single)
    assert f"Resuming after step {stopped['step']}." in second.output
    (learnt,) = json.loads((root / "calibration.json").read_text())
    assert (
        learnt["measured_tokens_per_s"]
        == json.loads((second.directory / "summary.json").read_text())["tokens_per_s"]
    )
    assert "calibration times on these devices x" in " ".join(second.output.split())


def test_a_second_ctrl_c_leaves_at_once(workplace: Workplace) -> None:
    run = workplace.start(
        *ONE_WORKER,
        "checkpoint.every_steps=null",
        "checkpoint.every=end",
        "train.n_tokens=5M",
        root=workplace.root / "twice",
    )
    stop(run, 5, signal.SIGINT)
    time.sleep(0.05)
    run.signal(signal.SIGINT)
    assert run.wait() == 75
    assert list((run.directory / "checkpoints").glob("step-*")) == []
    assert events(run, "stopped") == events(run, "preempted") == []


def test_a_second_driver_is_refused_and_harms_nothing(workplace: Workplace, single: Run) -> None:
    root = workplace.root / "contested"
    first = workplace.start(*ONE_WORKER, root=root)
    first.wait_for_step(2)
    first.signal(signal.SIGSTOP)  # so that it lives while the other starts
    second = workplace.finish(*ONE_WORKER, root=root, code=1)
    first.signal(signal.SIGCONT)
    assert f"is in use by another driver: pid {first.process.pid} on" in second.output
    assert "Traceback" not in second.output
    assert first.wait() == 0, first.output
    assert curve(first) == curve(single)


def test_wandb_shows_a_stopped_run_as_one(workplace: Workplace) -> None:
    root, options = (
        workplace.root / "wandb",
        (*ONE_WORKER, "logger=wandb", "train.n_tokens=150_000"),
    )
    first = workplace.start(*options, root=root)
    stop(first, 12, signal.SIGTERM)
    assert first.wait() == 75, first.output
    second = workplace.finish(*options, root=root)
    assert "offline" in second.output
    assert secrets_shown(second) == []
    files = sorted(second.directory.glob("wandb/*/run-*.wandb"))
    assert len(files) == 2
    assert len({path.name for path in files}) == 1, "the run has two W&B ids"
    logged: dict[int, dict[str, float]] = {}
    for path in files:
        for item in wandb_history(path):
            logged.setdefault(int(item["_step"]), {}).update(item)
    for record in second.records():
        for name in ("train/loss", "val/loss"):
            if name in record:
                assert logged[record["step"]][name] == record[name]


def wandb_history(path: Path) -> list[dict[str, float]]:
    """What was logged, by wandb's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    offline = os.environ | {"WANDB_MODE": "offline"}
    done = subprocess.run(
        command, env=offline, capture_output=True, text=True, check=True, timeout=60
    )
    entries = [json.loads(line) for line in done.stdout.splitlines()]
    return [entry["history"]["item"] for entry in entries if entry["type"] == "history"]


def test_tensorboard_shows_the_record(workplace: Workplace) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = workplace.finish(
        *ONE_WORKER,
        "logger=tensorboard",
        "train.n_tokens=20_000",
        root=workplace.root / "tensorboard",
    )
    (events_file,) = run.directory.rglob("events.out.tfevents.*")
    reader = EventAccumulator(str(events_file.parent))
    reader.Reload()
    for name in ("train/loss", "val/loss"):
        shown = {scalar.step: scalar.value for scalar in reader.Scalars(name)}
        recorded = {record["step"]: record[name] for record in run.records() if name in record}
        assert shown.keys() == recorded.keys()
        # stored as fp32
        np.testing.assert_allclose(
            [shown[step] for step in recorded], list(recorded.values()), rtol=2**-23
        )
    assert secrets_shown(run) == []


def test_a_run_ends_with_all_of_its_steps(single: Run) -> None:
    assert single.records()[-1]["step"] == N_STEPS_ALONE
    assert single.leftovers() == []
    assert secrets_shown(single) == []
