"""Diagnose a fit: its sensitivity to choices, its errors beyond the fitted scale, and trends in its
residuals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from scaling.laws.checks import cannot_fit
from scaling.laws.fit import Fit, fit
from scaling.laws.forms import Array, Form
from scaling.laws.intervals import Bootstrap, percentile_interval
from scaling.laws.points import Points
from scaling.units import counted

DELTAS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Deltas to compare: nearly the median of residuals at one end, nearly least squares at the other,
for residuals of about a percent."""
_CUTS = (0.03, 0.1, 0.3, 0.5)
"""Compute cuts as shares of the largest run's compute."""
_OUTLIER = 5.0
"""Outliers: residuals beyond this many robust standard deviations (assumption)."""
_BENT_P, _BENT_R2, _BENT_SIZE = 1e-3, 0.25, 0.01
"""Residuals show a trend when a parabola in log(D/N) explains this share of their variance at this
significance, and its root mean square is at least 1 % of the loss (assumption)."""
_ILL = 1e10
"""Condition number of the parameters' correlations above which rounding decides some of them
(assumption)."""
_WIDE = 3.0
"""An exponent is poorly determined when its interval spans more than this factor (assumption)."""


@dataclass(frozen=True)
class Variant:
    """The same form fitted with one change: the change, the number of points and the parameters."""

    change: str
    n_points: int
    parameters: dict[str, float]


@dataclass(frozen=True)
class HeldOut:
    """A fit to the runs up to `cut` FLOPs, compared with the runs above it. errors: predicted /
    measured - 1, one per run above."""

    cut: float
    n_fitted: int
    errors: Array
    rows: NDArray[np.intp]
    parameters: dict[str, float]

    @property
    def mean_error(self) -> float:
        return float(np.abs(self.errors).mean())

    @property
    def max_error(self) -> float:
        return float(np.abs(self.errors).max())


def sensitivity(fitted: Fit, points: Points) -> list[Variant]:
    """Refit with other deltas, without outliers, and without the largest budget."""
    variants = [_variant(f"delta {delta:g}", fitted.form, points, delta) for delta in DELTAS]
    # s.d. of a normal from its MAD
    robust = 1.4826 * np.median(np.abs(fitted.residuals - np.median(fitted.residuals)))
    outlier = np.abs(fitted.residuals - np.median(fitted.residuals)) > _OUTLIER * robust
    if outlier.any():
        variants.append(
            _variant(
                f"without outliers ({int(outlier.sum())})",
                fitted.form,
                points.at(~outlier),
                fitted.delta,
            )
        )
    below = points.flops < 0.9 * points.flops.max()
    variants.append(
        _variant("without the largest budget", fitted.form, points.at(below), fitted.delta)
    )
    return [variant for variant in variants if variant.parameters]


def _variant(change: str, form: Form, points: Points, delta: float) -> Variant:
    if cannot_fit(points, form) is not None:
        return Variant(change, len(points), {})
    return Variant(
        change, len(points), fit(form, *points.variables(form), points.loss, delta=delta).parameters
    )


def held_out(
    form: Form, points: Points, *, delta: float, cuts: tuple[float, ...] = ()
) -> list[HeldOut]:
    """Fit below each compute cut and compare above it. Cuts with too few points on either side are
    skipped.

    cuts: in FLOPs; by default shares of the largest run's.
    """
    found = []
    for cut in cuts or tuple(share * points.flops.max() for share in _CUTS):
        low = points.flops <= cut
        if low.all() or cannot_fit(points.at(low), form) is not None:
            continue
        below, above = points.at(low), points.at(~low)
        fitted = fit(form, *below.variables(form), below.loss, delta=delta)
        errors = fitted.loss(*above.variables(form)) / above.loss - 1
        found.append(
            HeldOut(float(cut), len(below), errors, np.flatnonzero(~low), fitted.parameters)
        )
    return found


def warnings(fitted: Fit, points: Points, drawn: Bootstrap) -> list[str]:
    """Everything that a reader must know before trusting the numbers, as plain sentences."""
    found = [
        f"{name} ended at the bound of its range: the points do not determine it"
        for name in fitted.at_bound
    ]
    if fitted.gradient_norm > 1e-5:
        found.append(
            f"the minimisation did not converge: relative gradient norm {fitted.gradient_norm:.1g}"
        )
    if fitted.condition > _ILL:
        found.append(
            "the points leave some parameters undetermined (condition number "
            f"{fitted.condition:.1g}): their values and intervals mean little, only the losses "
            "that they predict together"
        )
    for name, exponents in zip(
        fitted.form.exponents, drawn.theta[:, fitted.form.n_terms :].T, strict=True
    ):
        low, high = percentile_interval(exponents)
        if high > _WIDE * low:
            found.append(
                f"{name} is poorly determined: 95 % of the draws lie in {low:.3g} to {high:.3g}"
            )
    if "E" in fitted.form.coefficients and np.quantile(drawn.theta[:, 0], 0.025) < np.log(0.05):
        found.append(
            "E cannot be distinguished from zero: the runs are too far from the irreducible loss"
        )
    if {"n", "d"} <= set(points.known) and (
        bend := _bend(fitted.residuals, np.log(points.n_tokens / points.n_params))
    ):
        found.append(bend)
    rivals = int((fitted.minima_objectives[1:] < 1.05 * fitted.objective).sum())
    if rivals:
        many = counted(rivals, "other minimum is", "other minima are")
        found.append(f"{many} within 5 % of the best objective")
    return found


def _bend(residuals: Array, log_ratio: Array) -> str | None:
    """A warning where residuals follow tokens per parameter (F test of a parabola against a
    constant), else None."""
    n = len(residuals)
    # three points fix a parabola; a few more can contradict it
    if n < 8 or log_ratio.std() < 0.1 or len(np.unique(np.round(log_ratio, 6))) < 4:
        return None
    t = (log_ratio - log_ratio.mean()) / log_ratio.std()
    total = ((residuals - residuals.mean()) ** 2).sum()
    left = ((residuals - np.polyval(np.polyfit(t, residuals, 2), t)) ** 2).sum()
    explained = 1 - left / total if total > 0 else 0.0
    if explained < _BENT_R2 or ((total - left) / n) ** 0.5 < _BENT_SIZE:
        return None
    if f_distribution.sf((total - left) / 2 / (left / (n - 3)), 2, n - 3) > _BENT_P:
        return None
    return (
        "residuals bend with tokens per parameter (a parabola explains "
        f"{100 * explained:.0f} % of them): the form does not hold over D/N from "
        f"{np.exp(log_ratio.min()):.2g} to {np.exp(log_ratio.max()):.2g}; outliers or undecayed "
        "runs can cause this"
    )
