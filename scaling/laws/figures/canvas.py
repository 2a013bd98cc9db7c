"""The look of the report's figures: colours, sizes, ticks and uncertainty bands."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.laws.forms import Array
from scaling.laws.intervals import LEVEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008: told apart by colour-blind readers and in grey print.
BLUE, VERMILION, GREEN, PURPLE, QUIET, INK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#6B7280",
    "#1F2937",
)
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "font.family": ["DejaVu Sans"],
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9CA3AF",
    "xtick.color": "#4B5563",
    "ytick.color": "#4B5563",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E7EB",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlesize": 12,
    "legend.frameon": False,
    "svg.hashsalt": "scaling",
    "svg.fonttype": "path",
    "mathtext.default": "regular",
}


def new_figure(width: float = 8.2, height: float = 4.9) -> tuple[Figure, Axes]:
    # The object API with its own canvas: no pyplot, no global figure, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.add_subplot()


def spans(x: Array) -> bool:
    """Whether the values differ by more than 1 %, so that an axis makes sense."""
    return bool(x.max() > 1.01 * x.min())


def draw_band(axes: Axes, flops: Array, sample: Array, colour: str, label: str) -> None:
    low, high = band(sample[1:])
    axes.fill_between(flops, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(flops, sample[0], color=colour, linewidth=1.6, label=label)


def band(draws: Array) -> tuple[Array, Array]:
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def legend(axes: Axes, **look: Any) -> None:
    """A legend, where anything has a label: matplotlib warns of an empty one."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**look)


def log_ticks(axes: Axes, which: str, shown: Callable[[float], str] | None = None) -> None:
    """Label decades, and on a narrow axis also 2 and 5: as powers of ten, or through `shown`."""
    from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter

    axis = axes.yaxis if which == "y" else axes.xaxis
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=9 if len(subs) > 1 else 5))
    powers = LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf))  # labels at 2 and 5 too
    axis.set_major_formatter(
        powers if shown is None else FuncFormatter(lambda value, _: shown(value))
    )
    axis.set_minor_formatter(NullFormatter())


def plain_ticks(axes: Axes, which: str, most: int = 6) -> None:
    """Label an axis of about one decade with a few plain numbers instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
