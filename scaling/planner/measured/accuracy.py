"""How good predictions are: errors of verdict, memory, MFU, choice and interval, per source and
pooled."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scaling.planner.cost.constants import CONSTANTS, Constants
from scaling.planner.measured.calibrate import time_scale
from scaling.planner.measured.table import Case
from scaling.planner.prediction import Prediction, predict_case

BASELINE_MFU = 0.40
"""The rule of thumb that a planner must beat."""

QUESTION = (
    "source",
    "system",
    "model",
    "n_layers",
    "hidden",
    "gpu",
    "gpu_mem_gb",
    "n_gpus",
    "seq_len",
    "precision",
    "global_batch_seqs",
    "attention_impl",
)
"""Columns that a choice of layout is made for: rows that agree in them differ in their layouts."""


@dataclass(frozen=True)
class Scored:
    """A row and what was predicted of it; mfu is scaled where the source was calibrated, and
    `spread` half of its 80 % interval in the logarithm. `kept`: it counts for the errors."""

    case: Case
    prediction: Prediction
    mfu: float | None
    spread: float
    kept: bool = True

    @property
    def mfu_interval(self) -> list[float] | None:
        return (
            None
            if self.mfu is None
            else [self.mfu * math.exp(sign * self.spread) for sign in (-1, 1)]
        )


def score(
    cases: Sequence[Case], constants: Constants = CONSTANTS, *, calibrate: bool = False
) -> list[Scored]:
    """Predict every row. calibrate: one row of each source gives its scale and counts no more: the
    middle one of the half of higher predicted MFU, since the rates of others depend on more than
    the machine."""
    found = [(case, predict_case(case, constants)) for case in cases]
    rows = [
        Scored(case, prediction, prediction.mfu, constants.time_spread)
        for case, prediction in found
    ]
    if not calibrate:
        return rows
    done = []
    for group in _by(rows, lambda row: row.case.source).values():
        measured = sorted(
            (row for row in group if row.case.mfu and row.mfu), key=lambda row: row.mfu or 0.0
        )
        if len(measured) < 2:
            done += group
            continue
        chosen = measured[3 * len(measured) // 4]
        scale = time_scale([chosen.case], constants)
        for row in group:
            mfu = row.mfu / scale if row.mfu else None
            done.append(
                Scored(
                    row.case,
                    row.prediction,
                    mfu,
                    constants.calibrated_spread,
                    kept=row is not chosen,
                )
            )
    return done


def report(rows: Sequence[Scored], constants: Constants = CONSTANTS) -> dict[str, Any]:
    """{"sources": {name: errors}, "pooled": errors}; a figure for which there are no rows is
    None."""
    sources = {
        name: _errors(group, constants)
        for name, group in sorted(_by(rows, lambda row: row.case.source).items())
    }
    pooled = _errors(rows, constants)
    for name in ("mfu_median", "baseline_median", "memory_median"):
        known = [errors[name] for errors in sources.values() if errors[name] is not None]
        pooled[f"mean_of_{name}s"] = statistics.fmean(known) if known else None
    return {"sources": sources, "pooled": pooled}


def row_results(rows: Sequence[Scored], constants: Constants = CONSTANTS) -> list[dict[str, Any]]:
    """One plain dict a row, in the table's order."""
    return [
        {
            "source": row.case.source,
            "model": row.case.work.name,
            "memory_gb": round(seen_bytes(row) / 2**30, 3),
            "memory_interval_gb": [
                round(seen_bytes(row) / 2**30 * math.exp(s * constants.memory_spread), 3)
                for s in (-1, 1)
            ],
            "need_gb": round(row.prediction.need_bytes / 2**30, 3),
            "fits": row.prediction.fits,
            "verdict": row.prediction.verdict,
            "p_fits": row.prediction.p_fits,
            "mfu": row.mfu,
            "mfu_interval": row.mfu_interval,
            "measured": {
                "mfu": row.case.mfu,
                "fits": row.case.fits,
                "memory_gb": _gb(row.case.peak_memory_bytes),
            },
        }
        for row in rows
    ]


def seen_bytes(row: Scored) -> int:
    return row.prediction.memory.seen(row.case.memory_metric)


def _errors(rows: Sequence[Scored], constants: Constants) -> dict[str, Any]:
    labelled = [row for row in rows if row.case.fits is not None]
    oom, fitting = (
        [row for row in labelled if not row.case.fits],
        [row for row in labelled if row.case.fits],
    )
    memory = [
        math.log(seen_bytes(row) / row.case.peak_memory_bytes)
        for row in rows
        if row.case.peak_memory_bytes
    ]
    pairs = [
        (row.mfu, row.case.mfu, row.spread) for row in rows if row.kept and row.case.mfu and row.mfu
    ]
    errors = [abs(predicted / measured - 1) for predicted, measured, _ in pairs]
    inside = [
        abs(math.log(predicted / measured)) <= spread for predicted, measured, spread in pairs
    ]
    first, three = _choices(rows)
    return {
        "rows": len(rows),
        "verdicts": len(labelled),
        "verdict_accuracy": _share(row.prediction.fits == row.case.fits for row in labelled),
        "oom_recall": _share(not row.prediction.fits for row in oom),
        "fit_recall": _share(row.prediction.fits for row in fitting),
        "memory_rows": len(memory),
        "memory_median": _quantile([abs(math.exp(value) - 1) for value in memory], 0.5),
        "memory_p90": _quantile([abs(math.exp(value) - 1) for value in memory], 0.9),
        "memory_inside": _share(abs(value) <= constants.memory_spread for value in memory),
        "mfu_rows": len(pairs),
        "mfu_median": _quantile(errors, 0.5),
        "mfu_p90": _quantile(errors, 0.9),
        "mfu_inside": _share(inside),
        "baseline_median": _quantile(
            [abs(BASELINE_MFU / measured - 1) for _, measured, _ in pairs], 0.5
        ),
        "choices": len(first),
        "choice_first": statistics.fmean(first) if first else None,
        "choice_three": statistics.fmean(three) if three else None,
    }


def _choices(rows: Sequence[Scored]) -> tuple[list[float], list[float]]:
    """How much slower than the best measured layout the first ranked one is, and the best of the
    first three. One value for each question with several layouts; 1 if the choice ran out of
    memory."""
    first, three = [], []
    for group in _by(
        rows, lambda row: tuple(row.case.row.get(name, "") for name in QUESTION)
    ).values():
        known = [
            row for row in group if row.case.mfu or row.case.row.get("status", "").lower() == "oom"
        ]
        best = max((row.case.mfu or 0.0 for row in known), default=0.0)
        if len({row.prediction.layout for row in known}) < 2 or not best:
            continue
        ranked = sorted(known, key=lambda row: (not row.prediction.fits, -(row.mfu or 0.0)))
        lost = [1 - (row.case.mfu or 0.0) / best for row in ranked]
        first.append(lost[0])
        three.append(min(lost[:3]))
    return first, three


def _by(rows: Iterable[Scored], key: Callable[[Scored], Any]) -> dict[Any, list[Scored]]:
    groups: dict[Any, list[Scored]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _share(values: Iterable[bool]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None


def _quantile(values: Sequence[float], part: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else None


def _gb(n_bytes: float | None) -> float | None:
    return None if n_bytes is None else n_bytes / 2**30
