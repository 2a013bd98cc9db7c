"""Fit a downstream metric against the loss, by a sigmoid or an exponential. This is the second step
from compute to a metric.

    sigmoid      metric = b + a / (1 + exp(k (L - L0)))      Bhagia et al. 2024 (arXiv:2412.04403),
                 eq. 2
    exponential  metric = eps - k exp(-gamma L)              Gadre et al. 2024 (arXiv:2403.08540),
                 eq. 5 (an error rate)

The first step, compute -> loss, is any form of `forms.py`. Both curves are linear in two of their
parameters: the others are searched on a grid, then all are refined by least squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from scaling.errors import DataError
from scaling.laws.forms import Array
from scaling.laws.points import Points
from scaling.units import counted

MIN_POINTS = 6
"""Least number of points for a curve of up to four parameters (assumption)."""
_SLOPES = np.geomspace(0.1, 30, 40)
"""Values of k and gamma on the search grid, in 1/nat."""


def sigmoid(p: Array, loss: Array) -> Array:
    """p = (a, b, k, L0)"""
    a, b, k, L0 = p
    # the logistic function as a tanh, which does not overflow
    return np.asarray(b + a * 0.5 * (1 - np.tanh(k * (loss - L0) / 2)))


def exponential(p: Array, loss: Array) -> Array:
    """p = (eps, k, gamma)"""
    eps, k, gamma = p
    return np.asarray(eps - k * np.exp(-gamma * loss))


@dataclass(frozen=True)
class DownstreamFit:
    """A fitted curve. curve: sigmoid or exponential; p (P): the parameters, draws (draws, P): those
    of each resampling; rms: residual in the metric's unit."""

    curve: str
    parameters: dict[str, float]
    p: Array
    draws: Array
    rms: float

    def metric(self, loss: Array) -> Array:
        return _CURVES[self.curve][0](self.p, loss)

    def metric_draws(self, losses: Array) -> Array:
        """The metric of each draw of the loss, under one draw of the curve each, in turn:
        (draws)."""
        function = _CURVES[self.curve][0]
        return np.array(
            [
                float(function(self.draws[i % len(self.draws)], loss))
                for i, loss in enumerate(losses)
            ]
        )


def fit_downstream(points: Points, curve: str, *, draws: int = 200, seed: int = 0) -> DownstreamFit:
    """Fit the metric against the loss. Raises DataError without a metric, or with too few
    points."""
    if points.metric is None:
        raise DataError(
            "the points have no downstream metric", "metric", "Name its column: metric=COLUMN."
        )
    if len(points) < MIN_POINTS:
        raise DataError(
            f"{counted(len(points), 'point')} with a metric, and {MIN_POINTS} are needed", "metric"
        )
    best = _fit(curve, points.loss, points.metric)
    generator, names = np.random.default_rng(seed), np.unique(points.runs)
    drawn = []
    for _ in range(draws):
        chosen = generator.choice(names, len(names))
        rows = np.concatenate([np.flatnonzero(points.runs == name) for name in chosen])
        if len(np.unique(points.loss[rows])) > len(best):
            drawn.append(_fit(curve, points.loss[rows], points.metric[rows], start=best))
    rms = float(np.sqrt(((_CURVES[curve][0](best, points.loss) - points.metric) ** 2).mean()))
    return DownstreamFit(
        curve,
        dict(zip(_CURVES[curve][1], map(float, best), strict=True)),
        best,
        np.array(drawn),
        rms,
    )


def _fit(curve: str, loss: Array, metric: Array, start: Array | None = None) -> Array:
    function = _CURVES[curve][0]
    starts = _starts(curve, loss, metric) if start is None else [start]
    scale = float(metric.std()) or 1.0
    best = min(starts, key=lambda p: float(((function(p, loss) - metric) ** 2).sum()))
    return least_squares(
        lambda p: (function(p, loss) - metric) / scale, best, x_scale="jac", xtol=1e-12, ftol=1e-12
    ).x


def _starts(curve: str, loss: Array, metric: Array) -> list[Array]:
    """The best linear parameters at each point of the grid."""
    found = []
    middles = np.linspace(loss.min(), loss.max(), 25) if curve == "sigmoid" else [0.0]
    for slope in _SLOPES:
        for middle in middles:
            if curve == "sigmoid":
                basis = sigmoid(np.array([1.0, 0.0, slope, middle]), loss)
                (a, b), *_ = np.linalg.lstsq(
                    np.column_stack([basis, np.ones_like(loss)]), metric, rcond=None
                )
                found.append(np.array([a, b, slope, middle]))
            else:
                shift = loss.min()
                basis = -np.exp(-slope * (loss - shift))
                (eps, k), *_ = np.linalg.lstsq(
                    np.column_stack([np.ones_like(loss), basis]), metric, rcond=None
                )
                found.append(np.array([eps, k * np.exp(slope * shift), slope]))
    return found


_CURVES: dict[str, tuple[Callable[[Array, Array], Array], tuple[str, ...]]] = {
    "sigmoid": (sigmoid, ("a", "b", "k", "L0")),
    "exponential": (exponential, ("eps", "k", "gamma")),
}
CURVES = tuple(_CURVES)
