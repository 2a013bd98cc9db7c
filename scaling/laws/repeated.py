"""Repeated data: the value of further epochs and of excess parameters (Muennighoff et al. 2023,
arXiv:2305.16264, eq. 5-7).

L = E + A / N'^alpha + B / D'^beta, x' = U + U R* (1 - exp(-R / R*)), R = max(0, x / U - 1)

U of tokens is U_D, the unique tokens. U of parameters is U_N = min(N, N_opt(U_D)), where N_opt is
the best size for that many tokens. As in the paper, E, A, B, alpha and beta come from the runs
without repetition, then R*_D and R*_N from all runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from scaling.errors import DataError
from scaling.laws.checks import cannot_fit
from scaling.laws.fit import DEFAULT_DELTA, Fit, fit
from scaling.laws.forms import CHINCHILLA, Array
from scaling.laws.huber import huber
from scaling.laws.intervals import percentile_interval, refit, resampled_weights
from scaling.laws.points import Points
from scaling.units import counted

_RANGE = (0.1, 1000.0)
"""Range of R*. At the low end a second epoch is worth nothing; at the high end repeated data equal
fresh data for any run yet made (assumption)."""
_GRID = 25
_MIN_REPEATED = 3
_SINGLE = 1.001  # tokens over unique tokens up to which a run saw nothing twice


@dataclass(frozen=True)
class RepeatedFit:
    """A fit with repetition. base: the fit to runs without repetition; r_d, r_n: R*_D and R*_N,
    None where no run determines it; draws (draws, 2)."""

    base: Fit
    r_d: float | None
    r_n: float | None
    draws: Array
    objective: float
    notes: tuple[str, ...]

    def interval(self, which: int) -> tuple[float, float]:
        """The 95 % interval of R*_D (0) or R*_N (1)."""
        return percentile_interval(self.draws[:, which])

    def loss(self, n: Array, d: Array, unique: Array) -> Array:
        """The predicted loss in nats. Where R* is unknown, tokens and sizes count as fresh."""
        log_r = np.log([self.r_d or _RANGE[1], self.r_n or _RANGE[1]])
        return _loss(self.base.theta, n, d, unique, log_r)


def effective(x: Array, unique: Array, r_star: float) -> Array:
    """Effective tokens or parameters: x itself up to `unique`, then at most unique (1 + R*) (eq.
    5)."""
    repeats = np.maximum(0.0, x / unique - 1)
    return np.minimum(x, unique) + unique * r_star * -np.expm1(-repeats / r_star)


def best_size_for(theta: Array, tokens: Array) -> Array:
    """The N_opt for which D is compute-optimal: G (D G)^(beta / alpha), G = (alpha A / beta B)^(1 /
    (alpha + beta)) (eq. 7)."""
    _, log_A, log_B, alpha, beta = theta
    log_G = (np.log(alpha / beta) + log_A - log_B) / (alpha + beta)
    return np.exp(log_G + beta / alpha * (np.log(tokens) + log_G))


def fit_repeated(
    points: Points, *, delta: float = DEFAULT_DELTA, draws: int = 200, seed: int = 0
) -> RepeatedFit:
    """Fit R*. Raises DataError without a column of unique tokens, or with too few runs with or
    without repetition."""
    if points.unique_tokens is None:
        raise DataError(
            "repetition needs the number of unique tokens",
            "unique",
            "Name its column: unique=COLUMN.",
        )
    single = points.n_tokens <= _SINGLE * points.unique_tokens
    trouble = cannot_fit(points.at(single), CHINCHILLA)
    if trouble is not None:
        fix = "R* is measured against runs on fresh data: add some."
        raise DataError(f"the runs without repetition cannot be fitted: {trouble}", "unique", fix)
    if (~single).sum() < _MIN_REPEATED:
        raise DataError(
            f"{counted(int((~single).sum()), 'run repeats', 'runs repeat')} data, and "
            f"{_MIN_REPEATED} are needed",
            "unique",
        )
    base = fit(
        CHINCHILLA,
        points.n_params[single],
        points.n_tokens[single],
        points.loss[single],
        delta=delta,
    )
    # Draws start from this fit: a grid for each of them would cost most of the time.
    best, height = _fit_r(base.theta, points, np.ones(len(points)), delta)
    weights = resampled_weights(points.runs, draws, np.random.default_rng(seed))
    thetas = refit(
        base,
        points.n_params[single],
        points.n_tokens[single],
        points.loss[single],
        weights[:, single],
    ).theta
    drawn = [
        _fit_r(theta, points, row, delta, start=best)[0]
        for row, theta in zip(weights, thetas, strict=True)
    ]
    return _named(base, best, height, np.exp(np.array(drawn)).reshape(-1, 2), points)


def _named(base: Fit, log_r: Array, height: float, drawn: Array, points: Points) -> RepeatedFit:
    notes = []
    excess = points.n_params > 1.1 * best_size_for(base.theta, np.asarray(points.unique_tokens))
    values: list[float | None] = [float(value) for value in np.exp(log_r)]
    if not excess.any():
        values[1] = None
        notes.append("R*_N is undetermined: no run has more parameters than suit its unique tokens")
    for i, name in enumerate(("R*_D", "R*_N")):
        value = values[i]
        if value is not None and not 1.01 * _RANGE[0] < value < 0.99 * _RANGE[1]:
            notes.append(f"{name} ended at the bound of its range: the runs do not determine it")
    return RepeatedFit(base, values[0], values[1], drawn, height, tuple(notes))


def _loss(theta: Array, n: Array, d: Array, unique: Array, log_r: Array) -> Array:
    E, A, B = np.exp(theta[:3])
    r_d, r_n = np.exp(log_r)
    size = np.minimum(n, best_size_for(theta, unique))
    return (
        E
        + A / effective(n, size, r_n) ** theta[3]
        + B / effective(d, np.minimum(d, unique), r_d) ** theta[4]
    )


def _fit_r(
    theta: Array, points: Points, weights: Array, delta: float, start: Array | None = None
) -> tuple[Array, float]:
    """log (R*_D, R*_N) by Nelder and Mead's simplex from `start`, else from the best point of a
    grid; and the objective there."""
    unique, log_loss = np.asarray(points.unique_tokens), np.log(points.loss)
    low, high = np.log(_RANGE)

    def height(log_r: Array) -> float:
        r = (
            np.log(
                _loss(theta, points.n_params, points.n_tokens, unique, np.clip(log_r, low, high))
            )
            - log_loss
        )
        return float((weights * huber(r, delta)).sum())

    if start is None:
        axis = np.linspace(low, high, _GRID)
        start = min((np.array([x, y]) for x in axis for y in axis), key=height)
    found = minimize(
        height, start, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-14, "maxiter": 400}
    )
    return np.clip(found.x, low, high), float(found.fun)
