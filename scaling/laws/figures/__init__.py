"""The figures of a report. Each is a function analysis -> Figure; None where it has nothing to
show."""

from __future__ import annotations

import io
from collections.abc import Iterator

from scaling.laws.analysis import Analysis
from scaling.laws.figures.budgets import allocation, isoflop_curves, loss_against_compute
from scaling.laws.figures.canvas import STYLE
from scaling.laws.figures.goodness import (
    bootstrap_pairs,
    downstream,
    predicted_against_actual,
    residuals,
)

FIGURES = {
    "loss_against_compute": loss_against_compute,
    "isoflop_curves": isoflop_curves,
    "allocation": allocation,
    "predicted_against_actual": predicted_against_actual,
    "residuals": residuals,
    "bootstrap_pairs": bootstrap_pairs,
    "downstream": downstream,
}


def draw_all(analysis: Analysis) -> Iterator[tuple[str, bytes, bytes]]:
    """Draw every figure that the analysis supports, as (name, PNG, SVG)."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw(analysis)
            if figure is None:
                continue
            png, svg = io.BytesIO(), io.BytesIO()
            FigureCanvasAgg(figure)
            figure.savefig(png, format="png")
            FigureCanvasSVG(figure)
            figure.savefig(svg, format="svg", metadata={"Date": None})
            yield name, png.getvalue(), svg.getvalue()
