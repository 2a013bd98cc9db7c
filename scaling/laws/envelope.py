"""Approach 1 of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.1): power laws through the runs
that no cheaper run beats.

Hoffmann et al. take the envelope of whole training curves; here it is of the runs' ends, so that no
point is undecayed. Few runs lie on it, and which do depends on the sizes tried: its exponents are
the roughest of the three approaches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.laws.forms import Array
from scaling.laws.intervals import resampled_weights
from scaling.laws.results import Points

MIN_FRONT = 4
"""Runs on the envelope that a line needs (assumption: two fix it, two more can contradict it)."""


SAME_COST = 0.01
"""Relative difference in FLOPs that does not make a run cheaper."""


@dataclass(frozen=True)
class Envelope:
    """N* = exp(log_coefficient) C^exponent, and the same of each resampling of the runs (draws);
    rows of the points on it."""

    rows: tuple[int, ...]
    exponent: float
    log_coefficient: float
    exponents: Array
    log_coefficients: Array


def front(flops: Array, loss: Array) -> NDArray[np.intp]:
    """Row numbers, in order of flops, of the points with a lower loss than all that cost no more.

    Costs within about 1 % are one: runs of one budget differ by the rounding of their steps.
    """
    order = np.lexsort((loss, np.round(np.log(flops) / SAME_COST)))
    before = np.concatenate([[np.inf], np.minimum.accumulate(loss[order])[:-1]])
    return order[loss[order] < before]


def fit_envelope(points: Points, *, draws: int = 1000, seed: int = 0) -> Envelope | None:
    """None where fewer than four runs are on the envelope."""
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
