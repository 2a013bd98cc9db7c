"""The forms of scaling laws, each with its paper and equation. Each form is a sum of power laws
under an outer power.

Every form is log L = s * logsumexp_k(z_k . theta + o_k): the logarithm of a sum of K terms, each
linear in the parameters theta. So one solver with exact derivatives (`huber.py`) serves them all.

Shapes: n points, K terms, P parameters. theta = (log coefficients (K), exponents (P - K)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.config.plugins import added
from scaling.errors import ConfigError

Array = NDArray[np.float64]
Reported = dict[str, Array]

FLOPS_PER_PARAMETER_TOKEN = 6.0
"""C = 6 N D: two FLOPs per multiply-add, and a backward pass of twice the forward pass (Kaplan et
al. 2020, arXiv:2001.08361, 2.1)."""

LOG_FLOOR = -30.0
"""Logarithm of a coefficient that counts as zero: 1e-13 nats, far below any loss."""


@dataclass(frozen=True)
class Form:
    """One form.

    name          what the command line calls it
    coefficients  K names, positive numbers; theta holds their logarithms
    exponents     names of the other parameters; theta holds them as they are
    ranges        where each exponent may lie; a fit that ends there is reported as at a bound
    slopes        (log n, log d) of n points -> (K, n, P - K): how the log of each term moves with
                  each exponent
    offsets       (log n, log d) -> (K, n): what is added to the log of each term
    outer         which exponent is the outer power s, or None for s = 1
    tradeoff      theta (S, P) -> (A, B, alpha, beta), each (S): L grows with A N^-alpha + B
                  D^-beta, so that its minimum at
                  fixed 6 N D is known in closed form; None where the form has no such optimum
    reported      theta (S, P) -> what the paper names, each (S)
    needs         variables that a point must have
    """

    name: str
    equation: str
    source: str
    coefficients: tuple[str, ...]
    exponents: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    slopes: Callable[[Array, Array], Array]
    offsets: Callable[[Array, Array], Array] | None
    outer: int | None
    tradeoff: Callable[[Array], tuple[Array, Array, Array, Array]] | None
    reported: Callable[[Array], Reported]
    needs: tuple[str, ...] = ("n", "d")

    @property
    def n_terms(self) -> int:
        return len(self.coefficients)

    @property
    def n_params(self) -> int:
        return len(self.coefficients) + len(self.exponents)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of theta's entries. The logarithm of a coefficient has the coefficient's
        name."""
        return self.coefficients + self.exponents

    def bounds(self) -> tuple[Array, Array]:
        """The lowest and highest theta, each (P)."""
        low = [LOG_FLOOR] * self.n_terms + [low for low, _ in self.ranges]
        high = [-2 * LOG_FLOOR] * self.n_terms + [high for _, high in self.ranges]
        return np.array(low), np.array(high)


@dataclass(frozen=True)
class Design:
    """A form at given points: Z (K, P, n) and offsets o (K, n). The log of term k at point i is
    Z[k, :, i] . theta + o[k, i]."""

    form: Form
    Z: Array
    offsets: Array

    @classmethod
    def of(cls, form: Form, n: Array, d: Array) -> Design:
        """Build the design. n, d: parameters and tokens of the points, each (n). A form in one
        variable reads that one only."""
        with np.errstate(invalid="ignore", divide="ignore"):
            log_n, log_d = np.log(n), np.log(d)
        slopes = form.slopes(log_n, log_d)
        K, n_points = form.n_terms, len(log_n)
        Z = np.zeros((K, form.n_params, n_points))
        Z[:, K:, :] = slopes.transpose(0, 2, 1)
        for k in range(K):
            Z[k, k, :] = 1
        offsets = np.zeros((K, n_points)) if form.offsets is None else form.offsets(log_n, log_d)
        return cls(form, Z, offsets)

    def log_terms(self, theta: Array) -> Array:
        """Map theta (S, P) to the logarithm of each term (S, K, n)."""
        K, P, n = self.Z.shape
        flat = theta @ self.Z.transpose(1, 0, 2).reshape(P, K * n)
        return flat.reshape(len(theta), K, n) + self.offsets

    def log_loss(self, theta: Array) -> Array:
        """Map theta (S, P) to the logarithm of the predicted loss (S, n)."""
        terms = self.log_terms(theta)
        top = terms.max(axis=1)
        total = top + np.log(np.exp(terms - top[:, None]).sum(axis=1))
        return (
            total
            if self.form.outer is None
            else total * theta[:, [self.form.n_terms + self.form.outer]]
        )


