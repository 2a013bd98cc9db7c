"""python -m scaling.fit: the scaling laws of a study or a table of runs, with a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.asked import answered
from scaling.errors import ScalingError
from scaling.laws.options import FitOptions, keys_help, parse

if TYPE_CHECKING:
    from scaling.laws.analysis import Analysis

USAGE = f"""\
Usage: python -m scaling.fit study=DIR [KEY=VALUE ...]
       python -m scaling.fit table=FILE.csv n=COLUMN c=COLUMN loss=COLUMN [KEY=VALUE ...]

Fits scaling laws and writes report.html, its figures (PNG, SVG) and fit.json, which python -m scaling.predict reads.

{keys_help(FitOptions)}

Exit codes: 0 fitted; 2 a wrong argument; 1 points that cannot be read or allow no fit."""
_SHOWN_EXCLUDED = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, write the report and print its core; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if answered(words, lambda: print(USAGE)):
        return 0
    try:
        options = parse(FitOptions, words, "scaling.fit")
        from scaling.laws.analysis import analyse, load_points
        from scaling.laws.report import write_report

        points = load_points(options)
        for excluded in points.excluded[:_SHOWN_EXCLUDED]:
            print(f"Left out {excluded.run}: {excluded.reason}")
        if len(points.excluded) > _SHOWN_EXCLUDED:
            print(f"Left out {len(points.excluded) - _SHOWN_EXCLUDED} more; the report lists them")
        analysis = analyse(points, options)
        _print(analysis)
        source = Path(str(options.study or options.table))
        written = write_report(analysis, _directory(options), title=f"Scaling laws of {source.name}")
    except ScalingError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    print(f"Report: {written[-1]}")
    return 0


def _directory(options: FitOptions) -> Path:
    if options.out is not None:
        return Path(options.out)
    return Path(options.study) / "laws" if options.study is not None else Path(f"laws-{Path(str(options.table)).stem}")


def _print(analysis: Analysis) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from scaling.laws.intervals import percentile_interval
    from scaling.laws.report import exponent_rows

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=160)  # a file or a pipe has no width to keep to
    definitions = analysis.points.definitions
    console.print(
        f"{len(analysis.points)} points; N counts: {definitions.n_counts}; C counts: {definitions.c_counts}", markup=False
    )
    table = Table(box=box.SIMPLE_HEAD, title="Fitted forms, 95 % intervals by bootstrap over runs", title_justify="left")
    for heading in ("form", "parameter", "value", "interval"):
        table.add_column(heading, justify="left" if heading in ("form", "parameter") else "right", no_wrap=True)
    for name, fitted in analysis.forms.items():
        drawn = fitted.fit.form.reported(fitted.bootstrap.theta)
        for key, value in fitted.fit.parameters.items():
            low, high = percentile_interval(drawn[key])
            table.add_row(name, key, f"{value:.6g}", f"{low:.4g} to {high:.4g}")
            name = ""
        table.add_row("", "objective", f"{fitted.fit.objective:.10g}", "", end_section=True)
    if analysis.forms:
        console.print(table)
    split = Table(box=box.SIMPLE_HEAD, title="N* ~ C^a, D* ~ C^b", title_justify="left")
    for heading in ("approach", "a", "95 %", "b", "95 %"):
        split.add_column(heading, justify="left" if heading == "approach" else "right", no_wrap=True)
    rows = exponent_rows(analysis)
    for row in rows:
        split.add_row(*row)
    if rows:
        console.print(split)
    for name, fitted in analysis.forms.items():
        for warning in fitted.warnings:
            console.print(f"Warning, {name}: {warning}", markup=False)
    for name, reason in analysis.refused.items():
        console.print(f"Not fitted, {name}: {reason}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
