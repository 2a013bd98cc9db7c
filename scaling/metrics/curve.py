"""The picture of a run: loss against tokens, from metrics.jsonl."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import DataError
from scaling.metrics import names
from scaling.metrics.record import Record, read_metrics
from scaling.runs.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]

# Blue and vermilion of Okabe and Ito 2008, told apart by colour-blind readers and in grey print.
_TRAIN, _VAL, _QUIET, _INK = "#0072B2", "#D55E00", "#6B7280", "#1F2937"
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "font.family": ["DejaVu Sans"],
    "text.color": _INK,
    "text.parse_math": False,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#9CA3AF",
    "xtick.color": "#4B5563",
    "ytick.color": "#4B5563",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E5E7EB",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}
_MANY_POINTS = 60  # more than this are drawn faint, with a running mean over a fiftieth of them


def plot_loss_curve(
    metrics_path: Path, png_path: Path, *, baselines: Mapping[str, float] | None = None, title: str
) -> None:
    """Write `loss_curve` to `png_path`, completely or not at all. Raises DataError or
    RunDirError."""
    write_atomic(Path(png_path), loss_curve(metrics_path, baselines=baselines, title=title))


def loss_curve(
    metrics_path: Path, *, baselines: Mapping[str, float] | None = None, title: str
) -> bytes:
    """Training and validation loss (nats per token) against tokens, with `baselines` as labelled
    levels.

    A PNG of 1400 x 875 pixels. Points that are not finite are left out. Raises DataError when no
    loss was recorded, RunDirError when the file cannot be read.
    """
    records = read_metrics(metrics_path, only=(names.N_TOKENS, names.TRAIN_LOSS, names.VAL_LOSS))
    train, val = loss_points(records, names.TRAIN_LOSS), loss_points(records, names.VAL_LOSS)
    if not train and not val:
        raise DataError(
            f"{metrics_path} holds no loss to draw", fix="Train for at least train.log_every steps."
        )
    return _draw(train, val, baselines or {}, title)


def loss_points(records: Sequence[Record], name: str) -> Points:
    """(tokens, value) of every record that has a finite `name`."""
    return [(r[names.N_TOKENS], r[name]) for r in records if name in r and math.isfinite(r[name])]


def running_mean(values: Sequence[float], half_width: int) -> list[float]:
    """Mean over up to `half_width` neighbours on each side, and as many on both, so that the ends
    do not lag."""
    means = []
    for i in range(len(values)):
        reach = min(half_width, i, len(values) - 1 - i)
        window = values[i - reach : i + reach + 1]
        means.append(math.fsum(window) / len(window))
    return means


def _draw(train: Points, val: Points, baselines: Mapping[str, float], title: str) -> bytes:
    # The object API with its own canvas: no pyplot, no global figure, no display.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.75, 5.46875), dpi=160, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw_train(axes, train)
        _draw_val(axes, val)
        _set_axes(axes, [*train, *val], baselines)
        axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=32)
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, frameon=False, columnspacing=2
        )
        canvas.draw()  # places the axes, so that names can be placed in them
        figure.set_layout_engine("none")
        _draw_baselines(axes, baselines, [*_dense(train), *val])
        image = io.BytesIO()
        figure.savefig(image, format="png")
    return image.getvalue()


def _draw_train(axes: Axes, train: Points) -> None:
    if not train:
        return
    tokens, losses = zip(*train, strict=True)
    last = f"training  {losses[-1]:.3f}"
    if len(train) <= _MANY_POINTS:
        axes.plot(
            tokens,
            losses,
            color=_TRAIN,
            linewidth=2,
            label=last,
            marker="o" if len(train) == 1 else None,
        )
        return
    axes.plot(tokens, losses, color=_TRAIN, linewidth=0.8, alpha=0.3)
    half_width = max(2, len(train) // 100)
    means = running_mean(losses, half_width)
    ends = half_width // 2  # the outermost means are over few points: the faint line serves there
    axes.plot(tokens[ends:-ends], means[ends:-ends], color=_TRAIN, linewidth=2, label=last)


def _draw_val(axes: Axes, val: Points) -> None:
    if not val:
        return
    tokens, losses = zip(*val, strict=True)
    # Points alone: a line between two far apart would run above a convex curve and look like a gap
    # to training.
    style: dict[str, Any] = {
        "linestyle": "none",
        "marker": "o",
        "markersize": 7,
        "markeredgecolor": "white",
        "zorder": 4,
    }
    axes.plot(
        tokens, losses, color=_VAL, label=f"validation  {losses[-1]:.3f}", clip_on=False, **style
    )


def _draw_baselines(axes: Axes, baselines: Mapping[str, float], points: Points) -> None:
    """Dashed levels, each with its name where it covers neither a point nor another name."""
    taken: list[Box] = []
    to_pixels = axes.transData.transform
    dots = [tuple(to_pixels(point)) for point in points]
    frame = axes.get_window_extent()
    lines = [to_pixels((0, level))[1] for level in baselines.values()]
    for name, level in sorted(baselines.items(), key=lambda item: -item[1]):
        axes.axhline(level, color=_QUIET, linewidth=1.1, linestyle=(0, (5, 4)), zorder=1)
        text = axes.annotate(
            f"{name}  {level:.3f}",
            (1, level),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            xytext=(0, 0),
            ha="right",
            va="bottom",
            fontsize=9.5,
            color=_QUIET,
            zorder=5,
        )
        size = text.get_window_extent()
        line = to_pixels((0, level))[1]
        pad = size.height / 4
        boxes = list(_boxes(frame.x0, frame.x1, line, size.width, size.height, pad))
        box = min(
            boxes,
            key=lambda box: (
                _covered(box, dots, taken, lines, (frame.y0, frame.y1)),
                boxes.index(box),
            ),
        )
        taken.append(box)
        text.set_position(
            ((box[2] - frame.x1) * 72 / axes.figure.dpi, (box[1] - line) * 72 / axes.figure.dpi)
        )


Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in pixels."""


