"""Fit a form: variable projection over a grid of exponents, then exact minimisation from every
local minimum of the grid.

Given the exponents, the coefficients enter linearly and follow by least squares with all of them
non-negative (variable projection, Golub and Pereyra 1973). There are at most two exponents, so a
grid over them covers the whole objective and no start has to be guessed. Each local minimum on the
grid is then refined with exact derivatives (`huber.py`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.laws.forms import LOG_FLOOR, Array, Design, Form
from scaling.laws.huber import Minimum, minimise, objective, solve_symmetric

DEFAULT_DELTA = 1e-3
"""Hoffmann et al. 2022, section D.2."""
_GRID_POINTS = {1: 200, 2: 40}
"""Grid points per exponent, by the number of exponents."""
_MAX_STARTS = 24
_SAME_MINIMUM = 1e-6
"""Relative difference of theta below which two minima count as one."""


@dataclass(frozen=True)
class Fit:
    """A fitted form.

    theta          (P), the global minimum found
    objective      summed Huber loss there
    minima         (m, P) and objectives (m), the best first: runner-up minima follow
    gradient_norm  relative, no unit; about 1e-7 or less when converged
    condition      condition number of the correlation matrix of the parameters (from J'J): large is
                   poorly determined
    at_bound       names of parameters that ended at a bound
    residuals      (n), log predicted - log measured
    """

    form: Form
    delta: float
    theta: Array
    objective: float
    minima: Array
    minima_objectives: Array
    gradient_norm: float
    condition: float
    at_bound: tuple[str, ...]
    residuals: Array

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters by the paper's names."""
        return {
            name: float(value[0]) for name, value in self.form.reported(self.theta[None]).items()
        }

    def loss(self, n: Array, d: Array) -> Array:
        """Predicted loss in nats at n parameters and d tokens."""
        design = Design.of(
            self.form, np.atleast_1d(np.asarray(n, float)), np.atleast_1d(np.asarray(d, float))
        )
        return np.exp(design.log_loss(self.theta[None])[0])


def fit(form: Form, n: Array, d: Array, loss: Array, *, delta: float = DEFAULT_DELTA) -> Fit:
    """Fit `form` to points of n parameters, d tokens and loss in nats (each (n), positive).

    The function fits any design; `checks.py` reports what a design cannot identify.
    """
    design, log_loss = Design.of(form, n, d), np.log(loss)
    starts = grid_starts(design, log_loss, delta=delta)
    found = minimise(design, log_loss, starts, delta=delta)
    kept = distinct(found)
    best = kept[0]
    theta = found.theta[best]
    return Fit(
        form=form,
        delta=delta,
        theta=theta,
        objective=float(found.objective[best]),
        minima=found.theta[kept],
        minima_objectives=found.objective[kept],
        gradient_norm=float(found.gradient_norm[best]),
        condition=_condition(design, theta),
        at_bound=_at_bound(form, theta),
        residuals=design.log_loss(theta[None])[0] - log_loss,
    )


def grid_starts(design: Design, log_loss: Array, *, delta: float) -> Array:
    """theta of every local minimum of the projected objective on the grid, best first, at most 24:
    (m, P)."""
    n_exponents = len(design.form.ranges)
    theta = projected(design, log_loss, exponent_grid(design.form, _GRID_POINTS[n_exponents]))
    heights = objective(design, log_loss, theta, delta=delta).reshape(
        [_GRID_POINTS[n_exponents]] * n_exponents
    )
    valleys = np.flatnonzero(_local_minima(heights).ravel())
    best_first = valleys[np.argsort(heights.ravel()[valleys])]
    return theta[best_first[:_MAX_STARTS]]


def projected(design: Design, log_loss: Array, exponents: Array) -> Array:
    """theta for each row of exponents, with the non-negative coefficients that minimise the squared
    relative residuals.

    exponents (G, P - K) -> (G, P). Relative residuals f/L - 1 equal log residuals to first order.
    """
    basis, shift = _basis(design, log_loss, exponents)
    coefficients, _ = _non_negative(basis @ basis.transpose(0, 2, 1), basis.sum(axis=2))
    return _theta(design.form, coefficients, shift, exponents)


def projected_best(design: Design, log_loss: Array, exponents: Array, weights: Array) -> Array:
    """The best theta over all rows of exponents (G, P - K), for each row of weights (S, n): (S,
    P)."""
    K, S = design.form.n_terms, len(weights)
    basis, shift = _basis(design, log_loss, exponents)
    best, lowest = np.zeros((S, design.form.n_params)), np.full(S, np.inf)
    for g in range(len(exponents)):
        products = np.einsum("kn,ln->nkl", basis[g], basis[g]).reshape(-1, K * K)
        gram, right = (weights @ products).reshape(S, K, K), weights @ basis[g].T
        coefficients, explained = _non_negative(gram, right)
        # Terms are divided by the loss: the target is 1, and its sum of squares that of the weights
        left = weights.sum(axis=1) - explained
        if design.form.outer is not None:
            # back to residuals of the loss: the outer power scales a residual of the inner sum
            left *= exponents[g, design.form.outer] ** 2
        better = left < lowest
        rows = np.broadcast_to(exponents[g], (int(better.sum()), exponents.shape[1]))
        best[better] = _theta(design.form, coefficients[better], shift[g], rows)
        lowest[better] = left[better]
    return best


def exponent_grid(form: Form, n_points: int) -> Array:
    """All combinations of `n_points` values per exponent, evenly spaced in the logarithm: (G, P -
    K)."""
    return np.array(
        list(itertools.product(*(np.geomspace(low, high, n_points) for low, high in form.ranges)))
    )


def _basis(design: Design, log_loss: Array, exponents: Array) -> tuple[Array, Array]:
    """Terms over the measured loss, scaled to at most 1, and the logarithms of the scales: (G, K,
    n) and (G, K)."""
    zeros = np.zeros((len(exponents), design.form.n_terms))
    target = log_loss[None, :]
    if design.form.outer is not None:  # the outer power is undone on the loss: (sum of terms)^s = L
        target = target / exponents[:, [design.form.outer]]
    logs = design.log_terms(np.hstack([zeros, exponents])) - target[:, None, :]
    shift = logs.max(axis=2)
    return np.exp(logs - shift[:, :, None]), shift


def _theta(form: Form, coefficients: Array, shift: Array, exponents: Array) -> Array:
    with np.errstate(divide="ignore"):
        logs = np.log(coefficients) - shift
    return np.clip(np.hstack([np.maximum(logs, LOG_FLOOR), exponents]), *form.bounds())


def _non_negative(gram: Array, right: Array) -> tuple[Array, Array]:
    """Solve small non-negative least-squares problems by trying every support.

    gram (G, K, K), right (G, K) -> the coefficients (G, K), and how much they lower the sum of
    squares (G).
    """
    G, K = right.shape
    best, gain = np.zeros((G, K)), np.zeros(G)
    # K is at most 3: seven supports cost less than an active-set method, and are vectorised over G
    for size in range(1, K + 1):
        for support in itertools.combinations(range(K), size):
            columns = list(support)
            square = gram[:, columns][:, :, columns]
            ridge = 1e-13 * np.einsum("gkk->gk", square)[:, :, None] * np.eye(size)
            part = solve_symmetric(square + ridge, right[:, columns, None])[:, :, 0]
            explained = (part * right[:, columns]).sum(axis=1)
            take = (part >= 0).all(axis=1) & (explained > gain)
            best[take] = 0.0
            best[np.ix_(take, columns)] = part[take]
            gain[take] = explained[take]
    return best, gain


def _local_minima(heights: Array) -> NDArray[np.bool_]:
    """Whether each grid point is no higher than all its neighbours, diagonal ones included."""
    padded = np.pad(heights, 1, constant_values=np.inf)
    lowest = np.ones(heights.shape, dtype=bool)
    for shift in itertools.product((-1, 0, 1), repeat=heights.ndim):
        window = tuple(
            slice(1 + step, 1 + step + size)
            for step, size in zip(shift, heights.shape, strict=True)
        )
        lowest &= heights <= padded[window]
    return lowest


def distinct(found: Minimum) -> list[int]:
    """Rows of distinct minima, best first."""
    kept: list[int] = []
    for row in np.argsort(found.objective):
        theta = found.theta[row]
        if not any(
            np.allclose(theta, found.theta[other], rtol=_SAME_MINIMUM, atol=_SAME_MINIMUM)
            for other in kept
        ):
            kept.append(int(row))
    return kept


def _condition(design: Design, theta: Array) -> float:
    """Condition number of J'J scaled to a unit diagonal. J holds the derivatives of the log loss by
    theta."""
    K = design.form.n_terms
    terms = design.log_terms(theta[None])[0]
    share = np.exp(terms - terms.max(axis=0))
    share /= share.sum(axis=0)
    J = np.einsum("kn,kpn->pn", share, design.Z)
    if design.form.outer is not None:
        J *= theta[K + design.form.outer]
        J[K + design.form.outer] = design.log_loss(theta[None])[0] / theta[K + design.form.outer]
    size = np.sqrt((J**2).sum(axis=1))
    if (size == 0).any():
        return float("inf")
    if not np.isfinite(J).all():
        return float("inf")
    singular = np.linalg.svd(J / size[:, None], compute_uv=False)
    return float("inf") if singular[-1] <= 0 else float((singular[0] / singular[-1]) ** 2)


def _at_bound(form: Form, theta: Array) -> tuple[str, ...]:
    low, high = form.bounds()
    near = 1e-9 * (high - low)
    ended = (theta <= low + near) | (theta >= high - near)
    return tuple(name for name, there in zip(form.names, ended, strict=True) if there)
