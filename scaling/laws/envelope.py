"""Approach 1 of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.1): power laws through the runs
that no cheaper run beats.

Hoffmann et al. take the envelope of whole training curves. Here it is taken over the ends of runs,
because earlier points have not decayed. Few runs lie on it, and the sizes tried decide which: its
exponents are the least certain of the three approaches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.laws.forms import Array
from scaling.laws.intervals import resampled_weights
from scaling.laws.points import Points

MIN_FRONT = 4
"""Least number of runs on the envelope for a line (assumption: two fix it, two more can contradict
it)."""


SAME_COST = 0.01
"""Relative difference in FLOPs up to which two costs count as equal."""


@dataclass(frozen=True)
class Envelope:
    """The fit N* = exp(log_coefficient) C^exponent. The plural fields hold one value per resampling
    of the runs; rows: row numbers of the points on the envelope."""

    rows: tuple[int, ...]
    exponent: float
    log_coefficient: float
    exponents: Array
    log_coefficients: Array


def front(flops: Array, loss: Array) -> NDArray[np.intp]:
    """Row numbers, in order of flops, of the points with a lower loss than every point that costs
    no more.

    Costs within about 1 % count as equal, because budgets differ by the rounding of their steps.
    """
    order = np.lexsort((loss, np.round(np.log(flops) / SAME_COST)))
    before = np.concatenate([[np.inf], np.minimum.accumulate(loss[order])[:-1]])
    return order[loss[order] < before]


def fit_envelope(points: Points, *, draws: int = 1000, seed: int = 0) -> Envelope | None:
    """Fit the envelope; None where fewer than four runs lie on it."""
    rows = front(points.flops, points.loss)
    if len(rows) < MIN_FRONT:
        return None
    lines = [_line(points, rows)]
    for weights in resampled_weights(points.runs, draws, np.random.default_rng(seed)):
        drawn = np.flatnonzero(weights)
        on_it = drawn[front(points.flops[drawn], points.loss[drawn])]
        lines.append(_line(points, on_it) if len(on_it) >= MIN_FRONT else (np.nan, np.nan))
    exponents, constants = np.array(lines).T
    return Envelope(
        tuple(int(row) for row in rows), exponents[0], constants[0], exponents[1:], constants[1:]
    )


def _line(points: Points, rows: NDArray[np.intp]) -> tuple[float, float]:
    """Exponent and constant of log N on log C by least squares."""
    exponent, constant = np.polyfit(np.log(points.flops[rows]), np.log(points.n_params[rows]), 1)
    return float(exponent), float(constant)
