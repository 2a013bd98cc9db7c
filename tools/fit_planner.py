"""Fit the planner's constants to tables of measurements. Print how well a fit to the other sources
predicts each source.

    python tools/fit_planner.py DIRECTORY                  the fit, and the leave-one-source-out
      table (about two minutes)
    python tools/fit_planner.py DIRECTORY --write          and write the constants and the table of
      docs/planner.md

DIRECTORY holds CSV files in the columns that `python -m scaling.plan score` reads. Rates are fitted
on 16-bit rows, with a robust loss, each source weighing as 60 rows at most, and a prior that holds
every constant to its physical guess.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from scaling.planner.cost.constants import Constants
from scaling.planner.cost.memory_model import memory_of
from scaling.planner.cost.time_model import step_time
from scaling.planner.measured.accuracy import Scored, report, score, seen_bytes
from scaling.planner.measured.score import table_lines
from scaling.planner.measured.table import Case, read_cases
from scaling.planner.prediction import MEANT, p_fits, predict, predict_case

ROOT = Path(__file__).resolve().parents[1]

GUESSES = {
    "gemm_volta": (0.75, 0.15),
    "gemm_ampere": (0.82, 0.10),
    "gemm_hopper": (0.70, 0.12),
    "fp8": (1.5, 0.2),
    "bandwidth": (0.80, 0.20),
    "kernel_s": (1.8e-5, 0.4),
    "fabric_inter": (0.60, 0.5),
}
"""Physical estimate of each fitted constant of time, and its spread in the logarithm: assumptions,
made before the fit."""

MEMORY_GUESSES = {
    "context_bytes": (1.2e9, 0.2),
    "ring_bytes": (1.0e9, 0.6),
    "fragments": (1.2, 0.04),
}
TIME_SCALE, MEMORY_SCALE = 0.12, 0.08
MOST_ROWS, HEAVIEST = 150, 60
PRIOR, MEMORY_PRIOR = 1.5, 0.5
VERDICT_SPREAD = 0.15
"""The `memory_spread` that weighs verdicts before it is known: assumption."""

MISLABELLED = 0.05
"""Share of verdicts that no memory model explains, such as those of runs with unreported
offloading: assumption."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    cases = [case for path in sorted(given.directory.glob("*.csv")) for case in read_cases(path)]
    constants = fit(cases)
    sources = sorted({case.source for case in cases})
    others = {source: fit([case for case in cases if case.source != source]) for source in sources}
    held_out = {source: [case for case in cases if case.source == source] for source in sources}
    constants, others = _with_spreads(constants, others, held_out)
    unseen = [row for source in sources for row in score(held_out[source], others[source])]
    calibrated = [
        row for source in sources for row in score(held_out[source], others[source], calibrate=True)
    ]
    text = [
        *table_lines(report(unseen, constants)),
        "",
        "with one row of each source as its scale:",
        "",
    ]
    text += table_lines(report(calibrated, constants))
    print("\n".join(text))
    for name, value in _fitted(constants):
        print(f"{name} = {value:.4g}")
    if given.write:
        write(constants, text)


def _fitted(constants: Constants) -> Iterator[tuple[str, float]]:
    names = (
        *GUESSES,
        *MEMORY_GUESSES,
        "time_spread",
        "calibrated_spread",
        "memory_spread",
        "between",
        "within",
    )
    return ((name, getattr(constants, name)) for name in names)


def _with_spreads(
    constants: Constants, others: dict[str, Constants], held_out: dict[str, list[Case]]
) -> tuple[Constants, dict[str, Constants]]:
    """The constants with the spreads of errors on unseen sources: first without scales, then with
    the scales that the spreads imply."""
    for calibrate in (False, True):
        rows = [
            row
            for source, cases in held_out.items()
            for row in score(cases, others[source], calibrate=calibrate)
        ]
        found = {"calibrated_spread": _spread(rows)} if calibrate else _spreads(rows)
        constants = replace(constants, **found)
        others = {source: replace(one, **found) for source, one in others.items()}
    return constants, others


def fit(cases: Sequence[Case]) -> Constants:
    """Fit memory first, because it decides which layouts a row of unknown layout can mean. Peaks
    and verdicts both count."""
    weighed = [case for case in cases if case.peak_memory_bytes or case.fits is not None]
    constants = _fit(
        replace(Constants(), memory_spread=VERDICT_SPREAD),
        weighed,
        MEMORY_GUESSES,
        _memory_residual,
        MEMORY_PRIOR,
    )
    timed = [_fitting(case, constants) for case in cases if case.mfu or _fitted_fp8(case)]
    return _fit(constants, timed, GUESSES, _time_residual, PRIOR)


def _fitted_fp8(case: Case) -> bool:
    """Leave NVIDIA's 8-bit rows out of the fit, because they include other optimisations."""
    return (
        case.software.fp8
        and case.source != "nvidia_nemo"
        and case.tokens_per_s_per_device is not None
    )


def _fitting(case: Case, constants: Constants) -> Case:
    """The row with those of its possible layouts that fit in memory."""
    if len(case.layouts) == 1:
        return case
    found = [
        predict(case.work, layout, case.software, case.machine, constants)
        for layout in case.layouts
    ]
    meant = tuple(one.layout for one in found if one.p_fits >= MEANT)
    return replace(case, layouts=meant or (predict_case(case, constants).layout,))


