"""Searches as commands: ASHA stopped and continued; a population repeated; Optuna's draws. Ray Tune
takes seconds to start."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.runs import TINY, Workplace, read_lines

STEP = 8 * 64
SPACE = "study.space={optim.lr:{low:1e-4,high:3e-2,log:true}}"


def start(workplace: Workplace, root: Path, *words: str) -> subprocess.Popen[str]:
    given = (
        *TINY,
        f"train.n_tokens={120 * STEP}",
        "train.sample_tokens=0",
        "schedule=constant",
        "schedule.warmup_tokens=2048",
        "train.eval_every=null",
        "train.eval_sequences=16",
        SPACE,
        "cluster.devices_per_node=2",
        *words,
    )
    place = (
        f"run.root={root}",
        f"data.path='{workplace.text}'",
        f"data.cache_dir={workplace.root / 'cache'}",
    )
    return subprocess.Popen(
        [sys.executable, "-m", "scaling.run", "-m", *given, *place],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=workplace.root,
        env=os.environ | {"HOME": workplace.home},
    )


def ended(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=280)
    return output


def rows(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((directory / "results.csv").read_text().splitlines()))


def test_asha_stops_the_bad_and_goes_on_where_it_was_stopped(
    workplace: Workplace, tmp_path: Path
) -> None:
    words = (
        "study=asha",
        "study.n_trials=6",
        f"study.first_rung_tokens={12 * STEP}",
        "study.reduction_factor=3",
    )
    first = start(workplace, tmp_path, *words)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "asha").glob("*/checkpoints/step-*")):
        assert first.poll() is None, ended(first)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    output = ended(first)
    assert first.returncode == 75, output
    drawn = [
        entry["run"]
        for entry in json.loads((tmp_path / "asha" / "search.json").read_text())["trials"]
    ]
    second = start(workplace, tmp_path, *words)
    output = ended(second)
    assert second.returncode == 0, output
    found = rows(tmp_path / "asha")
    assert len(found) == 6
    assert {row["run"] for row in found} >= set(drawn), (
        "what was drawn before the stop is drawn again"
    )
    assert len([path for path in (tmp_path / "asha").iterdir() if path.is_dir()]) == 6
    tokens = {row["run"]: int(row["n_tokens"]) for row in found}
    assert set(tokens.values()) <= {12 * STEP, 36 * STEP, 108 * STEP, 120 * STEP}
    assert 1 <= sum(row["state"] == "finished" for row in found) < 6
    assert all((row["state"] == "finished") == (tokens[row["run"]] == 120 * STEP) for row in found)
    best = min(found, key=lambda row: float(row["val_loss"]))
    assert best["state"] == "finished"
    for path in (tmp_path / "asha").glob("*/metrics.jsonl"):
        steps = [record["step"] for record in read_lines(path) if "train/loss" in record]
        assert steps == sorted(set(steps)), "no step is made twice"


@pytest.mark.slow
def test_a_population_is_the_same_when_repeated(workplace: Workplace, tmp_path: Path) -> None:
    words = ("study=pbt", "study.n_trials=4", f"study.interval_tokens={40 * STEP}")
    for _ in range(2):
        process = start(workplace, tmp_path, *words)
        output = ended(process)
        assert process.returncode == 0, output
    found = rows(tmp_path / "pbt")
    assert len([path for path in (tmp_path / "pbt").iterdir() if path.is_dir()]) == len(found)
    assert sum(row["state"] == "finished" for row in found) == 4
    replaced = [row for row in found if row["state"] == "pruned"]
    assert len(found) == 4 + len(replaced)
    children = [row for row in found if row["train.parent"]]
    assert len(children) == len(replaced) >= 1
    for row in children:
        trunk, step = row["train.parent"].split("@")
        path = tmp_path / "pbt" / row["run"]
        (parent,) = (tmp_path / "pbt").glob(f"*-{trunk[:8]}")
        own, theirs = (read_lines(p / "metrics.jsonl") for p in (path, parent))
        assert [r for r in own if r["step"] <= int(step)] == [
            r for r in theirs if r["step"] <= int(step)
        ]
    assert (
        sum(
            len([e for e in read_lines(p) if e["kind"] == "finished"])
            for p in (tmp_path / "pbt").glob("*/events.jsonl")
        )
        == 4
    )


@pytest.mark.slow
def test_optuna_draws_near_what_was_good(workplace: Workplace, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    process = start(
        workplace, tmp_path, "study=bayesian", "study.n_trials=14", f"train.n_tokens={30 * STEP}"
    )
    output = ended(process)
    assert process.returncode == 0, output
    found = rows(tmp_path / "bayesian")
    assert len(found) == 14
    assert all(row["state"] == "finished" for row in found)
    rates = [
        entry["values"]["optim.lr"]
        for entry in json.loads((tmp_path / "bayesian" / "search.json").read_text())["trials"]
    ]
    best = float(min(found, key=lambda row: float(row["val_loss"]))["optim.lr"])
    late = [abs(rate / best) for rate in rates[-4:]]
    assert sum(1 / 8 < ratio < 8 for ratio in late) >= 3, (
        "after ten random ones TPE looks where it was good"
    )
