"""The uncertainty of a fit: bootstrap over runs, and profile likelihood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import erf
from scipy.stats import chi2

from scaling.laws.fit import Fit, exponent_grid, projected_best
from scaling.laws.forms import Array, Design
from scaling.laws.huber import minimise

LEVEL = 0.95
_COARSE_GRID = {1: 40, 2: 12}
"""Grid points per exponent for the new start of each draw."""
_RUNNERS_UP = 2
_PROFILE_POINTS = 41


@dataclass(frozen=True)
class Bootstrap:
    """theta (draws, P) of refits to resampled runs; objectives (draws), summed over the resampled
    points."""

    theta: Array
    objectives: Array


def bootstrap(
    fitted: Fit,
    n: Array,
    d: Array,
    loss: Array,
    runs: NDArray[np.int64],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Bootstrap:
    """Refit to runs drawn with replacement. All points of a run stay together, because their errors
    are correlated.

    runs (n): the number of the run of each point.
    """
    return refit(fitted, n, d, loss, resampled_weights(runs, draws, np.random.default_rng(seed)))


def refit(fitted: Fit, n: Array, d: Array, loss: Array, weights: Array) -> Bootstrap:
    """Fit again under each row of weights (draws, n).

    Every draw starts from the best point of a coarse grid under its own weights, and from the
    minima of the fit itself. The lowest result counts.
    """
    design, log_loss, draws = Design.of(fitted.form, n, d), np.log(loss), len(weights)
    grid = exponent_grid(fitted.form, _COARSE_GRID[len(fitted.form.exponents)])
    # A draw can move the minimum to another valley, which the shared starts alone would miss.
    own = projected_best(design, log_loss, grid, weights)
    shared = np.repeat(fitted.minima[:_RUNNERS_UP], draws, axis=0)
    starts = np.concatenate([own, shared])
    repeats = len(starts) // draws
    found = minimise(
        design, log_loss, starts, delta=fitted.delta, weights=np.tile(weights, (repeats, 1))
    )
    heights = found.objective.reshape(repeats, draws)
    best = heights.argmin(axis=0)
    rows = np.arange(draws)
    return Bootstrap(found.theta.reshape(repeats, draws, -1)[best, rows], heights[best, rows])


def resampled_weights(runs: NDArray[np.int64], draws: int, generator: np.random.Generator) -> Array:
    """How often each point occurs in each draw of as many runs as there are: (draws, n)."""
    names, index = np.unique(runs, return_inverse=True)
    # weights per point instead of row numbers: all draws then have one shape
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return counts[:, index].astype(float)


def percentile_interval(values: Array, level: float = LEVEL) -> tuple[float, float]:
    """The central `level` interval of the finite draws; NaN where none is finite."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Profile:
    """The objective of the best fit at each fixed value of one parameter, and where it crosses the
    threshold.

    low, high   the interval; None on a side where the objective stays below the threshold to the
                bound: open
    """

    name: str
    values: Array
    objectives: Array
    threshold: float
    low: float | None
    high: float | None


def profile(
    fitted: Fit, n: Array, d: Array, loss: Array, draws: Array, *, level: float = LEVEL
) -> list[Profile]:
    """Profile-likelihood intervals of every parameter of theta, coefficients in their logarithm.

    draws (m, P): bootstrap draws, which set the range to search. The likelihood of a residual r is
    exp(-huber(r) / t) / Z(t) with a free scale t. Its maximum is the Huber fit (normal for large
    delta, Laplace for small). Twice its fall is compared with chi-square with one degree of
    freedom.
    """
    design, log_loss = Design.of(fitted.form, n, d), np.log(loss)
    threshold = likelihood_threshold(fitted.objective, len(log_loss), fitted.delta, level)
    return [
        _profile_one(fitted, design, log_loss, draws, threshold, index)
        for index in range(len(fitted.theta))
    ]


def _profile_one(
    fitted: Fit, design: Design, log_loss: Array, draws: Array, threshold: float, index: int
) -> Profile:
    low, high = fitted.form.bounds()
    centre = fitted.theta[index]
    below, above = percentile_interval(draws[:, index], 0.999)
    values = np.clip(
        np.linspace(
            min(below, centre) - (centre - below),
            max(above, centre) + (above - centre),
            _PROFILE_POINTS,
        ),
        low[index],
        high[index],
    )
    values = np.unique(np.append(values, centre))
    # In the draw nearest to each value the other parameters have already adapted to it.
    nearest = np.abs(draws[:, [index]] - values).argmin(axis=0)
    starts = np.concatenate([np.tile(fitted.theta, (len(values), 1)), draws[nearest]])
    fixed = np.tile(values, 2)
    starts[:, index] = fixed
    rows_low, rows_high = np.tile(low, (len(starts), 1)), np.tile(high, (len(starts), 1))
    rows_low[:, index] = rows_high[:, index] = fixed
    found = minimise(design, log_loss, starts, delta=fitted.delta, low=rows_low, high=rows_high)
    # the lower end of the two starts of each value
    objectives = found.objective.reshape(2, -1).min(axis=0)
    at = int(np.searchsorted(values, centre))
    return Profile(
        fitted.form.names[index],
        values,
        objectives,
        threshold,
        _crossing(values[at::-1], objectives[at::-1], threshold),
        _crossing(values[at:], objectives[at:], threshold),
    )


def _crossing(values: Array, objectives: Array, threshold: float) -> float | None:
    """Where the objective first passes the threshold on the way outwards, by linear interpolation
    of the square root of its rise."""
    rise = np.sqrt(np.maximum(objectives - objectives[0], 0.0))
    # A parabola has a linear root, so that a coarse grid is enough near a regular minimum.
    wanted = np.sqrt(threshold - objectives[0]) if threshold > objectives[0] else 0.0
    above = np.flatnonzero(rise > wanted)
    if not len(above):
        return None
    i = above[0]
    share = (wanted - rise[i - 1]) / (rise[i] - rise[i - 1]) if i else 0.0
    return float(values[i - 1] + share * (values[i] - values[i - 1])) if i else float(values[0])


def likelihood_threshold(
    smallest: float, n_points: int, delta: float, level: float = LEVEL
) -> float:
    """The summed Huber loss at which twice the log likelihood has fallen by the chi-square quantile
    of `level`."""
    if smallest <= 0:
        return 0.0
    allowed = _deviance(smallest, n_points, delta) + chi2.ppf(level, 1)
    high = smallest
    while _deviance(high, n_points, delta) < allowed:
        high *= 2
    return float(
        brentq(lambda s: _deviance(s, n_points, delta) - allowed, smallest, high, rtol=1e-12)
    )


def _deviance(summed: float, n_points: int, delta: float) -> float:
    """-2 log likelihood of a summed Huber loss, at its best scale t.

    Z(t) = sqrt(2 pi t) erf(delta / sqrt(2 t)) + 2 t / delta exp(-delta^2 / 2 t)
    """

    def at(log_t: float) -> float:
        t = np.exp(log_t)
        Z = np.sqrt(2 * np.pi * t) * erf(delta / np.sqrt(2 * t)) + 2 * t / delta * np.exp(
            -(delta**2) / (2 * t)
        )
        return float(2 * (n_points * np.log(Z) + summed / t))

    middle = np.log(2 * summed / n_points)  # normal: 2 S / n; Laplace: S / n
    return float(
        minimize_scalar(
            at, bounds=(middle - 3, middle + 3), method="bounded", options={"xatol": 1e-10}
        ).fun
    )
