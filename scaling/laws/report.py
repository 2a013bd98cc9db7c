"""Write the report of an analysis: one self-contained HTML page, its figures as PNG and SVG, and
fit.json."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from scaling.laws import fit_file
from scaling.laws.analysis import Analysis, FittedForm
from scaling.laws.figures import draw_all
from scaling.laws.forms import Array
from scaling.laws.intervals import Profile, percentile_interval
from scaling.laws.points import Excluded
from scaling.runs.files import disk_error, write_atomic
from scaling.units import counted

FILE = "report.html"
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.6rem }}
h2 {{ font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #e5e7eb }}
table {{ border-collapse: collapse; margin: .8rem 0 }}
th, td {{ padding: .2rem .9rem .2rem 0; text-align: right }}
td {{ white-space: nowrap }}
th {{ border-bottom: 1px solid #9ca3af; font-weight: 600 }} 
th:first-child, td:first-child {{ text-align: left; white-space: normal }}
img {{ max-width: 100%; display: block; margin: .6rem 0 }}
code {{ background: #f3f4f6; padding: 0 .25rem }}
.warning {{ background: #fff4e5; border-left: 4px solid #d55e00;
  padding: .4rem .8rem; margin: .4rem 0 }}
.quiet {{ color: #6b7280 }} details {{ margin: .6rem 0 }}
</style></head><body>
{body}
</body></html>
"""
_SHOWN_EXCLUDED = 200