def predict_loss(form: Form, theta: Array, n: Array, d: Array) -> Array:
    """The loss in nats of `theta` (S, P) at points (n): (S, n)."""
    return np.exp(
        Design.of(form, np.asarray(n, float), np.asarray(d, float)).log_loss(np.atleast_2d(theta))
    )


def _stack(*terms: list[Array]) -> Array:
    """Stack the slopes of each term, one (n) array per exponent: (K, n, P - K)."""
    return np.array([np.array(term).T for term in terms])


def _allocation(alpha: Array, beta: Array) -> Reported:
    """The exponents a and b of N* ~ C^a and D* ~ C^b (Hoffmann et al. 2022, eq. 4)."""
    return {"a": beta / (alpha + beta), "b": alpha / (alpha + beta)}


# Hoffmann et al. 2022, approach 3.


def _chinchilla_slopes(log_n: Array, log_d: Array) -> Array:
    zero = np.zeros_like(log_n)
    return _stack([zero, zero], [-log_n, zero], [zero, -log_d])


def _chinchilla_tradeoff(theta: Array) -> tuple[Array, Array, Array, Array]:
    return np.exp(theta[:, 1]), np.exp(theta[:, 2]), theta[:, 3], theta[:, 4]


def _chinchilla_reported(theta: Array) -> Reported:
    E, A, B = np.exp(theta[:, :3]).T
    alpha, beta = theta[:, 3], theta[:, 4]
    return {"E": E, "A": A, "B": B, "alpha": alpha, "beta": beta} | _allocation(alpha, beta)


# Kaplan et al. 2020, with both variables. In theta: log A, log B, p = alpha_N / alpha_D and s =
# alpha_D.


def _kaplan_slopes(log_n: Array, log_d: Array) -> Array:
    zero = np.zeros_like(log_n)
    return _stack([-log_n, zero], [zero, zero])


def _kaplan_offsets(log_n: Array, log_d: Array) -> Array:
    return np.array([np.zeros_like(log_n), -log_d])


def _kaplan_tradeoff(theta: Array) -> tuple[Array, Array, Array, Array]:
    return np.exp(theta[:, 0]), np.exp(theta[:, 1]), theta[:, 2], np.ones(len(theta))


def _kaplan_reported(theta: Array) -> Reported:
    p, s = theta[:, 2], theta[:, 3]
    with np.errstate(over="ignore"):  # infinite where p is near 0: L hardly depends on N
        n_c = np.exp(theta[:, 0] / p)
    named = {
        "N_c": n_c,
        "D_c": np.exp(theta[:, 1]),
        "alpha_N": p * s,
        "alpha_D": s,
    }
    return named | _allocation(p, np.ones_like(p))


# Gadre et al. 2024. In theta: log E, log a, log b, eta.


def _gadre_slopes(log_n: Array, log_d: Array) -> Array:
    log_m, log_c = log_d - log_n, np.log(FLOPS_PER_PARAMETER_TOKEN) + log_n + log_d
    return _stack([np.zeros_like(log_n)], [log_m - log_c], [-log_m - log_c])


def _gadre_tradeoff(theta: Array) -> tuple[Array, Array, Array, Array]:
    # a M^eta C^-eta = a 6^-eta N^-2eta, and b M^-eta C^-eta = b 6^-eta D^-2eta
    eta = theta[:, 3]
    scale = FLOPS_PER_PARAMETER_TOKEN**-eta
    return np.exp(theta[:, 1]) * scale, np.exp(theta[:, 2]) * scale, 2 * eta, 2 * eta


def _gadre_reported(theta: Array) -> Reported:
    E, a, b = np.exp(theta[:, :3]).T
    eta = theta[:, 3]
    with np.errstate(over="ignore"):  # infinite where eta is near 0
        m_opt = (b / a) ** (1 / (2 * eta))
    return {"E": E, "a_M": a, "b_M": b, "eta": eta, "M_opt": m_opt}


