"""Analyse one table of points: fit each form with its uncertainty, apply the three approaches, and
list what cannot be fitted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scaling.config.paths import plain
from scaling.errors import DataError
from scaling.laws.checks import drop_highest, fittable, screen
from scaling.laws.diagnose import HeldOut, Variant, held_out, sensitivity, warnings
from scaling.laws.downstream import CURVES, DownstreamFit, fit_downstream
from scaling.laws.envelope import Envelope, fit_envelope
from scaling.laws.fit import Fit, fit
from scaling.laws.forecast import Law
from scaling.laws.forms import Form, form_named
from scaling.laws.from_runs import points_of_study
from scaling.laws.from_table import Columns, points_of_rows, read_rows
from scaling.laws.identified import unidentified
from scaling.laws.intervals import Bootstrap, Profile, bootstrap, profile
from scaling.laws.isoflop import IsoFlop, fit_isoflop
from scaling.laws.options import FitOptions
from scaling.laws.points import Points
from scaling.laws.repeated import RepeatedFit, fit_repeated

TWO_VARIABLES = ("chinchilla", "kaplan", "gadre")


@dataclass(frozen=True)
class FittedForm:
    """A fitted form with its uncertainty and its warnings."""

    fit: Fit
    bootstrap: Bootstrap
    profiles: tuple[Profile, ...]
    sensitivity: tuple[Variant, ...]
    held_out: tuple[HeldOut, ...]
    warnings: tuple[str, ...]
    law: Law


@dataclass(frozen=True)
class Analysis:
    """The result of all fits. refused: name of a fit -> why it is impossible. isoflop: by axis
    ("n", "d"), where the points form IsoFLOP curves."""

    points: Points
    options: FitOptions
    forms: dict[str, FittedForm]
    refused: dict[str, str]
    isoflop: dict[str, IsoFlop]
    envelope: Envelope | None
    repeated: RepeatedFit | None
    downstream: tuple[DownstreamFit, ...]


def load_points(options: FitOptions) -> Points:
    """Read and screen the points that `options` names. Raises DataError or ConfigError."""
    if options.study is not None:
        points = points_of_study(
            Path(plain(options.study)),
            n_counts=options.n_counts or "with_embeddings",
            c_counts=options.c_counts or "exact",
            keep=options.keep,
        )
        return drop_highest(screen(points, keep=options.keep), options.drop_highest)
    path = Path(plain(str(options.table)))
    rows = read_rows(path, where=dict(options.where), same=options.same)
    columns = Columns(
        options.loss,
        options.n,
        options.d,
        options.c,
        options.run,
        options.unique,
        options.metric,
        options.warmup,
        options.decayed,
    )
    points = points_of_rows(
        rows,
        columns,
        path,
        n_counts=options.n_counts or "as in the table",
        c_counts=options.c_counts,
    )
    return drop_highest(screen(points, keep=options.keep), options.drop_highest)


def analyse(points: Points, options: FitOptions) -> Analysis:
    """Fit every form and approach that these points allow. Raises DataError when they allow
    none."""
    troubles = fittable(points)
    unclear = unidentified(points, delta=options.delta)
    _refuse_noise(points, options, troubles, unclear)
    troubles |= {name: why for name, why in unclear.items() if troubles[name] is None}
    wanted = [form_named(name).name for name in options.form] or _by_default(troubles)
    refused = {name: str(troubles[name]) for name in wanted if troubles[name] is not None}
    if not options.form:
        refused |= {
            name: str(troubles[name]) for name in TWO_VARIABLES if troubles[name] is not None
        }
    forms = {
        name: _fit_form(form_named(name), points, options)
        for name in wanted
        if troubles[name] is None
    }
    isoflop: dict[str, IsoFlop] = {}
    envelope: Envelope | None = None
    repeated: RepeatedFit | None = None
    downstream: list[DownstreamFit] = []
    if {"n", "d"} <= set(points.known):
        isoflop, envelope = _approaches(points, options, refused)
    if points.unique_tokens is not None:
        try:
            repeated = fit_repeated(
                points, delta=options.delta, draws=min(options.draws, 200), seed=options.seed
            )
        except DataError as error:
            refused["repeated data"] = error.what
    if points.metric is not None:
        for curve in CURVES:
            try:
                downstream.append(
                    fit_downstream(points, curve, draws=min(options.draws, 200), seed=options.seed)
                )
            except DataError as error:
                refused[f"metric, {curve}"] = error.what
    if not (forms or isoflop or envelope or repeated or downstream):
        by_reason: dict[str, list[str]] = {}
        for name, reason in refused.items():
            by_reason.setdefault(reason, []).append(name)
        reasons = "; ".join(f"{', '.join(names)}: {why}" for why, names in by_reason.items())
        possible = [name for name, trouble in troubles.items() if trouble is None]
        fix = (
            f"What can still be fitted: form={','.join(possible)}."
            if possible
            else "Add runs of other sizes and lengths."
        )
        few = "this point allows" if len(points) == 1 else f"these {len(points)} points allow"
        what = f"{few} no fit ({reasons})"
        raise DataError(what, options.table or options.study, fix)
    return Analysis(points, options, forms, refused, isoflop, envelope, repeated, tuple(downstream))


def _refuse_noise(
    points: Points, options: FitOptions, troubles: dict[str, str | None], unclear: dict[str, str]
) -> None:
    """Raises DataError where the losses identify none of the forms that the runs allow."""
    possible = {name for name, trouble in troubles.items() if trouble is None}
    if not possible or not possible <= unclear.keys():
        return
    low, high = points.loss.min(), points.loss.max()
    *others, last = [name.upper() for name in points.known]
    known = f"{', '.join(others)} or {last}" if others else last
    raise DataError(
        f"the losses of these {len(points)} points ({low:.6g} to {high:.6g}) do not fall with "
        f"{known} beyond their noise, so no exponent can be identified",
        options.table or options.study,
        "Add runs that differ more in size or length.",
    )


def _by_default(troubles: dict[str, str | None]) -> list[str]:
    """The forms in N and D that the points allow; if there are none, the forms in one variable."""
    both = [name for name in TWO_VARIABLES if troubles[name] is None]
    return both or [
        name for name, trouble in troubles.items() if trouble is None and name not in TWO_VARIABLES
    ]


def _approaches(
    points: Points, options: FitOptions, refused: dict[str, str]
) -> tuple[dict[str, IsoFlop], Envelope | None]:
    isoflop = {}
    for axis in "nd":
        found = fit_isoflop(
            points,
            axis=axis,
            method=options.curve,
            noise=options.noise,
            budgets=options.budgets,
            draws=options.draws,
            seed=options.seed,
            window=options.window,
        )
        if found is None:
            refused[f"IsoFLOP in {axis.upper()}"] = (
                "fewer than two budgets have enough sizes and a minimum between them"
            )
        else:
            isoflop[axis] = found
    envelope = fit_envelope(points, draws=options.draws, seed=options.seed)
    if envelope is None:
        refused["envelope"] = "too few runs that no cheaper run beats"
    return isoflop, envelope


def _fit_form(form: Form, points: Points, options: FitOptions) -> FittedForm:
    n, d = points.variables(form)
    fitted = fit(form, n, d, points.loss, delta=options.delta)
    drawn = bootstrap(
        fitted, n, d, points.loss, points.runs, draws=options.draws, seed=options.seed
    )
    law = Law(
        form, fitted.theta, drawn.theta, fitted.residuals, points.definitions, *_range(points)
    )
    return FittedForm(
        fit=fitted,
        bootstrap=drawn,
        profiles=tuple(profile(fitted, n, d, points.loss, drawn.theta)),
        sensitivity=tuple(sensitivity(fitted, points)),
        held_out=tuple(held_out(form, points, delta=options.delta, cuts=options.cuts)),
        warnings=tuple(warnings(fitted, points, drawn)),
        law=law,
    )


def _range(points: Points) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The smallest and the largest N, D and C; NaN for an unknown variable."""
    n, d, c = points.n_params, points.n_tokens, points.flops
    return (
        (float(n.min()), float(d.min()), float(c.min())),
        (float(n.max()), float(d.max()), float(c.max())),
    )
