"""A study of two trunks and their cool-downs as a command: stopped, a worker killed, a trial
damaged, and at last finished.

Each start of Ray takes some seconds: these tests share three.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scaling.channel.base import LocalChannel
from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig
from scaling.launch.attempt import Attempt
from scaling.launch.console import ProgressLine
from scaling.parallel.grid import Ranks
from scaling.runs.startup import begin
from scaling.studies.trials import Study, declare
from tests.support.runs import COMPARED, TINY, Workplace, descendants, read_lines

STEP = 8 * 64
LENGTHS = (240, 300, 360)
"""Lengths in steps. Branches part at four fifths of them, long after the stop below."""
WORDS = (
    *TINY,
    "study=wsd",
    f"study.tokens=[{','.join(str(n * STEP) for n in LENGTHS)}]",
    "schedule=wsd",
    "train.sample_tokens=0",
    "cluster.devices_per_node=2",
    "schedule.warmup_tokens=5120",
)


@dataclass
class Place:
    """A directory for the study's runs."""

    workplace: Workplace
    root: Path

    def words(self, *more: str) -> tuple[str, ...]:
        cache = f"data.cache_dir={self.workplace.root / 'cache'}"
        return (*WORDS, f"run.root={self.root}", f"data.path='{self.workplace.text}'", cache, *more)

    def study(self) -> Study:
        jobs = [self.words(f"train.seed={seed}") for seed in (0, 1)]
        return declare([(compose(words), words) for words in jobs])

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "scaling.run", "-m", *self.words("train.seed=0,1", *more)]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.root.parent,
            env=os.environ | {"HOME": self.workplace.home},
        )

    def finish(self, *more: str) -> tuple[int, str]:
        process = self.start(*more)
        output, _ = process.communicate(timeout=200)
        return process.returncode, output

    def snapshot(self) -> dict[str, bytes]:
        files = (
            path for path in self.root.rglob("*") if path.is_file() and path.name != "driver.lock"
        )
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files}


def trunk(study: Study, seed: int) -> Path:
    return next(
        t.run_dir.path for t in study.trials if t.branch is None and t.config.train.seed == seed
    )


def branches(study: Study, seed: int) -> list[Any]:
    return [
        trial
        for trial in study.trials
        if trial.branch is not None and trial.config.train.seed == seed
    ]


