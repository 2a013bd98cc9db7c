"""Runs of two workers under Ray Train: to the end, and through every way of being stopped.

A start takes six to ten seconds: these tests share four.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.support.runs import (
    FOLLOWED_STEPS,
    N_STEPS,
    TWO_WORKERS,
    Run,
    Workplace,
    curve,
    events,
    fp32_rtol,
    listening_beyond_loopback,
    secrets_shown,
)

FILES = {
    "config.yaml",
    "corpus.json",
    "plan.json",
    "provenance.json",
    "metrics.jsonl",
    "events.jsonl",
    "checkpoints",
    "summary.json",
    "loss.png",
    "driver.lock",
    "tokenizer.json",
}
LIFE = ("start", "resume", "preempted", "failed", "finished")
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass
class Unbroken:
    run: Run
    open_to_others: list[str]


@pytest.fixture(scope="module")
def unbroken(workplace: Workplace) -> Unbroken:
    run = workplace.start(*TWO_WORKERS, root=workplace.root / "unbroken")
    run.wait_for_step(5)
    assert len(run.workers()) == 2, "the workers have another name; who is killed below?"
    found = listening_beyond_loopback([run.process.pid, *(pid for pid, _ in run.seen)])
    assert run.wait() == 0, run.output
    return Unbroken(run, found)


@dataclass
class Broken:
    """One run in three parts. `stops`: the steps at which it was stopped."""

    parts: list[Run]
    codes: list[int]
    stops: list[int]


@pytest.fixture(scope="module")
def broken(workplace: Workplace) -> Broken:
    seed = int.from_bytes(os.urandom(4))
    print(f"stops drawn with seed {seed}")
    rng = random.Random(seed)
    stops = [rng.randint(12, 50), rng.randint(75, 105), rng.randint(130, 170)]
    parts, codes = [], []
    for stop, act in zip(stops, (_terminate, _kill_driver, _kill_worker), strict=True):
        run = workplace.start(*TWO_WORKERS, root=workplace.root / "broken")
        run.wait_for_step(stop)
        act(run)
        codes.append(run.wait())
        parts.append(run)
    return Broken(parts, codes, stops)


def _terminate(run: Run) -> None:
    """A stop that takes its time, as one with a large checkpoint does: the workers are frozen for
    four seconds."""
    workers = run.workers()
    run.signal(signal.SIGTERM)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    assert run.process.poll() is None, run.output
    for pid in workers:
        os.kill(pid, signal.SIGCONT)


def _kill_driver(run: Run) -> None:
    run.signal(signal.SIGKILL)


def _kill_worker(run: Run) -> None:
    os.kill(random.choice(run.workers()), signal.SIGKILL)


def test_a_run_leaves_the_files_of_its_record(unbroken: Unbroken) -> None:
    directory = unbroken.run.directory
    assert {path.name for path in directory.iterdir()} == FILES
    summary = json.loads((directory / "summary.json").read_text())
    records = unbroken.run.records()
    losses = [r["train/loss"] for r in records if "train/loss" in r]
    held_out = [r["val/loss"] for r in records if "val/loss" in r]
    assert (summary["steps"], summary["n_tokens"], summary["restarts"]) == (
        N_STEPS,
        N_STEPS * 512,
        0,
    )
    assert (summary["train_loss"], summary["val_loss"], summary["best_val_loss"]) == (
        losses[-1],
        held_out[-1],
        min(held_out),
    )
    assert len(losses) == N_STEPS
    assert len(held_out) == N_STEPS // 20
    assert losses[-1] < 0.5 * losses[0]
    assert held_out[-1] < 0.6 * held_out[0]
    kept = sorted(path.name for path in (directory / "checkpoints").glob("step-*"))
    assert kept == [f"step-{N_STEPS - 10:08d}", f"step-{N_STEPS:08d}"]
    assert [
        e["kind"]
        for e in events(unbroken.run, "start", "resume", "failed", "preempted", "finished")
    ] == ["start", "finished"]
    assert len(json.loads((directory / "provenance.json").read_text())["attempts"]) == 1


def test_two_workers_follow_one(unbroken: Unbroken, single: Run) -> None:
    ours, theirs = (
        [r for r in curve(run) if r["step"] <= FOLLOWED_STEPS] for run in (unbroken.run, single)
    )
    assert [r["step"] for r in ours] == [r["step"] for r in theirs]
    for name in ("train/loss", "val/loss"):
        found, expected = ([r[name] for r in records if name in r] for records in (ours, theirs))
        np.testing.assert_allclose(found, expected, rtol=fp32_rtol(FOLLOWED_STEPS))


def test_nothing_listens_beyond_loopback(unbroken: Unbroken) -> None:
    assert unbroken.run.seen, "no process was seen"
    assert unbroken.open_to_others == []


def test_no_secret_of_the_environment_is_written_or_shown(
    unbroken: Unbroken, broken: Broken
) -> None:
    assert [secrets_shown(run) for run in (unbroken.run, *broken.parts)] == [[]] * 4


def test_every_stop_has_its_exit_code_and_event(broken: Broken) -> None:
    assert broken.codes == [75, -signal.SIGKILL, 0], [part.output for part in broken.parts]
    found = events(broken.parts[0], *LIFE)
    assert [e["kind"] for e in found][:3] == ["start", "preempted", "resume"]
    assert found[1]["reason"] == "SIGTERM"
    assert found[2]["step"] == found[1]["step"] >= broken.stops[0], (
        "a stop by a signal loses no step"
    )
    assert [e["kind"] for e in found][3:] == ["resume", "resume", "finished"], (
        "the driver's kill, the worker's, the end"
    )
    assert found[-1]["step"] == N_STEPS
    assert "the same command continues from there" in broken.parts[0].output
    assert "Resuming after step" in broken.parts[2].output


def test_a_stopped_run_ends_as_if_it_had_never_been(unbroken: Unbroken, broken: Broken) -> None:
    assert curve(broken.parts[0]) == curve(unbroken.run), f"stopped at {broken.stops}"


def test_every_second_is_accounted_for(unbroken: Unbroken, broken: Broken) -> None:
    spent = {}
    for name, run in (("unbroken", unbroken.run), ("broken", broken.parts[-1])):
        summary = json.loads((run.directory / "summary.json").read_text())
        spent[name] = summary["seconds"]
        first, last = events(run, "start")[0], events(run, "finished")[0]
        assert sum(spent[name].values()) == pytest.approx(
            last["time_s"] - first["command_s"], abs=0.5
        )
        assert summary["goodput"] == pytest.approx(
            spent[name]["productive"] / (sum(spent[name].values()) - spent[name]["stopped"]),
            abs=0.01,
        )
        assert 0 < [r["run/goodput"] for r in run.records() if "run/goodput" in r][-1] <= 1
    assert (
        spent["unbroken"]["recomputing"]
        == spent["unbroken"]["restarting"]
        == spent["unbroken"]["stopped"]
        == 0
    )
    assert (
        min(
            spent["unbroken"][name]
            for name in ("productive", "starting", "evaluating", "checkpointing")
        )
        > 0
    )
    assert (
        min(
            spent["broken"][name] for name in ("productive", "recomputing", "restarting", "stopped")
        )
        > 0
    )
    assert [r["run/restarts"] for r in broken.parts[-1].records() if "run/restarts" in r][-1] == 3


def test_nothing_is_left_behind(unbroken: Unbroken, broken: Broken) -> None:
    runs = [unbroken.run, *broken.parts]
    killed = broken.parts[1]
    for run in runs:
        assert len(run.seen) > 2
        # The agents of a node whose driver was killed outright take up to a minute to tell the dead
        # head that its raylet died.
        left = [
            line
            for line in run.leftovers(0 if run is killed else 15)
            if run is not killed or not line.startswith(AGENTS)
        ]
        assert left == []
    for run in runs:
        assert list(Path(tempfile.gettempdir()).glob(f"scaling-ray-{run.process.pid}-*")) == []
        assert not (run.directory / ".ray").exists()


def test_the_same_command_again_changes_nothing(workplace: Workplace, unbroken: Unbroken) -> None:
    def snapshot() -> dict[str, tuple[int, bytes]]:
        files = [
            path
            for path in unbroken.run.directory.rglob("*")
            if path.is_file() and path.name != "driver.lock"
        ]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = snapshot()
    again = workplace.finish(*TWO_WORKERS, root=workplace.root / "unbroken")
    assert "This run is finished" in again.output
    assert snapshot() == before
    assert not again.seen