def _boxes(
    left: float, right: float, line: float, width: float, height: float, pad: float
) -> Iterator[Box]:
    """Where a name may stand: from the right end to the left, above the level and below it."""
    steps = 24
    for step in range(steps + 1):
        end = right - step * (right - left - width) / steps
        yield end - width, line + pad, end, line + pad + height
        yield end - width, line - pad - height, end, line - pad


def _covered(
    box: Box,
    dots: Sequence[tuple[float, ...]],
    taken: Sequence[Box],
    lines: Sequence[float],
    heights: tuple[float, float],
) -> int:
    """How many points lie in a box or on its edge; a level counts as some, a name or the end of the
    axes as many."""
    left, bottom, right, top = box
    margin = 8  # half a marker, and the width of a line
    found = sum(
        left - margin < x < right + margin and bottom - margin < y < top + margin for x, y in dots
    )
    found += sum(20 for line in lines if bottom - 1 < line < top + 1)
    for other in taken:
        if left < other[2] and other[0] < right and bottom < other[3] and other[1] < top:
            found += 1000
    return found + 1000 * (bottom < heights[0] or top > heights[1])


def _dense(points: Points, between: int = 8) -> Points:
    """The points and some of the line between them, since a name may not lie on that either."""
    found = list(points)
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        found += [
            (x0 + (x1 - x0) * k / between, y0 + (y1 - y0) * k / between) for k in range(1, between)
        ]
    return found


def _set_axes(axes: Axes, points: Points, baselines: Mapping[str, float]) -> None:
    from matplotlib.ticker import FuncFormatter, ScalarFormatter

    from scaling.units import format_count

    levels = [loss for _, loss in points] + list(baselines.values())
    low, high = min(levels), max(levels)
    margin = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(0, max(tokens for tokens, _ in points) * 1.01 or 1)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: format_count(value) if value else "0")
    )
    # whole losses, however close: no "+2.999" above the axis
    axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.tick_params(length=0, pad=6)
    axes.set_xlabel("tokens seen in training")
    axes.set_ylabel("loss (nats per token)")
