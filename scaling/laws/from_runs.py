"""Read the finished runs of a study as one table: N and planned FLOPs from plan.json, D and losses
from metrics.jsonl."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError, DataError, RunDirError, ScalingError
from scaling.laws.checks import WARMUP_SHARE, fittable, screen
from scaling.laws.points import Excluded, Points, complete, refuse_mixed
from scaling.metrics import names
from scaling.metrics.record import Record, read_metrics
from scaling.runs.directory import RunDir

N_COUNTS = {"with_embeddings": "n_params", "without_embeddings": "n_params_non_embedding"}
"""Ways to count parameters -> the key in plan.json's counts."""
_COMPARABLE = ("data", "tokenizer", "objective")
"""Sections of the configuration that decide what a loss measures."""
_DECAYING = ("cosine", "wsd")
_READ = (*names.POSITION, names.TRAIN_LOSS, names.VAL_LOSS)
RESULTS = "results.csv"
"""The file of a study's results, beside its runs (written by `scaling.studies.results`)."""


@dataclass(frozen=True)
class _Finished:
    name: str
    config: RunConfig
    counts: dict[str, Any]
    last: Record
    loss: float


def points_of_study(
    root: Path,
    *,
    n_counts: str = "with_embeddings",
    c_counts: str = "exact",
    keep: Collection[str] = (),
) -> Points:
    """Every finished run in `root` or one level below it, with its last held-out loss.

    n_counts: with_embeddings or without_embeddings; c_counts: exact or 6ND. keep: kinds of flagged
    runs that stay (see checks.REASONS). Runs that are unfinished, damaged, diverged, undecayed or
    mostly warm-up are left out, each with a reason. Raises DataError where no run is left, or where
    the runs differ in data, tokenizer or objective.
    """
    if n_counts not in N_COUNTS:
        raise ConfigError(
            f"n_counts={n_counts} is unknown", "n_counts", f"Use {' or '.join(N_COUNTS)}."
        )
    found: list[_Finished] = []
    excluded: list[Excluded] = []
    for path in run_directories(root):
        name = str(path.relative_to(root)) if path != root else path.name
        run = _read(path, name)
        reason = run if isinstance(run, str) else _flagged(run, keep)
        if reason is not None:
            excluded.append(Excluded(name, reason))
        elif isinstance(run, _Finished):
            found.append(run)
    excluded += [
        Excluded(name, "not begun") for name in _listed(root) if not (root / name).is_dir()
    ]
    if not found:
        reasons = "; ".join(f"{e.run}: {e.reason}" for e in excluded[:3])
        raise DataError(
            f"{root} has no finished run ({reasons or 'no run directories'})",
            "study",
            "Finish some: the same command continues a study.",
        )
    _refuse_mixed_losses(found)
    n = np.array([float(run.counts[N_COUNTS[n_counts]]) for run in found])
    d = np.array([float(run.last[names.N_TOKENS]) for run in found])
    c = np.array([float(run.last[names.FLOPS]) for run in found]) if c_counts == "exact" else None
    n, d, c, definitions = complete(n, d, c, c_counts)
    return Points(
        n,
        d,
        c,
        np.array([run.loss for run in found]),
        np.arange(len(found)),
        tuple(run.name for run in found),
        replace(definitions, n_counts=n_counts.replace("_", " "), loss_of=names.VAL_LOSS),
        excluded=tuple(excluded),
        # the largest run is nearest to what a prediction recommends
        base=_to_start_from(found[int(np.argmax([run.last[names.FLOPS] for run in found]))].config),
    )


def allows_a_law(root: Path) -> bool:
    """Whether any form can be fitted to the finished runs at `root`. A sweep of the learning rate
    alone, for example, gives no law."""
    try:
        return None in fittable(screen(points_of_study(root))).values()
    except ScalingError:
        return False


def _to_start_from(config: RunConfig) -> RunConfig:
    """The part of this configuration that a recommended run keeps: without its directory, and
    without evaluations timed for its own length."""
    run = config.run.model_copy(update={"root": "runs", "name": None})
    return config.model_copy(
        update={"run": run, "train": config.train.model_copy(update={"eval_every": None})}
    )


def _listed(root: Path) -> list[str]:
    """The trials that a study's driver has listed, including those without a directory yet."""
    try:
        with (root / RESULTS).open(newline="", encoding="utf-8") as file:
            return [row["run"] for row in csv.DictReader(file) if row.get("run")]
    except OSError:
        return []


def run_directories(root: Path) -> Iterator[Path]:
    """The run directories in `root` or one level below it, by name. Raises ConfigError where there
    is no such directory."""
    if not root.is_dir():
        raise ConfigError(
            f"there is no directory {root}",
            "study",
            "Give the directory that holds the study's runs.",
        )
    if (root / "events.jsonl").is_file():
        yield root
        return
    yield from sorted(
        {
            path.parent
            for pattern in ("*/events.jsonl", "*/*/events.jsonl")
            for path in root.glob(pattern)
        }
    )


def _read(path: Path, name: str) -> _Finished | str:
    """The run, or the reason why it is left out."""
    run_dir = RunDir(path)
    try:
        state, plan = run_dir.state(), run_dir.read_plan()
        if state != "finished":
            return f"unfinished: {state}"
        config, records = run_dir.read_config(), read_metrics(run_dir.metrics, only=_READ)
    except RunDirError as error:
        return f"damaged: {error.what}"
    held_out = [record for record in records if names.VAL_LOSS in record]
    if plan is None or not held_out:
        return "it has no plan.json" if plan is None else "no held-out loss was recorded"
    loss = held_out[-1][names.VAL_LOSS]
    first = next(
        (record[names.TRAIN_LOSS] for record in records if names.TRAIN_LOSS in record), math.inf
    )
    if not math.isfinite(loss) or loss <= 0 or loss > first:
        return f"diverged: its loss ended at {loss:g}, after {first:g} at the beginning"
    counts = plan["counts"] | {"warmup": plan["warmup_tokens"], "decay": plan["decay_tokens"]}
    return _Finished(name, config, counts, held_out[-1], loss)


def _flagged(run: _Finished, keep: Collection[str]) -> str | None:
    schedule = run.config.schedule
    undecayed = schedule.kind not in _DECAYING or (
        schedule.kind == "wsd" and not run.counts["decay"]
    )
    if undecayed and "undecayed" not in keep:
        return (
            f"undecayed: schedule={schedule.kind} ends at a high learning rate "
            "(keep=undecayed fits it anyway)"
        )
    if run.config.train.parent is not None:
        return "its values changed during training: it continues another run (train.parent)"
    share = run.counts["warmup"] / run.last[names.N_TOKENS]
    if share > WARMUP_SHARE and "warmup" not in keep:
        return f"warm-up dominated: {100 * share:.0f} % of its tokens"
    return None


def _refuse_mixed_losses(runs: list[_Finished]) -> None:
    sections = [{name: run.config.semantic()[name] for name in _COMPARABLE} for run in runs]
    for section in _COMPARABLE:
        for key in sections[0][section]:
            values = [str(s[section].get(key)) for s in sections]
            refuse_mixed(
                f"{section}.{key}", values, "Fit the runs of one in a study directory of their own"
            )
    refuse_mixed(
        "train.seq_len",
        [str(run.config.train.seq_len) for run in runs],
        "Fit the runs of one length",
    )