def wait_for_step(process: subprocess.Popen[str], run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 90
    while (
        max((record["step"] for record in read_lines(run_dir / "metrics.jsonl")), default=0) < step
    ):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers(process: subprocess.Popen[str]) -> list[int]:
    found = [pid for pid, _ in descendants(process.pid)]
    return [
        pid for pid in found if b"ray::WarmWorker.run" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@dataclass
class Outcome:
    place: Place
    study: Study
    codes: list[int]
    outputs: list[str]
    snapshots: list[dict[str, bytes]]


@pytest.fixture(scope="module")
def outcome(workplace: Workplace) -> Outcome:
    place = Place(workplace, workplace.root / "studies")
    place.root.mkdir()
    study = place.study()
    codes, outputs, snapshots = [], [], []

    def ended(process: subprocess.Popen[str]) -> None:
        outputs.append(process.communicate(timeout=200)[0])
        codes.append(process.returncode)
        snapshots.append(place.snapshot())

    stopped = place.start()  # stopped by a signal
    for seed in (0, 1):
        wait_for_step(stopped, trunk(study, seed), random.Random(os.getpid()).randint(12, 40))
    stopped.send_signal(signal.SIGTERM)
    ended(stopped)

    # one trunk without a sound checkpoint, and the other's worker killed
    broken = trunk(study, 1) / "checkpoints"
    moved = broken.with_name("sound")
    shutil.copytree(broken, moved)
    for file in broken.glob("*/*.safetensors"):
        file.write_bytes(b"")
    hurt = place.start("study.max_attempts=2")
    before = max(record["step"] for record in read_lines(trunk(study, 0) / "metrics.jsonl"))
    wait_for_step(hurt, trunk(study, 0), before + 15)
    for pid in workers(hurt):
        os.kill(pid, signal.SIGKILL)
    ended(hurt)

    shutil.rmtree(broken)
    moved.rename(broken)
    for more in (("study.max_attempts=9",), ("study.max_attempts=9",)):  # mended, and once more
        ended(place.start(*more))
    return Outcome(place, study, codes, outputs, snapshots)


def kinds(path: Path) -> list[str]:
    life = ("start", "resume", "branched", "preempted", "failed", "finished")
    return [event["kind"] for event in read_lines(path / "events.jsonl") if event["kind"] in life]


def test_exit_codes_say_how_a_study_ended(outcome: Outcome) -> None:
    assert outcome.codes == [75, 1, 0, 0], "\n".join(outcome.outputs)
    assert "the same command continues from there" in outcome.outputs[0]
    assert "given up" in outcome.outputs[1]
    assert "study.max_attempts above 2" in outcome.outputs[1]


def test_a_failed_trial_stops_its_branches_alone(outcome: Outcome) -> None:
    rows = list(csv.DictReader(outcome.snapshots[1]["wsd/results.csv"].decode().splitlines()))
    states = {(row["train.seed"], row["schedule.kind"], row["state"]) for row in rows}
    assert states == {
        ("0", "constant", "finished"),
        ("0", "wsd", "finished"),
        ("1", "constant", "given up"),
        ("1", "wsd", "failed"),
    }
    assert kinds(trunk(outcome.study, 1))[:4] == ["start", "preempted", "failed", "failed"]
    assert "its trunk" in outcome.outputs[1]


def test_a_killed_worker_costs_an_attempt_and_nothing_else(outcome: Outcome) -> None:
    life = kinds(trunk(outcome.study, 0))
    assert life == ["start", "preempted", "resume", "failed", "resume", "finished"]
    events = read_lines(trunk(outcome.study, 0) / "events.jsonl")
    reason = next(e["reason"] for e in events if e["kind"] == "failed")
    assert [e["failure"] for e in events if e["kind"] == "worker_failed"] == ["lost"]
    assert "rank 0 ended without an error" in reason


def test_what_is_finished_is_left_as_it_is(outcome: Outcome) -> None:
    _, second, third, fourth = outcome.snapshots
    done = [trial.name for trial in branches(outcome.study, 0)] + [trunk(outcome.study, 0).name]
    kept = {name: content for name, content in second.items() if name.split("/")[1] in done}
    assert len(kept) > 30
    assert {name: third[name] for name in kept} == kept
    assert fourth == third
    assert outcome.outputs[3].count("finished") >= 8
    assert {path.split("/")[1] for path in fourth} == {
        *(t.name for t in outcome.study.trials),
        "results.csv",
    }


def test_a_branch_is_the_run_that_never_branched(outcome: Outcome, tmp_path: Path) -> None:
    last = branches(outcome.study, 0)[-1]
    assert kinds(last.run_dir.path)[:2] == ["branched", "resume"]
    alone = train_alone(last.config, outcome.place, tmp_path)
    assert compared(last.run_dir.path) == compared(alone)
    summary = json.loads((last.run_dir.path / "summary.json").read_text())
    assert summary["steps"] == LENGTHS[-1]
    records = read_lines(last.run_dir.path / "metrics.jsonl")
    assert summary["wall_s"] < 0.7 * records[-1]["wall_s"], "the trunk's time is counted twice"


def compared(path: Path) -> list[dict[str, float]]:
    return [
        {key: record[key] for key in ("step", *COMPARED) if key in record}
        for record in read_lines(path / "metrics.jsonl")
    ]


def train_alone(config: RunConfig, place: Place, root: Path) -> Path:
    """The same run from its first step, in this process."""
    from scaling.data.prepare.cached import ensure_corpus
    from scaling.planner.run_plan import make_plan
    from scaling.worker.rank import run_worker
    from scaling.worker.spec import WorkerSpec

    config = config.model_copy(update={"run": config.run.model_copy(update={"root": str(root)})})
    with Attempt(config, make_plan(config), ProgressLine(Console()), begin()) as attempt:
        attempt.open()
    run_dir = attempt.run_dir
    spec = WorkerSpec(
        config=config,
        plan=make_plan(config),
        run_dir=str(run_dir.path),
        corpus_dir=str(ensure_corpus(config.data, config.tokenizer)),
    )
    assert run_worker(spec, Ranks(0, 1, 0), LocalChannel(), rendezvous="")["finished"]
    return run_dir.path
