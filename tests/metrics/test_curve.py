"""The picture of a loss curve."""

from __future__ import annotations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scaling.metrics.curve import _set_axes


def test_close_losses_stand_whole_beside_their_axis() -> None:
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _set_axes(axes, [(0, 2.9995), (1000, 2.9991)], {"unigram": 3.0})
    figure.canvas.draw()
    assert axes.yaxis.get_offset_text().get_text() == ""
    assert all(label.get_text().startswith(("2.9", "3.0")) for label in axes.get_yticklabels())
