"""What the losses themselves identify: a variable that they do not follow beyond their noise has no
exponent.

A fit with the variable is compared with the fit without it, by the likelihood that also gives the
profile intervals (`intervals.py`).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from scaling.laws.checks import cannot_fit
from scaling.laws.fit import fit
from scaling.laws.forms import CHINCHILLA, FORMS, Array
from scaling.laws.huber import huber
from scaling.laws.intervals import likelihood_threshold
from scaling.laws.points import Points

_ROUNDING = 1e-7
"""Residuals of the log loss below this count as rounding (assumption: tables hold at most seven
digits)."""


def unidentified(points: Points, *, delta: float) -> dict[str, str]:
    """Map the name of each form whose exponents these losses leave open to the reason."""
    alone = {
        which: f"the losses do not fall with {which.upper()} beyond their noise, so its exponent "
        "cannot be identified"
        for which in "ndc"
        if cannot_fit(points, FORMS[f"floor_{which}"]) is None
        and _same(points, delta, _flat(points, delta), _left(points, delta, f"floor_{which}"))
    }
    found = {f"{kind}_{which}": why for which, why in alone.items() for kind in ("kaplan", "floor")}
    if cannot_fit(points, CHINCHILLA) is None:
        full = _left(points, delta, CHINCHILLA.name)
        blind = [
            which.upper()
            for which, other in (("n", "floor_d"), ("d", "floor_n"))
            if _same(points, delta, _left(points, delta, other), full)
        ]
        if blind:
            exponents = "their exponents" if len(blind) > 1 else "its exponent"
            why = (
                f"the losses do not follow {' and '.join(blind)} beyond their noise, so "
                f"{exponents} cannot be identified"
            )
            found |= dict.fromkeys(("chinchilla", "kaplan", "gadre"), why)
    return found


def _left(points: Points, delta: float, name: str) -> float:
    """The objective of a form's best fit."""
    form = FORMS[name]
    return fit(form, *points.variables(form), points.loss, delta=delta).objective


def _flat(points: Points, delta: float) -> float:
    """The objective of the best constant."""
    log_loss: Array = np.log(points.loss)
    low, high = float(log_loss.min()), float(log_loss.max())
    if low == high:
        return 0.0
    found = minimize_scalar(
        lambda level: float(huber(log_loss - level, delta).sum()),
        bounds=(low, high),
        method="bounded",
    )
    return float(found.fun)


def _same(points: Points, delta: float, without: float, full: float) -> bool:
    """Whether a fit without a variable is within the 95 % likelihood interval of the full one.

    Noise of a few points can pass for a variable by chance; `diagnose.warnings` then names an
    exponent that is poorly determined.
    """
    smallest = max(full, len(points) * _ROUNDING**2 / 2)
    return without <= likelihood_threshold(smallest, len(points), delta)
