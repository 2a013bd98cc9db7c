"""Fit the planner's few constants on tables of measurements; print how well each source is predicted by a fit on the others.

    python tools/fit_planner.py DIRECTORY                  the fit, and the leave-one-source-out table (about two minutes)
    python tools/fit_planner.py DIRECTORY --write          and write the constants and the table of docs/planner.md

DIRECTORY holds CSV files in the columns that `python -m scaling.plan.score` reads. Rates are fitted on 16-bit rows, with a robust
loss, each source weighing as 60 rows at most, and a prior that holds every constant to its physical guess.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from scaling.plan.accuracy import Scored, report, score, seen_bytes
from scaling.plan.constants import Constants
from scaling.plan.predict import predict_case
from scaling.plan.score import table_lines
from scaling.plan.table import Case, read_cases

ROOT = Path(__file__).resolve().parents[1]

GUESSES = {
    "gemm_volta": (0.72, 0.15), "gemm_ampere": (0.80, 0.10), "gemm_hopper": (0.66, 0.12), "fp8": (1.5, 0.2),
    "gemm_half": (60, 0.7),
    "misaligned": (1.25, 0.10), "attention_share": (0.60, 0.25), "attention_hopper": (0.8, 0.3), "bandwidth": (0.80, 0.20),
    "kernel_s": (1.8e-5, 0.4), "fabric_intra": (0.70, 0.4), "fabric_inter": (0.60, 0.5), "hop_s": (3e-6, 0.4),
    "latency_s": (3e-5, 0.6), "overlap": (0.70, 0.3), "step_s": (0.01, 0.4), "jitter": (0.005, 0.7),
}  # fmt: skip
"""Physical guess of each constant of time, and its spread in the logarithm: assumptions, made before the fit."""

MEMORY_GUESSES = {"context_bytes": (1.2e9, 0.4), "ring_bytes": (1.2e9, 0.6), "fragments": (1.15, 0.08)}
TIME_SCALE, MEMORY_SCALE = 0.12, 0.08
MOST_ROWS, HEAVIEST = 150, 60
PRIOR = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    cases = [case for path in sorted(given.directory.glob("*.csv")) for case in read_cases(path)]
    constants = fit(cases)
    unseen, calibrated = [], []
    for source in sorted({case.source for case in cases}):
        held_out = [case for case in cases if case.source == source]
        others = fit([case for case in cases if case.source != source])
        unseen += score(held_out, others)
        calibrated += score(held_out, others, calibrate=True)
    constants = replace(constants, **spreads(unseen))
    text = [*table_lines(report(unseen, constants)), "", "with one row of each source as its scale:", ""]
    text += table_lines(report(calibrated, constants))
    print("\n".join(text))
    for field in fields(constants):
        print(f"{field.name} = {getattr(constants, field.name):.4g}")
    if given.write:
        write(constants, text)


def fit(cases: Sequence[Case]) -> Constants:
    """Time and memory apart: neither reads the other's constants, but for rows of unknown layout."""
    timed = [
        case
        for case in cases
        if case.mfu or (case.software.fp8 and case.source != "nvidia_nemo" and case.tokens_per_s_per_device)
    ]
    weighed = [case for case in cases if case.peak_memory_bytes]
    constants = _fit(Constants(), timed, GUESSES, _time_error, TIME_SCALE, PRIOR)
    return _fit(constants, weighed, MEMORY_GUESSES, _memory_error, MEMORY_SCALE, 0.5)


def _fit(
    start: Constants, cases: Sequence[Case], guesses: dict[str, tuple[float, float]],
    error: Callable[[Case, Constants], float], scale: float, prior: float,
) -> Constants:  # fmt: skip
    by_source: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_source[case.source].append(case)
    used, weights = [], []
    for rows in by_source.values():
        kept = rows[:: max(1, len(rows) // MOST_ROWS)]
        used += kept
        weights += [math.sqrt(min(len(kept), HEAVIEST) / len(kept))] * len(kept)

    def at(offsets: np.ndarray) -> Constants:
        named = zip(guesses.items(), offsets, strict=True)
        return replace(start, **{name: guess * math.exp(spread * offset) for (name, (guess, spread)), offset in named})

    def residuals(offsets: np.ndarray) -> np.ndarray:
        constants = at(offsets)
        errors = np.array([error(case, constants) for case in used]) / scale
        robust = np.sign(errors) * np.sqrt(np.log1p(errors**2))  # Cauchy's loss: rows that no constant explains weigh little
        return np.concatenate([np.array(weights) * robust, prior * offsets])

    return at(least_squares(residuals, np.zeros(len(guesses)), diff_step=0.02, max_nfev=12).x)


def _time_error(case: Case, constants: Constants) -> float:
    predicted = predict_case(case, constants).tokens_per_s_per_device
    assert predicted is not None
    assert case.tokens_per_s_per_device is not None
    return math.log(predicted / case.tokens_per_s_per_device)


def _memory_error(case: Case, constants: Constants) -> float:
    assert case.peak_memory_bytes is not None
    return math.log(predict_case(case, constants).memory.seen(case.memory_metric) / case.peak_memory_bytes)


def spreads(rows: Sequence[Scored]) -> dict[str, float]:
    """Half-widths that hold 80 % of the errors on unseen sources, each source weighing as 150 rows at most."""
    time = [(abs(math.log(row.mfu / row.case.mfu)), row.case.source) for row in rows if row.mfu and row.case.mfu]
    memory = [
        (abs(math.log(seen_bytes(row) / row.case.peak_memory_bytes)), row.case.source)
        for row in rows
        if row.case.peak_memory_bytes
    ]
    return {"time_spread": _weighed_quantile(time, 0.8), "memory_spread": _weighed_quantile(memory, 0.8)}


def _weighed_quantile(values: list[tuple[float, str]], part: float) -> float:
    n_rows: dict[str, int] = defaultdict(int)
    for _, source in values:
        n_rows[source] += 1
    weighed = sorted((value, min(n_rows[source], MOST_ROWS) / n_rows[source]) for value, source in values)
    total, passed = sum(weight for _, weight in weighed), 0.0
    for value, weight in weighed:
        passed += weight
        if passed >= part * total:
            return value
    return weighed[-1][0]


def write(constants: Constants, text: list[str]) -> None:
    """Into the defaults of scaling/plan/constants.py, and between the marks of docs/planner.md."""
    path = ROOT / "scaling" / "plan" / "constants.py"
    source = path.read_text()
    for field in fields(constants):
        source = re.sub(rf"^(    {field.name}: float = ).*$", rf"\g<1>{getattr(constants, field.name):.4g}", source, flags=re.M)
    path.write_text(source)
    page = ROOT / "docs" / "planner.md"
    if page.exists():
        block = "<!-- table: tools/fit_planner.py -->\n```text\n" + "\n".join(text) + "\n```\n<!-- end -->"
        page.write_text(
            re.sub(r"<!-- table: tools/fit_planner.py -->.*?<!-- end -->", lambda _: block, page.read_text(), flags=re.S)
        )


if __name__ == "__main__":
    main()
