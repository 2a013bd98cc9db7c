"""The picture of a run: loss against tokens, from metrics.jsonl."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import DataError
from scaling.files import write_atomic
from scaling.metrics import names
from scaling.metrics.record import Record, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]

# Blue and vermilion of Okabe and Ito 2008, told apart by colour-blind readers and in grey print.
_TRAIN, _VAL, _QUIET, _INK = "#0072B2", "#D55E00", "#6B7280", "#1F2937"
_STYLE: dict[Any, Any] = {
    "font.size": 11, "font.family": ["DejaVu Sans"], "text.color": _INK, "text.parse_math": False, "axes.labelcolor": _INK,
    "axes.edgecolor": "#9CA3AF", "xtick.color": "#4B5563", "ytick.color": "#4B5563",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
    "grid.color": "#E5E7EB", "grid.linewidth": 0.8, "axes.axisbelow": True,
}  # fmt: skip
_MANY_POINTS = 60  # more than this are drawn faint, with a running mean over a fiftieth of them


def plot_loss_curve(metrics_path: Path, png_path: Path, *, baselines: Mapping[str, float] | None = None, title: str) -> None:
    """Draw training and validation loss (nats per token) against tokens, with `baselines` as labelled levels.

    Points that are not finite are left out. The PNG, 1400 x 875 pixels, is complete or absent. Raises DataError when
    no loss was recorded, RunDirError when a file cannot be read or written.
    """
    records = read_metrics(metrics_path, only=(names.N_TOKENS, names.TRAIN_LOSS, names.VAL_LOSS))
    train, val = loss_points(records, names.TRAIN_LOSS), loss_points(records, names.VAL_LOSS)
    if not train and not val:
        raise DataError(f"{metrics_path} holds no loss to draw", fix="Train for at least train.log_every steps.")
    write_atomic(Path(png_path), _draw(train, val, baselines or {}, title))


def loss_points(records: Sequence[Record], name: str) -> Points:
    """(tokens, value) of every record that has a finite `name`."""
    return [(r[names.N_TOKENS], r[name]) for r in records if name in r and math.isfinite(r[name])]


def running_mean(values: Sequence[float], half_width: int) -> list[float]:
    """Mean over up to `half_width` neighbours on each side, and as many on both, so that the ends do not lag."""
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
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw_train(axes, train)
        _draw_val(axes, val)
        _set_axes(axes, [*train, *val], baselines)
        _draw_baselines(axes, baselines)
        axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=32)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, frameon=False, columnspacing=2)
        image = io.BytesIO()
        figure.savefig(image, format="png")
    return image.getvalue()


def _draw_train(axes: Axes, train: Points) -> None:
    if not train:
        return
    tokens, losses = zip(*train, strict=True)
    last = f"training  {losses[-1]:.3f}"
    if len(train) <= _MANY_POINTS:
        axes.plot(tokens, losses, color=_TRAIN, linewidth=2, label=last, marker="o" if len(train) == 1 else None)
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
    # Points alone: a line between two far apart would run above a convex curve and look like a gap to training.
    style: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 7, "markeredgecolor": "white", "zorder": 4}
    axes.plot(tokens, losses, color=_VAL, label=f"validation  {losses[-1]:.3f}", clip_on=False, **style)


def _draw_baselines(axes: Axes, baselines: Mapping[str, float]) -> None:
    """Dashed levels, named at the right end: above the line, or below it where the level above is near."""
    low, high = axes.get_ylim()
    previous = math.inf
    for name, level in sorted(baselines.items(), key=lambda item: -item[1]):
        below = previous - level < 0.06 * (high - low)
        previous = level
        axes.axhline(level, color=_QUIET, linewidth=1.1, linestyle=(0, (5, 4)), zorder=1)
        axes.annotate(
            f"{name}  {level:.3f}", (1, level), xycoords=("axes fraction", "data"), xytext=(-2, -4 if below else 3),
            textcoords="offset points", ha="right", va="top" if below else "bottom", fontsize=9.5, color=_QUIET,
        )  # fmt: skip


def _set_axes(axes: Axes, points: Points, baselines: Mapping[str, float]) -> None:
    from matplotlib.ticker import FuncFormatter

    from scaling.units import format_count

    levels = [loss for _, loss in points] + list(baselines.values())
    low, high = min(levels), max(levels)
    margin = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlim(0, max(tokens for tokens, _ in points) * 1.01 or 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value) if value else "0"))
    axes.tick_params(length=0, pad=6)
    axes.set_xlabel("tokens seen in training")
    axes.set_ylabel("loss (nats per token)")
