"""Predictions of a fitted law, with their uncertainty: the loss of a run, the best run of a budget,
the budget of a loss.

Intervals come from bootstrap draws. The interval of the mean uses the draws' parameters alone; that
of a new run adds a resampled residual. Neither covers an error of the form itself beyond the fitted
scales; `decades_beyond` measures how far a prediction is from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scaling.errors import ConfigError
from scaling.laws.forms import Array, Design, Form, predict_loss
from scaling.laws.intervals import LEVEL, percentile_interval
from scaling.laws.points import Definitions

NEAR_OPTIMAL = 1e-3
"""Listed sizes have a loss within this share of the optimum's: 0.1 %."""
LOUD_DECADES = 1.0
"""Extrapolation, in powers of ten, above which a prediction carries a prominent warning
(assumption)."""
_STEPS = 100  # bisections halve an interval: far below rounding
# a parameter and token, forward alone: Kaplan et al. 2020 (arXiv:2001.08361), section 2.1
_INFERENCE_FLOPS = 2.0


@dataclass(frozen=True)
class Law:
    """All that predictions need of a fit; `fit_file.py` reads and writes it.

    theta (P); draws (B, P) of the bootstrap; residuals (n), log predicted - log measured; largest:
    N, D and C of the largest fitted run; smallest likewise.
    """

    form: Form
    theta: Array
    draws: Array
    residuals: Array
    definitions: Definitions
    smallest: tuple[float, float, float]
    largest: tuple[float, float, float]

    def sample(self) -> Array:
        """The fit in row 0, then the draws: (1 + B, P)."""
        return np.vstack([self.theta[None], self.draws])


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; a loss also has the interval of a new run."""

    value: float
    low: float
    high: float
    new_low: float | None = None
    new_high: float | None = None


@dataclass(frozen=True)
class Optimum:
    """The best split of a budget. near: the range of N with a loss within 0.1 % of the lowest."""

    flops: float
    n_params: Estimate
    n_tokens: Estimate
    tokens_per_param: Estimate
    loss: Estimate
    near: tuple[float, float]
    decades_beyond: float


@dataclass(frozen=True)
class OverTraining:
    """A smaller model trained to the loss of the optimal one.

    training_flops       relative to the optimum's
    inference_flops      of a token, relative to the optimum's
    break_even_tokens    served, beyond which the smaller model is cheaper in all
    """

    n_params: float
    n_tokens: float
    training_flops: float
    inference_flops: float
    break_even_tokens: float


def loss_at(law: Law, n_params: float, n_tokens: float, *, seed: int = 0) -> Estimate:
    """The loss in nats of a run of N parameters and D tokens."""
    losses = predict_loss(law.form, law.sample(), np.array([n_params]), np.array([n_tokens]))[:, 0]
    return _loss_estimate(law, losses, seed)


def best_of_budget(law: Law, flops: float, *, seed: int = 0) -> Optimum:
    """N*, D* and their loss for C FLOPs, with D = C / (k N), where k is that of the points.

    Raises ConfigError for a form without an optimum.
    """
    sample = law.sample()
    product = flops / law.definitions.flops_per_nd
    n_star = optimal_n(law.form, sample, product)
    d_star = product / n_star
    losses = np.exp(_paired_log_loss(law.form, sample, n_star, d_star))
    return Optimum(
        flops=flops,
        n_params=estimate(n_star),
        n_tokens=estimate(d_star),
        tokens_per_param=estimate(d_star / n_star),
        loss=_loss_estimate(law, losses, seed),
        near=_near_optimal(law, product, float(n_star[0]), float(losses[0])),
        decades_beyond=decades_beyond(
            law, flops=flops, n_params=float(n_star[0]), n_tokens=float(d_star[0])
        ),
    )


def optimal_n(form: Form, theta: Array, product: float | Array) -> Array:
    """The N that minimises the loss at fixed N D: G (N D)^(beta / (alpha + beta)), G = (alpha A /
    beta B)^(1 / (alpha + beta)).

    Hoffmann et al. 2022 (arXiv:2203.15556), eq. 4. theta (S, P), product a number or (S): (S).
    """
    if form.tradeoff is None:
        fix = "Predict with form=chinchilla, kaplan or gadre."
        raise ConfigError(
            f"{form.name} ({form.equation}) has no best split of a budget", "form", fix
        )
    A, B, alpha, beta = form.tradeoff(theta)
    log_G = (np.log(alpha / beta) + np.log(A) - np.log(B)) / (alpha + beta)
    return np.exp(log_G + beta / (alpha + beta) * np.log(product))


def budget_of_loss(law: Law, loss: float) -> Estimate:
    """The least C in FLOPs whose best run reaches this loss; infinite for draws whose floor is
    higher.

    Raises ConfigError when the fit itself never reaches the loss.
    """
    sample = law.sample()

    def best_log_loss(log_product: Array) -> Array:
        n = optimal_n(law.form, sample, np.exp(log_product))
        return _paired_log_loss(law.form, sample, n, np.exp(log_product) / n)

    # exp(160) is beyond any budget: a loss not reached there is below the floor
    log_product = _bisect(
        lambda x: np.log(loss) - best_log_loss(x),
        np.full(len(sample), 0.0),
        np.full(len(sample), 160.0),
    )
    flops = law.definitions.flops_per_nd * np.exp(log_product)
    if not np.isfinite(flops[0]):
        floor = float(np.exp(best_log_loss(np.full(len(sample), 160.0))[0]))
        fix = f"The fitted law ends at {floor:.4g} nats: ask for more."
        raise ConfigError(f"no budget reaches a loss of {loss:g}", "loss", fix)
    return estimate(flops, finite=False)


def over_training(
    law: Law, flops: float, shrink: tuple[float, ...] = (0.75, 0.5, 0.33, 0.25, 0.1)
) -> list[OverTraining]:
    """The cost of smaller models that are trained until they reach the optimum's loss. Models that
    never reach it are left out."""
    product = flops / law.definitions.flops_per_nd
    theta = law.theta[None]
    n_star = optimal_n(law.form, theta, product)
    log_target = _paired_log_loss(law.form, theta, n_star, product / n_star)
    found = []
    for share in shrink:
        n = share * n_star
        d = _tokens_to_reach(law, n, log_target)
        if not np.isfinite(d):
            continue
        training = float(n[0]) * d / product
        saved = _INFERENCE_FLOPS * float(n_star[0] - n[0])
        found.append(OverTraining(float(n[0]), d, training, share, (training - 1) * flops / saved))
    return found


def _tokens_to_reach(law: Law, n: Array, log_target: Array) -> float:
    """The D at which a model of n (1) parameters reaches a log loss (1); infinity where it never
    does."""

    def short_of_it(log_d: Array) -> Array:
        return log_target - _paired_log_loss(law.form, law.theta[None], n, np.exp(log_d))

    return float(np.exp(_bisect(short_of_it, np.zeros(1), np.full(1, 160.0))[0]))


def decades_beyond(
    law: Law, *, flops: float, n_params: float | None = None, n_tokens: float | None = None
) -> float:
    """Distance of a run outside the fitted runs, in powers of ten, in the farthest of C, N and D; 0
    inside."""
    farthest = 0.0
    for value, low, high in zip(
        (n_params, n_tokens, flops), law.smallest, law.largest, strict=True
    ):
        if value is not None and np.isfinite(low):
            farthest = max(farthest, float(np.log10(value / high)), float(np.log10(low / value)))
    return farthest


def estimate(sample: Array, *, finite: bool = True) -> Estimate:
    """Summarise a value (row 0) and its draws (the other rows). Infinite draws count unless
    `finite`."""
    if finite:
        return Estimate(float(sample[0]), *percentile_interval(sample[1:]))
    # "nearest" takes an existing draw: interpolation between a number and infinity gives NaN
    low, high = np.quantile(sample[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return Estimate(float(sample[0]), float(low), float(high))


def _loss_estimate(law: Law, losses: Array, seed: int) -> Estimate:
    """Summarise losses (1 + B). A residual is log predicted - log measured, so a new run ends at
    prediction / exp(residual)."""
    mean = estimate(losses)
    # 20 residuals per draw, so that the tails do not depend on a few of them
    drawn = np.random.default_rng(seed).choice(law.residuals, size=(20, len(losses) - 1))
    new_low, new_high = percentile_interval((losses[1:] / np.exp(drawn)).ravel())
    return Estimate(mean.value, mean.low, mean.high, new_low, new_high)


def _paired_log_loss(form: Form, theta: Array, n: Array, d: Array) -> Array:
    """The log loss of row i of theta (S, P) at point i of n, d (S): (S)."""
    design = Design.of(form, n, d)
    logs = np.einsum("kps,sp->ks", design.Z, theta) + design.offsets
    total = np.logaddexp.reduce(logs, axis=0)
    return total if form.outer is None else total * theta[:, form.n_terms + form.outer]


def _near_optimal(law: Law, product: float, n_star: float, loss: float) -> tuple[float, float]:
    """The smallest and largest N whose loss at the same N D is within 0.1 % of the optimum's."""
    limit = np.log(loss) + np.log1p(NEAR_OPTIMAL)

    def excess(log_n: Array) -> Array:
        n = np.exp(log_n)
        return _paired_log_loss(law.form, law.theta[None], n, product / n) - limit

    middle = np.array([np.log(n_star)])
    low = _bisect(lambda x: -excess(x), middle - 30, middle)
    high = _bisect(excess, middle, middle + 30)
    return float(np.exp(low[0])), float(np.exp(high[0]))


def _bisect(rising: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The zero of a rising function; infinity where the function is still negative at `high`."""
    unreached = rising(high) < 0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        below = rising(middle) < 0
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(unreached, np.inf, high)