def _fit(
    start: Constants,
    cases: Sequence[Case],
    guesses: dict[str, tuple[float, float]],
    residual: Callable[[Case, Constants], float],
    prior: float,
) -> Constants:
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
        return replace(
            start,
            **{
                name: guess * math.exp(spread * offset) for (name, (guess, spread)), offset in named
            },
        )

    def residuals(offsets: np.ndarray) -> np.ndarray:
        constants = at(offsets)
        return np.concatenate(
            [np.array(weights) * [residual(case, constants) for case in used], prior * offsets]
        )

    return at(least_squares(residuals, np.zeros(len(guesses)), diff_step=0.02, max_nfev=12).x)


def _time_residual(case: Case, constants: Constants) -> float:
    times = [
        step_time(case.work, layout, case.software, case.machine, constants)
        for layout in case.layouts
    ]
    assert case.tokens_per_s_per_device is not None
    rate = max(
        layout.dp
        * layout.micro_batch_size
        * layout.grad_accum_steps
        * case.work.seq_len
        / time.step_time_s
        / layout.world_size
        for layout, time in zip(case.layouts, times, strict=True)
        if time is not None
    )
    return _cauchy(math.log(rate / case.tokens_per_s_per_device) / TIME_SCALE)


def _memory_residual(case: Case, constants: Constants) -> float:
    """The error of a measured peak, or the surprise of a verdict; for an unknown layout, the least
    over its layouts."""
    gpu, software = case.machine.kind == "gpu", case.software
    found = [
        memory_of(case.work, layout, software, gpu=gpu, constants=constants)
        for layout in case.layouts
    ]
    least = min(found, key=lambda estimate: estimate.total)
    squares = 0.0
    if case.peak_memory_bytes:
        squares += (
            _cauchy(
                math.log(least.seen(case.memory_metric) / case.peak_memory_bytes) / MEMORY_SCALE
            )
            ** 2
        )
    if case.fits is not None:
        p = p_fits(least.need, constants.usable * case.machine.memory_bytes, constants)
        squares -= 2 * math.log(MISLABELLED / 2 + (1 - MISLABELLED) * (p if case.fits else 1 - p))
    return math.sqrt(squares)


def _cauchy(error: float) -> float:
    """Cauchy's loss: rows that no constant explains have little weight."""
    return math.copysign(math.sqrt(math.log1p(error**2)), error)


def _spread(rows: Sequence[Scored]) -> float:
    """Half-width that holds 80 % of the errors of rates. Every source has the same weight, because
    an unseen table is a source, not a row."""
    kept = [
        (abs(math.log(row.mfu / row.case.mfu)), row.case.source)
        for row in rows
        if row.kept and row.mfu and row.case.mfu
    ]
    return _weighed_quantile(kept, 0.8)


def _spreads(rows: Sequence[Scored]) -> dict[str, float]:
    """The spreads of time; that of memory is the worst source's, since few sources have peaks. Also
    the deviations between sources and within one, from medians: 1.48 for a normal distribution."""
    peaks: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for row in rows:
        if row.case.peak_memory_bytes:
            source = row.case.source
            peaks[source].append(
                (abs(math.log(seen_bytes(row) / row.case.peak_memory_bytes)), source)
            )
    by_source: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.mfu and row.case.mfu:
            by_source[row.case.source].append(math.log(row.mfu / row.case.mfu))
    biases = {source: statistics.median(logs) for source, logs in by_source.items()}
    scatter = [
        statistics.median(abs(log - biases[source]) for log in logs)
        for source, logs in by_source.items()
    ]
    return {
        "time_spread": _spread(rows),
        "memory_spread": max(_weighed_quantile(errors, 0.8) for errors in peaks.values()),
        "between": 1.48 * statistics.median(map(abs, biases.values())),
        "within": 1.48 * statistics.median(scatter),
    }


def _weighed_quantile(values: list[tuple[float, str]], part: float) -> float:
    n_rows = Counter(source for _, source in values)
    weighed = sorted((value, 1 / n_rows[source]) for value, source in values)
    passed = 0.0
    for value, weight in weighed:
        passed += weight
        if passed >= part * len(n_rows):
            return value
    return weighed[-1][0]


def write(constants: Constants, text: list[str]) -> None:
    """Write the constants into scaling/planner/cost/constants.py, and the table between the marks
    in docs/planner.md."""
    path = ROOT / "scaling" / "plan" / "constants.py"
    source = path.read_text()
    for name, value in _fitted(constants):
        source = re.sub(rf"^(    {name}: float = ).*$", rf"\g<1>{value:.4g}", source, flags=re.M)
    path.write_text(source)
    page = ROOT / "docs" / "planner.md"
    if page.exists():
        block = (
            "<!-- table: tools/fit_planner.py -->\n```text\n"
            + "\n".join(text)
            + "\n```\n<!-- end -->"
        )
        page.write_text(
            re.sub(
                r"<!-- table: tools/fit_planner.py -->.*?<!-- end -->",
                lambda _: block,
                page.read_text(),
                flags=re.S,
            )
        )


if __name__ == "__main__":
    main()