# Power laws of one variable: Kaplan et al. 2020, and with a floor E.


def _one_variable(which: str) -> Callable[[Array, Array], Array]:
    def log_x(log_n: Array, log_d: Array) -> Array:
        both = np.log(FLOPS_PER_PARAMETER_TOKEN) + log_n + log_d
        return {"n": log_n, "d": log_d, "c": both}[which]

    return log_x


def _power(which: str, *, floor: bool) -> Form:
    log_x = _one_variable(which)
    X = which.upper()

    def slopes(log_n: Array, log_d: Array) -> Array:
        x = log_x(log_n, log_d)
        return _stack([np.zeros_like(x)], [-x]) if floor else _stack([-x])

    def reported(theta: Array) -> Reported:
        if floor:
            return {"E": np.exp(theta[:, 0]), "A": np.exp(theta[:, 1]), "alpha": theta[:, 2]}
        with np.errstate(over="ignore"):  # infinite where alpha is near 0
            x_c = np.exp(theta[:, 0] / theta[:, 1])
        return {f"{X}_c": x_c, f"alpha_{X}": theta[:, 1]}

    return Form(
        name=f"floor_{which}" if floor else f"kaplan_{which}",
        equation=f"L = E + A / {X}^alpha" if floor else f"L = ({X}_c / {X})^alpha_{X}",
        source="Henighan et al. 2020 (arXiv:2010.14701), eq. 1.1"
        if floor
        else f"Kaplan et al. 2020 (arXiv:2001.08361), eq. {dict(n='1.1', d='1.2', c='1.3')[which]}",
        coefficients=("E", "A") if floor else ("A",),
        exponents=("alpha",),
        ranges=((0.005, 3.0),),
        slopes=slopes,
        offsets=None,
        outer=None,
        tradeoff=None,
        reported=reported,
        needs=("n", "d") if which == "c" else (which,),
    )


CHINCHILLA = Form(
    name="chinchilla",
    equation="L = E + A / N^alpha + B / D^beta",
    source="Hoffmann et al. 2022 (arXiv:2203.15556), eq. 2, approach 3",
    coefficients=("E", "A", "B"),
    exponents=("alpha", "beta"),
    ranges=((0.005, 3.0), (0.005, 3.0)),
    slopes=_chinchilla_slopes,
    offsets=None,
    outer=None,
    tradeoff=_chinchilla_tradeoff,
    reported=_chinchilla_reported,
)
KAPLAN = Form(
    name="kaplan",
    equation="L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D",
    source="Kaplan et al. 2020 (arXiv:2001.08361), eq. 1.5",
    coefficients=("A", "B"),
    exponents=("p", "s"),
    ranges=((0.02, 5.0), (0.005, 2.0)),
    slopes=_kaplan_slopes,
    offsets=_kaplan_offsets,
    outer=1,
    tradeoff=_kaplan_tradeoff,
    reported=_kaplan_reported,
)
GADRE = Form(
    name="gadre",
    equation="L = E + (a M^eta + b M^-eta) C^-eta, with M = D / N and C = 6 N D",
    source="Gadre et al. 2024 (arXiv:2403.08540), eq. 4",
    coefficients=("E", "a", "b"),
    exponents=("eta",),
    ranges=((0.0025, 1.5),),
    slopes=_gadre_slopes,
    offsets=None,
    outer=None,
    tradeoff=_gadre_tradeoff,
    reported=_gadre_reported,
)
FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        CHINCHILLA,
        KAPLAN,
        GADRE,
        *(_power(which, floor=False) for which in "ndc"),
        *(_power(which, floor=True) for which in "ndc"),
    )
}


def every_form() -> dict[str, Form]:
    """Name -> form, of this package and of plugins."""
    return FORMS | {name: load() for name, load in added("forms").items()}


def form_named(name: str) -> Form:
    """The form with this name. Raises ConfigError, which lists the forms."""
    forms = every_form()
    if name not in forms:
        raise ConfigError(f"there is no form {name!r}", "form", f"There are: {', '.join(forms)}.")
    return forms[name]
