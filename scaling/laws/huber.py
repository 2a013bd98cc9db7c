"""Minimise the summed Huber loss of log residuals, for many weightings and starts at once.

    objective(theta) = sum_i w_i huber(log f(theta)_i - log L_i)
    huber(r) = r^2/2 for |r| <= delta, else delta (|r| - delta/2)

The objective is the *sum*, with exact derivatives. With the mean, or with a quasi-Newton method at
its default tolerance, the search ends early in the long flat valley of this objective (Besiroglu et
al. 2024, arXiv:2404.10102, section 4).

A step solves (H + lambda M) step = -gradient. H is the exact Hessian. M, the damping, is the
positive matrix of iteratively reweighted least squares; its weights min(1, delta / |r|) bound the
Huber loss from above (Huber 1981, section 7.8). Both transform like the problem under a change of
coordinates, so the units of N and D do not matter. Every row of the batch has its own lambda and
box, and leaves the batch when it converges.

Shapes: S rows (draws x starts), n points, P parameters, K terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaling.laws.forms import Array, Design

_ROWS_AT_ONCE = 128
"""Rows per block, so that a block fits in the cache: 1500 rows of 240 points at once take 1.7 times
as long (measured)."""
_TOLERANCE = 1e-14
"""Relative decrease below which a row has converged: about the rounding error of the sum."""
_MAX_STEPS = 400
_LARGEST_DAMPING = 1e12
_FLAT = 1e-13
"""Singular values below this share of the largest count as flat directions; the ridge of `_step`
has this size."""


@dataclass(frozen=True)
class Minimum:
    """The end of the search for each row.

    theta          (S, P)
    objective      (S), summed
    gradient_norm  (S), of the free parameters, in the metric of M and relative: sqrt(g' M^-1 g /
                   objective), no unit
    steps          (S), accepted and refused ones
    """

    theta: Array
    objective: Array
    gradient_norm: Array
    steps: Array


@dataclass(frozen=True)
class _Local:
    """The objective (S), its gradient (S, P), Hessian and damping matrix (S, P, P) at one theta."""

    value: Array
    gradient: Array
    hessian: Array
    metric: Array


def minimise(
    design: Design,
    log_loss: Array,
    start: Array,
    *,
    delta: float,
    weights: Array | None = None,
    low: Array | None = None,
    high: Array | None = None,
) -> Minimum:
    """Find the minimum near each start.

    log_loss (n); start (S, P); weights (S, n), None for ones; low, high (P) or (S, P), the form's
    own where None. Equal bounds hold a parameter fixed.
    """
    S = len(start)
    default_low, default_high = design.form.bounds()
    low = np.broadcast_to(default_low if low is None else low, start.shape)
    high = np.broadcast_to(default_high if high is None else high, start.shape)
    weights = np.broadcast_to(1.0 if weights is None else weights, (S, len(log_loss)))
    blocks = [
        _minimise_block(design, log_loss, start[rows], delta, weights[rows], low[rows], high[rows])
        for rows in (slice(i, i + _ROWS_AT_ONCE) for i in range(0, S, _ROWS_AT_ONCE))
    ]
    return Minimum(
        *(
            np.concatenate([getattr(block, name) for block in blocks])
            for name in Minimum.__dataclass_fields__
        )
    )


def objective(
    design: Design, log_loss: Array, theta: Array, *, delta: float, weights: Array | None = None
) -> Array:
    """(S, P) -> (S)"""
    r = design.log_loss(theta) - log_loss
    rho = huber(r, delta)
    return rho.sum(axis=1) if weights is None else (rho * weights).sum(axis=1)


def huber(r: Array, delta: float) -> Array:
    size = np.abs(r)
    inside = np.minimum(size, delta)
    return inside * (size - inside / 2)


def _minimise_block(
    design: Design,
    log_loss: Array,
    start: Array,
    delta: float,
    weights: Array,
    low: Array,
    high: Array,
) -> Minimum:
    theta = np.clip(start, low, high)
    S = len(theta)
    value, slope, steps = np.full(S, np.inf), np.zeros(S), np.zeros(S)
    damping = np.full(S, 1e-2)
    # Converged rows leave the batch; the others would pay for them until the slowest is done.
    active = np.arange(S)
    local = _local(design, log_loss, theta, delta, weights)
    for _ in range(_MAX_STEPS):
        value[active] = local.value
        rows_theta, rows_low, rows_high = theta[active], low[active], high[active]
        step, slope[active] = _step(local, damping[active], rows_theta, rows_low, rows_high)
        proposal = np.clip(rows_theta + step, rows_low, rows_high)
        proposed = objective(design, log_loss, proposal, delta=delta, weights=weights[active])
        gain = local.value - proposed
        better = gain > 0
        steps[active] += 1
        small = gain <= _TOLERANCE * local.value
        theta[active[better]] = proposal[better]
        # Levenberg and Marquardt: trust the Hessian more after each success, less after a failure
        damping[active] = np.where(better, damping[active] / 5, damping[active] * 4)
        done = (small & better) | (damping[active] > _LARGEST_DAMPING) | (local.value == 0)
        value[active] = np.where(better, proposed, local.value)
        active = active[~done]
        if not len(active):
            break
        damping = np.maximum(damping, 1e-12)  # a zero could never grow again
        local = _local(design, log_loss, theta[active], delta, weights[active])
    return Minimum(theta, value, slope, steps)


def _step(
    local: _Local, damping: Array, theta: Array, low: Array, high: Array
) -> tuple[Array, Array]:
    """The damped Newton step of the free parameters (S, P), and the relative gradient norm (S)."""
    P = theta.shape[1]
    # A parameter at its bound stays there while the objective falls outwards.
    held = (
        ((theta <= low) & (local.gradient > 0))
        | ((theta >= high) & (local.gradient < 0))
        | (low == high)
    )
    gradient = np.where(held, 0.0, local.gradient)
    coupled = held[:, :, None] | held[:, None, :]
    diagonal = np.einsum("spp->sp", local.metric)
    ridge = (1e-13 * diagonal + 1e-300)[:, :, None] * np.eye(P)
    # Held parameters become equations of their own, x = 0, so that all rows keep one shape.
    unit = held[:, :, None] * np.eye(P)
    metric = np.where(coupled, 0.0, local.metric + ridge) + unit
    hessian = np.where(coupled, 0.0, local.hessian)
    # Scaled to a unit diagonal, so that parameters of very different size do not cost digits.
    scale = 1 / np.sqrt(np.einsum("spp->sp", metric))
    metric *= scale[:, :, None] * scale[:, None, :]
    hessian *= scale[:, :, None] * scale[:, None, :]
    metric += 1e-14 * np.eye(P)
    scaled = (gradient * scale)[:, :, None]
    step = -solve_symmetric(hessian + damping[:, None, None] * metric, scaled)
    descent = solve_symmetric(metric, scaled)
    slope = (scaled * descent).sum(axis=(1, 2))
    step = step[:, :, 0] * scale
    # The exact Hessian can be indefinite far from a minimum; M is positive and always descends.
    uphill = (step * gradient).sum(axis=1) > 0
    step[uphill] = (-descent[:, :, 0] * scale)[uphill] / np.maximum(1.0, damping[uphill, None])
    return step, np.sqrt(np.maximum(slope, 0) / np.maximum(local.value, 1e-300))


def solve_symmetric(matrices: Array, right: Array) -> Array:
    """Solve `matrices` (S, P, P) x = `right` (S, P, 1). A singular matrix gives the shortest x with
    the least error.

    Few points, such as a draw of few runs, leave directions in which the objective is flat; there x
    does not move. Rows that are not finite return NaN, which no caller takes for a lower objective.
    """
    try:
        return np.asarray(np.linalg.solve(matrices, right), np.float64)
    except np.linalg.LinAlgError:  # at least one row is singular
        return np.stack(
            [_solve_one(matrix, column) for matrix, column in zip(matrices, right, strict=True)]
        )


def _solve_one(matrix: Array, right: Array) -> Array:
    try:
        return np.asarray(np.linalg.solve(matrix, right), np.float64)
    except np.linalg.LinAlgError:
        if not (np.isfinite(matrix).all() and np.isfinite(right).all()):
            return np.full_like(right, np.nan)
        return np.asarray(np.linalg.lstsq(matrix, right, rcond=_FLAT)[0], np.float64)


def _local(design: Design, log_loss: Array, theta: Array, delta: float, weights: Array) -> _Local:
    K = len(design.Z)
    terms = design.log_terms(theta)
    top = terms.max(axis=1)  # subtracted before exp, which would overflow otherwise
    share = np.exp(terms - top[:, None])
    total = share.sum(axis=1)
    share /= total[:, None]
    g = top + np.log(total)
    J = sum(share[:, k, None, :] * design.Z[k] for k in range(K))  # (S, P, n)
    outer = design.form.outer
    s = theta[:, K + outer] if outer is not None else np.ones(len(theta))
    r = s[:, None] * g - log_loss
    size = np.abs(r)
    psi = np.clip(r, -delta, delta) * weights
    second = _second_derivatives(design, share, J, psi) * s[:, None, None]
    if outer is not None:
        cross = np.einsum("spn,sn->sp", J, psi)
        second[:, K + outer, :] += cross
        second[:, :, K + outer] += cross
        J = J * s[:, None, None]
        J[:, K + outer, :] = g
    inside = weights * (size <= delta)
    bounding = weights * np.minimum(1.0, delta / np.maximum(size, 1e-300))
    J_t = J.transpose(0, 2, 1)
    return _Local(
        value=(weights * huber(r, delta)).sum(axis=1),
        gradient=np.einsum("spn,sn->sp", J, psi),
        hessian=(J * inside[:, None, :]) @ J_t + second,
        metric=(J * bounding[:, None, :]) @ J_t,
    )


def _second_derivatives(design: Design, share: Array, J: Array, psi: Array) -> Array:
    """sum_i psi_i d2 g_i / dtheta2 of g = logsumexp: the covariance of the z_k, weighted by each
    term's share of the sum. (S, P, P)"""
    K, P, n = design.Z.shape
    out = -(J * psi[:, None, :]) @ J.transpose(0, 2, 1)
    for k in range(K):
        products = np.einsum("pn,qn->npq", design.Z[k], design.Z[k]).reshape(n, P * P)
        out += ((psi * share[:, k]) @ products).reshape(-1, P, P)
    return out