def write_report(analysis: Analysis, directory: Path, *, title: str) -> list[Path]:
    """Write fit.json, every figure as PNG and SVG, and report.html; returns their paths. Raises
    RunDirError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error("create", directory, error) from error
    written = [fit_file.write(analysis, directory)]
    images: dict[str, bytes] = {}
    for name, png, svg in draw_all(analysis):
        images[name] = svg
        for suffix, content in (("png", png), ("svg", svg)):
            written.append(directory / f"{name}.{suffix}")
            write_atomic(written[-1], content)
    page = _PAGE.format(title=html.escape(title), body="\n".join(_body(analysis, images, title)))
    written.append(directory / FILE)
    write_atomic(written[-1], page.encode())
    return written


def _body(analysis: Analysis, images: dict[str, bytes], title: str) -> Iterator[str]:
    points, definitions = analysis.points, analysis.points.definitions
    yield f"<h1>{html.escape(title)}</h1>"
    yield (
        f"<p>{counted(len(points), 'point')} fitted, {len(points.excluded)} left out. "
        f"N counts: {html.escape(definitions.n_counts)}. "
        f"C counts: {html.escape(definitions.c_counts)}. "
        f"Loss: {html.escape(definitions.loss_of)}, nats per token. "
        "Intervals are 95 %, by bootstrap over runs unless another method is named.</p>"
    )
    for name, reason in analysis.refused.items():
        yield f'<p class="warning">Not fitted: {html.escape(name)}. {html.escape(reason)}.</p>'
    yield from _approaches(analysis, images)
    for fitted in analysis.forms.values():
        yield from _form(fitted)
    yield from _pictures(images, ("predicted_against_actual", "residuals", "bootstrap_pairs"))
    yield from _further(analysis, images)
    yield from _left_out(points.excluded)


def _approaches(analysis: Analysis, images: dict[str, bytes]) -> Iterator[str]:
    yield "<h2>How to split a budget: N* ~ C^a, D* ~ C^b</h2>"
    yield _table(("approach", "a", "95 %", "b", "95 %"), exponent_rows(analysis))
    yield from _pictures(images, ("loss_against_compute", "isoflop_curves", "allocation"))
    for axis, found in analysis.isoflop.items():
        troubles = [
            f"{curve.flops:.3g} FLOPs: {curve.trouble}" for curve in found.curves if curve.trouble
        ]
        note = f"{axis.upper()}: {counted(len(found.curves), 'curve')}, noise {found.noise}"
        text = html.escape("; ".join([note, *troubles]))
        yield f'<p class="quiet">IsoFLOP in {text}.</p>'


def exponent_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """One row per approach: its name, a and b with their intervals."""
    rows: list[tuple[str, ...]] = []
    if (envelope := analysis.envelope) is not None:
        a, interval = envelope.exponent, percentile_interval(envelope.exponents)
        rows.append(
            (
                "1, envelope",
                f"{a:.4f}",
                interval_text(interval),
                f"{1 - a:.4f}",
                interval_text((1 - interval[1], 1 - interval[0])),
            )
        )
    if analysis.isoflop:
        cells = []
        for axis in "nd":
            found = analysis.isoflop.get(axis)
            cells += (
                [f"{found.exponent:.4f}", interval_text(percentile_interval(found.exponents))]
                if found
                else ["", ""]
            )
        method = next(iter(analysis.isoflop.values())).method
        rows.append((f"2, IsoFLOP ({method})", *cells))
    for name, fitted in analysis.forms.items():
        drawn = fitted.fit.form.reported(fitted.bootstrap.theta)
        if "a" in drawn:
            cells = [
                part
                for key in "ab"
                for part in (
                    f"{fitted.fit.parameters[key]:.4f}",
                    interval_text(percentile_interval(drawn[key])),
                )
            ]
            rows.append((f"3, {name}", *cells))
    return rows


def _form(fitted: FittedForm) -> Iterator[str]:
    fit = fitted.fit
    yield f"<h2>{html.escape(fit.form.name)}: {html.escape(fit.form.equation)}</h2>"
    yield f'<p class="quiet">{html.escape(fit.form.source)}</p>'
    for warning in fitted.warnings:
        yield f'<p class="warning">{html.escape(warning)}.</p>'
    drawn = fit.form.reported(fitted.bootstrap.theta)
    profiles = {profile.name: profile for profile in fitted.profiles}
    rows = []
    for name, value in fit.parameters.items():
        rows.append(
            (
                name,
                number(value),
                _spread(drawn[name]),
                interval_text(percentile_interval(drawn[name])),
                _profile(profiles, name, fitted),
            )
        )
    head = ("parameter", "value", "s.e.", "bootstrap 95 %", "profile likelihood 95 %")
    shown = len(head) - (not profiles)
    yield _table(head[:shown], [row[:shown] for row in rows])
    runner_up = (
        f"{fit.minima_objectives[1]:.10g}" if len(fit.minima_objectives) > 1 else "none found"
    )
    bounds = ", ".join(fit.at_bound) or "none"
    yield (
        f"<p>Summed Huber objective {fit.objective:.10g} (delta {fit.delta:g}); "
        f"runner-up minimum {runner_up}; relative gradient norm {fit.gradient_norm:.1g}; "
        f"condition number {fit.condition:.3g}; at a bound: {bounds}.</p>"
    )
    yield "<h3>Held out by scale</h3>"
    cuts = []
    for cut in fitted.held_out:
        errors = (f"{100 * cut.mean_error:.3g} %", f"{100 * cut.max_error:.3g} %")
        cuts.append(
            (f"below {cut.cut:.3g} FLOPs", str(cut.n_fitted), str(len(cut.errors)), *errors)
        )
    yield _table(("fitted", "runs", "held out above", "mean error", "largest error"), cuts)
    yield "<h3>Sensitivity</h3>"
    names = list(fit.parameters)
    variants = [
        (v.change, str(v.n_points), *(f"{v.parameters[name]:.4g}" for name in names))
        for v in fitted.sensitivity
    ]
    yield _table(("fitted with", "points", *names), variants)


def _profile(profiles: dict[str, Profile], name: str, fitted: FittedForm) -> str:
    """The interval of one entry of theta; "open" on a side that the points do not bound."""
    profile = profiles.get(name)
    if profile is None:
        return ""
    is_log = name in fitted.fit.form.coefficients
    ends = [
        "open" if end is None else f"{math.exp(end) if is_log else end:.4g}"
        for end in (profile.low, profile.high)
    ]
    return " to ".join(ends)


def _further(analysis: Analysis, images: dict[str, bytes]) -> Iterator[str]:
    if (repeated := analysis.repeated) is not None:
        yield "<h2>Repeated data (Muennighoff et al. 2023)</h2>"
        rows = [
            (
                name,
                "unknown" if value is None else f"{value:.4g}",
                interval_text(repeated.interval(i)),
            )
            for i, (name, value) in enumerate((("R*_D", repeated.r_d), ("R*_N", repeated.r_n)))
        ]
        yield _table(("parameter", "value", "bootstrap 95 %"), rows)
        yield from (f'<p class="warning">{html.escape(note)}.</p>' for note in repeated.notes)
    if analysis.downstream:
        yield "<h2>From loss to the downstream metric</h2>"
        for fit in analysis.downstream:
            values = ", ".join(f"{name} {value:.4g}" for name, value in fit.parameters.items())
            yield f"<p>{fit.curve}: {values}; rms {fit.rms:.3g}.</p>"
        yield from _pictures(images, ("downstream",))


def _left_out(excluded: Sequence[Excluded]) -> Iterator[str]:
    if not excluded:
        return
    yield f"<h2>Left out</h2><details open><summary>{counted(len(excluded), 'point')}</summary>"
    yield _table(
        ("run", "reason"), [(item.run, item.reason) for item in excluded[:_SHOWN_EXCLUDED]]
    )
    if len(excluded) > _SHOWN_EXCLUDED:
        yield f"<p>and {len(excluded) - _SHOWN_EXCLUDED} more, in fit.json</p>"
    yield "</details>"


def _pictures(images: dict[str, bytes], names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name in images:
            data = base64.b64encode(images[name]).decode()
            yield f'<img alt="{name.replace("_", " ")}" src="data:image/svg+xml;base64,{data}">'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = list(rows)
    if not rows:
        return '<p class="quiet">None: too few points.</p>'
    lines = ["<table><tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += [
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    ]
    return "\n".join([*lines, "</table>"])


def interval_text(interval: tuple[float, float]) -> str:
    """The interval; "unknown" where no draw is a finite number."""
    low, high = interval
    return "unknown" if math.isnan(low) else f"{low:.4g} to {high:.4g}"


def number(value: float) -> str:
    """A parameter. N_c, D_c and C_c lie beyond all floats where an exponent is near 0."""
    return f"{value:.6g}" if math.isfinite(value) else "above 1e308"


def _spread(draws: Array) -> str:
    """The standard deviation of the draws; "unknown" where its square is beyond all floats."""
    with np.errstate(over="ignore", invalid="ignore"):
        spread = float(draws.std(ddof=1))
    return f"{spread:.3g}" if math.isfinite(spread) else "unknown"
