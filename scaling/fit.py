"""python -m scaling.fit: fit scaling laws to a study or a table of runs, and write a report."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.composition.flags import answered
from scaling.composition.words import read_options
from scaling.errors import ScalingError
from scaling.laws.options import FitOptions, keys_help
from scaling.screen import Column, FittedTable, print_help, print_items, visible
from scaling.units import counted

if TYPE_CHECKING:
    from scaling.laws.analysis import Analysis

USAGE = f"""\
Usage: python -m scaling.fit study=DIR [KEY=VALUE ...]
       python -m scaling.fit table=FILE.csv n=COLUMN c=COLUMN loss=COLUMN [KEY=VALUE ...]

Fits scaling laws. Writes report.html, its figures (PNG, SVG) and fit.json, which
python -m scaling.predict reads.

{keys_help(FitOptions)}

Exit codes: 0 fitted; 1 points that cannot be read or allow no fit; 2 a wrong argument."""
_SHOWN_EXCLUDED = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, write the report and print its core; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if answered(words, lambda: print_help(USAGE)):
        return 0
    try:
        options = read_options(FitOptions, words)
        from scaling.laws.analysis import analyse, load_points
        from scaling.laws.report import write_report

        points = load_points(options)
        for excluded in points.excluded[:_SHOWN_EXCLUDED]:
            print(visible(f"Left out {excluded.run}: {excluded.reason}"))
        if len(points.excluded) > _SHOWN_EXCLUDED:
            print(f"Left out {len(points.excluded) - _SHOWN_EXCLUDED} more; the report lists them")
        analysis = analyse(points, options)
        print_items(_shown(analysis))
        source = Path(str(options.study or options.table))
        written = write_report(
            analysis, _directory(options), title=f"Scaling laws of {source.name}"
        )
    except ScalingError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    print(f"Report: {written[-1]}")
    return 0


def _directory(options: FitOptions) -> Path:
    if options.out is not None:
        return Path(options.out)
    return (
        Path(options.study) / "laws"
        if options.study is not None
        else Path(f"laws-{Path(str(options.table)).stem}")
    )


def _shown(analysis: Analysis) -> Iterator[str | FittedTable]:
    from scaling.laws.intervals import percentile_interval
    from scaling.laws.report import exponent_rows

    definitions = analysis.points.definitions
    n_points = counted(len(analysis.points), "point")
    yield f"{n_points}; N counts: {definitions.n_counts}; C counts: {definitions.c_counts}"
    columns = (
        Column("form", left=True, wraps=True),
        Column("parameter", left=True),
        Column("value"),
        Column("interval"),
    )
    table = FittedTable(columns, "Fitted forms, 95 % intervals by bootstrap over runs")
    for name, fitted in analysis.forms.items():
        drawn = fitted.fit.form.reported(fitted.bootstrap.theta)
        for key, value in fitted.fit.parameters.items():
            low, high = percentile_interval(drawn[key])
            table.add(name, key, f"{value:.6g}", f"{low:.4g} to {high:.4g}")
            name = ""
        table.add("", "objective", f"{fitted.fit.objective:.10g}", "")
    if table.rows:
        yield table
    split_columns = (
        Column("approach", wraps=True),
        Column("a"),
        Column("95 % of a"),
        Column("b"),
        Column("95 % of b"),
    )
    split = FittedTable(split_columns, "N* ~ C^a, D* ~ C^b")
    for row in exponent_rows(analysis):
        split.add(*row)
    if split.rows:
        yield split
    yield from (
        f"Warning, {name}: {warning}"
        for name, fitted in analysis.forms.items()
        for warning in fitted.warnings
    )
    yield from (f"Not fitted, {name}: {reason}" for name, reason in analysis.refused.items())


if __name__ == "__main__":
    sys.exit(main())
