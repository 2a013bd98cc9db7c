"""The results of a study: one row a trial, as results.csv in its directory, on the screen, and as W&B's table."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import RunDirError
from scaling.files import write_atomic
from scaling.laws.study import RESULTS
from scaling.metrics import names
from scaling.metrics.record import read_metrics
from scaling.plan.counts import count
from scaling.study.table import headings, shown, shown_keys
from scaling.study.trials import Standing, Study, Trial
from scaling.units import format_count, format_duration, format_flops

if TYPE_CHECKING:
    from rich.table import Table

MEASURED = ("val_loss", "best_val_loss", "train_loss", "wall_s", "training_s", "device_s", "restarts")
"""Numbers of summary.json that a row has; empty where the trial is not finished."""

Row = dict[str, Any]


def result_rows(study: Study, standings: Mapping[str, Standing]) -> list[Row]:
    """One row a trial, in the study's order: id, state, what it varies, N, D, C, and what came of it."""
    return [_row(trial, standings[trial.identity]) for trial in study.trials]


def _row(trial: Trial, standing: Standing) -> Row:
    counts = count(trial.config)
    row: Row = {"run": trial.name, "id": trial.config.run_id, "state": standing.state, "failures": standing.failures}
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
    """Tokens, FLOPs and held-out loss where a trial that a search has stopped stands; nothing of others."""
    try:
        if trial.run_dir.state() != "stopped":
            return {}
        wanted = (names.N_TOKENS, names.FLOPS, names.VAL_LOSS)
        records = [r for r in read_metrics(trial.run_dir.metrics, only=wanted) if names.VAL_LOSS in r]
    except RunDirError:
        return {}
    last = records[-1] if records else None
    if last is None:
        return {}
    return {"n_tokens": int(last[names.N_TOKENS]), "flops": last[names.FLOPS], "val_loss": last[names.VAL_LOSS]}


def write_results(rows: list[Row], directory: Path) -> Path:
    """results.csv, complete or as it was; numbers at full precision. Raises RunDirError."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = directory / RESULTS
    write_atomic(path, text.getvalue().encode())
    return path


def results_table(study: Study, rows: list[Row]) -> Table:
    """Trials from the lowest loss to the highest, then those without one."""
    from rich import box
    from rich.table import Table

    keys = shown_keys(study.trials)
    table = Table(
        box=box.SIMPLE_HEAD, title=f"Results of {study.name}", title_justify="left", header_style="bold", pad_edge=False
    )
    table.add_column("trial", overflow="fold", min_width=16)
    for heading in (*headings(keys), "params", "tokens", "compute", "val loss", "time", "state"):
        table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
    for row in sorted(rows, key=lambda row: math.inf if row["val_loss"] is None else row["val_loss"]):
        table.add_row(
            row["run"], *(shown(row[key]) for key in keys), format_count(row["n_params"]), format_count(row["n_tokens"]),
            format_flops(row["flops"]), "-" if row["val_loss"] is None else f"{row['val_loss']:.4f}",
            "-" if row["wall_s"] is None else format_duration(row["wall_s"]), row["state"],
        )  # fmt: skip
    return table
