"""The results of a study, one row per trial: as results.csv, on the screen, and as W&B's table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling.errors import RunDirError
from scaling.laws.from_runs import RESULTS
from scaling.metrics import names
from scaling.metrics.names import TRAIN_LOSS
from scaling.metrics.record import read_metrics, sampled
from scaling.planner.cost.counts import count
from scaling.runs.files import write_atomic
from scaling.screen import Column, FittedTable, sparkline
from scaling.studies.labels import common_name, short_names, shown, shown_keys, varied_columns
from scaling.studies.trials import Standing, Study, Trial
from scaling.units import format_count, format_duration, format_flops

MEASURED = (
    "val_loss",
    "best_val_loss",
    "train_loss",
    "wall_s",
    "training_s",
    "device_s",
    "restarts",
)
"""Numbers of summary.json in a row; empty until the trial finishes."""

Row = dict[str, Any]


def result_rows(study: Study, standings: Mapping[str, Standing]) -> list[Row]:
    """One row per trial, in the study's order: id, state, varied keys, N, D, C and the measured
    results."""
    return [_row(trial, standings[trial.identity]) for trial in study.trials]


def _row(trial: Trial, standing: Standing) -> Row:
    counts = count(trial.config)
    row: Row = {
        "run": trial.name,
        "id": trial.config.run_id,
        "state": standing.state,
        "failures": standing.failures,
    }
    row |= dict(trial.varied)
    row |= {"n_params": counts.n_params, "n_params_non_embedding": counts.n_params_non_embedding}
    row |= {"n_tokens": trial.n_tokens, "flops": trial.flops}
    try:
        summary = trial.run_dir.read_summary() if standing.state == "finished" else None
    except RunDirError:
        summary = None
    if summary is None:
        return row | dict.fromkeys(MEASURED) | _so_far(trial)
    return row | {name: summary.get(name) for name in MEASURED}


def _so_far(trial: Trial) -> Row:
    """Tokens, FLOPs and held-out loss of a trial that a search has pruned; empty for other
    trials."""
    try:
        if trial.run_dir.state() != "pruned":
            return {}
        wanted = (names.N_TOKENS, names.FLOPS, names.VAL_LOSS)
        records = [
            r for r in read_metrics(trial.run_dir.metrics, only=wanted) if names.VAL_LOSS in r
        ]
    except RunDirError:
        return {}
    last = records[-1] if records else None
    if last is None:
        return {}
    return {
        "n_tokens": int(last[names.N_TOKENS]),
        "flops": last[names.FLOPS],
        "val_loss": last[names.VAL_LOSS],
    }


def write_results(rows: list[Row], directory: Path) -> Path:
    """Write results.csv atomically, with numbers at full precision. Raises RunDirError."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = directory / RESULTS
    write_atomic(path, text.getvalue().encode())
    return path


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def results_table(study: Study, rows: list[Row]) -> FittedTable:
    """Trials with a loss, lowest first, then those without one."""
    keys, names = shown_keys(study.trials), short_names([trial.name for trial in study.trials])
    curves = {
        trial.name: sparkline(sampled(trial.run_dir.metrics, TRAIN_LOSS)) for trial in study.trials
    }
    columns = (
        *varied_columns(keys),
        Column("trial", wraps=True),
        Column("params", 2),
        Column("tokens", 2),
        Column("compute", 4),
        Column("curve", 5, left=True),
        Column("val loss"),
        Column("time", 3),
        Column("state", left=True),
    )
    table = FittedTable(columns, f"Results of {study.name}{common_name(names, study.trials)}")
    for row in sorted(
        rows, key=lambda row: row["val_loss"] if _is_finite(row["val_loss"]) else math.inf
    ):
        table.add(
            *(shown(row[key]) for key in keys),
            names[row["run"]],
            format_count(row["n_params"]),
            format_count(row["n_tokens"]),
            format_flops(row["flops"]),
            curves[row["run"]] or "-",
            "-" if row["val_loss"] is None else f"{row['val_loss']:.4f}",
            "-" if row["wall_s"] is None else format_duration(row["wall_s"]),
            row["state"],
        )
    return table
