"""What a fit prints: its points, its forms with their intervals, and what could not be fitted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from scaling.laws.intervals import percentile_interval
from scaling.laws.report import exponent_rows, interval_text, number
from scaling.screen import Column, FittedTable
from scaling.units import counted

if TYPE_CHECKING:
    from scaling.laws.analysis import Analysis
    from scaling.laws.points import Points

_SHOWN_EXCLUDED = 5


def excluded_lines(points: Points) -> Iterator[str]:
    """The runs that are left out, the first few by name."""
    for excluded in points.excluded[:_SHOWN_EXCLUDED]:
        yield f"Left out {excluded.run}: {excluded.reason}"
    if len(points.excluded) > _SHOWN_EXCLUDED:
        yield f"Left out {len(points.excluded) - _SHOWN_EXCLUDED} more; the report lists them"


def analysis_items(analysis: Analysis) -> Iterator[str | FittedTable]:
    """The parts of an analysis in reading order."""
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
            table.add(name, key, number(value), interval_text(percentile_interval(drawn[key])))
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
