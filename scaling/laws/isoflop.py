"""Approach 2 of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.2): find the size with the lowest
loss for each compute budget, then fit a power law through these sizes.

The minimum of one budget's curve comes from a parabola in log x through a window of points, or from
Akima interpolation of log loss against log x as in Porian et al. 2024 (arXiv:2406.19146, section
3.1). x is N or D. A curve with its minimum at its edge does not show the optimum and is left out.
For the uncertainty, the losses are redrawn with their noise. The redraws give the median and spread
of each optimum, and one power law each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator

from scaling.laws.forms import Array
from scaling.laws.points import Excluded, Points

Rows = NDArray[np.intp]

TOLERANCE = 0.1
"""Relative half-width within which flops count as one budget: about the spread of published IsoFLOP
sets."""
MIN_SIZES = 4
"""Least number of different sizes on a curve: three fix a parabola, the fourth can contradict it.
"""
SAME_SIZE = 0.03
"""Relative gap between neighbouring sizes up to which they count as one (assumption: the loss
differs by less than noise)."""
WINDOW = 7
"""Number of points of a parabola: those nearest to the lowest."""
_FINE = 25
"""Points per gap of the Akima curve: Porian et al. 2024."""
_LEAST_NOISE = 1e-4
"""Least relative noise, where the residuals of a curve are nearly zero (assumption)."""


@dataclass(frozen=True)
class Curve:
    """One budget. Arrays (m) are in order of x, one entry per different size. n_star etc. are None
    without a minimum inside.

    log_std   standard deviation of log x* over the redraws
    trouble   why the curve does not count, or None
    """

    flops: float
    x: Array
    loss: Array
    x_star: float | None
    loss_star: float | None
    log_std: float | None
    trouble: str | None


@dataclass(frozen=True)
class IsoFlop:
    """The fit x* = exp(log_coefficient) C^exponent, and that of every redraw (draws)."""

    axis: str
    method: str
    curves: tuple[Curve, ...]
    exponent: float
    log_coefficient: float
    exponents: Array
    log_coefficients: Array
    noise: str
    left_out: tuple[Excluded, ...]


def find_budgets(
    flops: Array, sizes: Array, *, budgets: Sequence[float] = (), tolerance: float = TOLERANCE
) -> list[tuple[float, Rows]]:
    """(budget, row numbers) of every set of enough sizes with equal flops, in order of the budget.

    `budgets` gives the budgets, and their rows are those nearby. Without it they are found, the
    fullest window first, so that runs between two budgets join none of them.
    """
    if budgets:
        near = [
            (c, np.flatnonzero(np.abs(np.log(flops / c)) <= np.log1p(tolerance)))
            for c in sorted(budgets)
        ]
        return [(c, rows) for c, rows in near if _n_sizes(sizes[rows]) >= MIN_SIZES]
    order = np.argsort(flops, kind="stable")
    width, found = 2 * np.log1p(tolerance), []
    left = order
    # The fullest window is taken first; a sweep from below would split a budget at its edge.
    while len(left):
        logs = np.log(flops[left])
        ends = np.searchsorted(logs, logs + width + 1e-12, side="right")
        counts = ends - np.arange(len(left))
        start = int(counts.argmax())
        rows = left[start : ends[start]]
        if _n_sizes(sizes[rows]) < MIN_SIZES:
            break
        found.append((float(np.exp(np.median(np.log(flops[rows])))), rows))
        left = np.delete(left, np.arange(start, ends[start]))
    return sorted(found, key=lambda item: item[0])


def _n_sizes(x: Array) -> int:
    return len(_merge(x, x)[0])


def fit_isoflop(
    points: Points,
    *,
    axis: str = "n",
    method: str = "akima",
    noise: Sequence[tuple[float, float]] = (),
    budgets: Sequence[float] = (),
    draws: int = 1000,
    seed: int = 0,
    window: int = WINDOW,
) -> IsoFlop | None:
    """Fit approach 2; None where fewer than two budgets have a minimum inside.

    axis      "n" or "d"
    method    "akima" or "parabola"
    budgets   FLOPs of the budgets; empty: those at which enough sizes meet
    noise     (loss, standard deviation) pairs; the noise of a loss is interpolated between them, in
              logarithms. Empty: it is estimated from the distance of points to their parabolas
    """
    x = points.n_params if axis == "n" else points.n_tokens
    groups = find_budgets(points.flops, x, budgets=budgets)
    merged = [(c, *_merge(x[rows], points.loss[rows])) for c, rows in groups]
    relative = _estimated_noise([(xs, losses) for _, xs, losses in merged], window)
    generator = np.random.default_rng(seed)
    curves, stars = [], []
    for flops, xs, losses in merged:
        sigma = _given_noise(losses, noise) if noise else relative * losses
        # column 0 has no noise: it is the curve as measured
        redrawn = losses[:, None] + sigma[:, None] * np.hstack(
            [np.zeros((len(xs), 1)), generator.normal(size=(len(xs), draws))]
        )
        log_x, low = _minima(np.log(xs), redrawn, method, window)
        curves.append(_curve(flops, xs, losses, log_x, low))
        stars.append(log_x[1:])
    used = [i for i, curve in enumerate(curves) if curve.trouble is None]
    if len(used) < 2:
        return None
    fits = _power_laws([curves[i] for i in used], np.array([stars[i] for i in used]))
    in_use = {int(row) for _, rows in groups for row in rows}
    single = tuple(
        Excluded(points.names[i], "shares its budget with too few other sizes")
        for i in range(len(points))
        if i not in in_use
    )
    source = "given" if noise else f"estimated, {100 * relative:.2g} % of the loss"
    return IsoFlop(axis, method, tuple(curves), *fits, noise=source, left_out=single)


def _merge(x: Array, loss: Array) -> tuple[Array, Array]:
    """Sort the sizes, and give sizes that count as one their mean loss: an interpolation between
    them would be mostly noise."""
    order = np.argsort(x)
    log_x = np.log(x[order])
    index = np.concatenate([[0], np.cumsum(np.diff(log_x) > np.log1p(SAME_SIZE))])
    counts = np.bincount(index)
    return np.exp(np.bincount(index, log_x) / counts), np.bincount(index, loss[order]) / counts


def _curve(flops: float, x: Array, loss: Array, log_x: Array, low: Array) -> Curve:
    """Locate the minimum. log_x, low (1 + draws): place and height for the measured curve, then for
    each redraw; NaN at an edge."""
    drawn = log_x[1:][np.isfinite(log_x[1:])]
    # Where most redraws end at an edge, the minimum of the measured curve is an accident of noise.
    if 2 * len(drawn) < len(log_x) - 1:
        return Curve(flops, x, loss, None, None, None, _no_minimum(loss))
    # At least a third of a step of the sizes tried: closer than that their grid cannot tell (Porian
    # et al. 2024).
    floor = float(np.diff(np.log(x)).mean()) / 3
    log_std = max(float(drawn.std()), floor)
    return Curve(
        flops,
        x,
        loss,
        float(np.exp(np.median(drawn))),
        float(np.median(low[np.isfinite(low)])),
        log_std,
        None,
    )


def _no_minimum(loss: Array) -> str:
    lowest = int(loss.argmin())
    if 0 < lowest < len(loss) - 1:
        return "the points are too noisy or too close for a minimum between them"
    edge = "largest" if lowest else "smallest"
    return f"the lowest loss is at the {edge} value tried: the minimum may lie beyond"


def _minima(log_x: Array, losses: Array, method: str, window: int) -> tuple[Array, Array]:
    """Place (log x) and height of each column's minimum, NaN where it is at an edge. losses (m,
    draws)."""
    if method == "parabola":
        return _parabola_minima(log_x, losses, window)
    gaps = [np.linspace(a, b, _FINE, endpoint=False) for a, b in itertools.pairwise(log_x)]
    fine = np.concatenate([*gaps, log_x[-1:]])
    heights = Akima1DInterpolator(log_x, np.log(losses))(fine)
    lowest = heights.argmin(axis=0)
    edge = (lowest == 0) | (lowest == len(fine) - 1)
    columns = np.arange(losses.shape[1])
    return np.where(edge, np.nan, fine[lowest]), np.where(
        edge, np.nan, np.exp(heights[lowest, columns])
    )


def _parabola_minima(log_x: Array, losses: Array, window: int) -> tuple[Array, Array]:
    """Minima of a parabola through the `window` points nearest to the lowest one of the first
    column, the measured curve."""
    rows = window_rows(log_x, losses[:, 0], window)
    t = log_x[rows] - log_x[rows].mean()
    quadratic, linear, constant = np.polyfit(t, losses[rows], 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -linear / (2 * quadratic)
        height = constant - linear**2 / (4 * quadratic)
    inside = (quadratic > 0) & (vertex > t[0]) & (vertex < t[-1])
    return np.where(inside, vertex + log_x[rows].mean(), np.nan), np.where(inside, height, np.nan)


def window_rows(log_x: Array, loss: Array, window: int) -> Rows:
    """The `window` neighbouring rows whose middle is nearest to the lowest point."""
    size = min(window, len(log_x))
    start = int(np.clip(loss.argmin() - size // 2, 0, len(log_x) - size))
    return np.arange(start, start + size)


def _estimated_noise(curves: Sequence[tuple[Array, Array]], window: int) -> float:
    """Relative standard deviation about local parabolas in log loss, over all curves. It includes
    what the parabola misses."""
    squares, freedom = 0.0, 0
    for x, loss in curves:
        rows = window_rows(np.log(x), loss, window)
        if len(rows) > 3:
            t, y = np.log(x[rows]), np.log(loss[rows])
            squares += float(
                ((np.polyval(np.polyfit(t - t.mean(), y, 2), t - t.mean()) - y) ** 2).sum()
            )
            freedom += len(rows) - 3  # the parabola uses three degrees of freedom
    return max(_LEAST_NOISE, (squares / freedom) ** 0.5) if freedom else _LEAST_NOISE


def _given_noise(loss: Array, noise: Sequence[tuple[float, float]]) -> Array:
    """Interpolate the noise in the logarithms of loss and deviation. The nearest slope extends it
    beyond the ends."""
    x, y = np.log(np.array(sorted(noise))).T
    if len(x) == 1:
        return np.full(len(loss), np.exp(y[0]))
    t = np.log(loss)
    i = np.clip(np.searchsorted(x, t) - 1, 0, len(x) - 2)
    return np.exp(y[i] + (y[i + 1] - y[i]) * (t - x[i]) / (x[i + 1] - x[i]))


def _power_laws(curves: Sequence[Curve], stars: Array) -> tuple[float, float, Array, Array]:
    """Weighted least squares of log x* on log C: of the medians, and of each redraw. stars (curves,
    draws); NaN: no minimum."""
    log_c = np.log([curve.flops for curve in curves])
    weights = np.array([1 / float(curve.log_std or 1) ** 2 for curve in curves])
    middle = np.log([float(curve.x_star or np.nan) for curve in curves])
    exponent, constant = _lines(log_c, middle[:, None], weights)
    exponents, constants = _lines(log_c, stars, weights)
    return float(exponent[0]), float(constant[0]), exponents, constants


def _lines(x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Slope and constant of each column of y (n, draws). NaN entries are ignored; a column with
    fewer than two others gives NaN."""
    w = np.where(np.isfinite(y), weights[:, None], 0.0)
    y = np.where(np.isfinite(y), y, 0.0)
    total = w.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        x_mean, y_mean = (w * x[:, None]).sum(axis=0) / total, (w * y).sum(axis=0) / total
        dx = x[:, None] - x_mean
        spread = (w * dx**2).sum(axis=0)
        slope = np.where(
            spread > 1e-12 * total, (w * dx * (y - y_mean)).sum(axis=0) / spread, np.nan
        )
    return slope, y_mean - slope * x_mean
