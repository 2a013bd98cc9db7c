"""Decide which points can be fitted, and what a set of points can identify."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from scaling.errors import DataError
from scaling.laws.forms import Array, Form, every_form
from scaling.laws.points import Points
from scaling.units import counted

DOMINATED_BY = 0.10
"""A run counts as diverged when a run with no more parameters and no more tokens ends with a loss
lower by this share. Assumption: far above the noise of seeds, which is under 2 % in Porian et al.
2024, table of section 3.1."""
WARMUP_SHARE = 0.5
"""Largest share of warm-up in a run that is fitted (assumption; Porian et al. 2024, section 3.3,
show the harm of a longer one)."""
_DIRECTIONS = 0.1
"""Least standard deviation of log D given log N, and of log N given log D, at which the two count
as independent: 10 %."""
REASONS = ("diverged", "undecayed", "warmup")


def screen(points: Points, *, keep: Collection[str] = ()) -> Points:
    """Leave out undecayed, warm-up dominated and diverged runs. keep: kinds in REASONS that
    stay."""
    if points.decayed is not None and "undecayed" not in keep:
        still = ~points.decayed
        points = points.without(
            still, ["undecayed: its learning rate had not come down"] * int(still.sum())
        )
    if points.warmup is not None and "warmup" not in keep:
        share = points.warmup / points.n_tokens
        mostly = share > WARMUP_SHARE
        points = points.without(
            mostly, [f"warm-up dominated: {100 * s:.0f} % of its tokens" for s in share[mostly]]
        )
    if "diverged" in keep or not {"n", "d"} <= set(points.known):
        return points
    better = [_much_better(points, i) for i in range(len(points))]
    gone = np.array([name is not None for name in better])
    why = (
        "over 10 % above {}, which had no more of N and D: diverged, badly tuned, or too few steps"
    )
    return points.without(gone, [why.format(name) for name in better if name is not None])


def _much_better(points: Points, i: int) -> str | None:
    less = (points.n_params <= points.n_params[i]) & (points.n_tokens <= points.n_tokens[i])
    lower = np.flatnonzero(less & (points.loss < (1 - DOMINATED_BY) * points.loss[i]))
    return points.names[lower[0]] if len(lower) else None


def drop_highest(points: Points, count: int) -> Points:
    """Leave out the `count` points with the highest loss, as the user asked."""
    if count == 0:
        return points
    if count >= len(points):
        raise DataError(
            f"drop_highest={count} leaves none of {counted(len(points), 'point')}",
            "drop_highest",
            "Drop fewer.",
        )
    gone = np.zeros(len(points), dtype=bool)
    gone[np.argsort(points.loss)[-count:]] = True
    return points.without(
        gone, [f"among the {count} highest losses (drop_highest={count})"] * count
    )


def cannot_fit(points: Points, form: Form) -> str | None:
    """Why this form cannot be fitted to these points; None when it can."""
    missing = [name.upper() for name in _needs(form) if name not in points.known]
    if missing:
        return f"{' and '.join(missing)} is not known"
    n_runs = len(np.unique(points.runs))
    if n_runs < form.n_params + 1:
        needed = f"at least {form.n_params + 1} are needed"
        return f"{counted(n_runs, 'run')} for {form.n_params} parameters; {needed}"
    for which, values in (("N", points.n_params), ("D", points.n_tokens), ("C", points.flops)):
        distinct = (
            len(np.unique(np.round(np.log(values), 3))) if which.lower() in _needs(form) else 99
        )
        if distinct < 3:
            return (
                f"only {distinct} different {which}: "
                "its exponent and coefficient cannot be distinguished from a constant"
            )
    return _together(points) if len(_needs(form)) == 2 else None


def _needs(form: Form) -> tuple[str, ...]:
    return ("c",) if form.name.endswith("_c") else form.needs


def _together(points: Points) -> str | None:
    log_n, log_d = np.log(points.n_params), np.log(points.n_tokens)
    if min(_spread_given(log_n, log_d), _spread_given(log_d, log_n)) >= _DIRECTIONS:
        return None
    if np.log(points.flops).std() < _DIRECTIONS:
        return "one compute budget only: N falls as D grows, so their effects are inseparable"
    return (
        "N and D grow together (one ratio of tokens to parameters): their effects are inseparable"
    )


def _spread_given(x: Array, y: Array) -> float:
    """Standard deviation of y about its regression line on x."""
    return float((y - np.polyval(np.polyfit(x, y, 1), x)).std())


def fittable(points: Points) -> dict[str, str | None]:
    """Map the name of each form to None, or to the reason why it cannot be fitted."""
    return {name: cannot_fit(points, form) for name, form in every_form().items()}
