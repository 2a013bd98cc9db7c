"""The figures of a report. Each is a function analysis -> Figure, or None where the analysis has
nothing to show in it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.laws.analysis import Analysis, FittedForm
from scaling.laws.forecast import optimal_n
from scaling.laws.forms import Array, predict_loss
from scaling.laws.intervals import LEVEL
from scaling.units import format_count

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
_DECADES = 2.0
"""How far the allocation is drawn beyond the largest run."""
_MOST_DRAWS = 300  # lines of a band: more do not change its quantiles visibly


def loss_against_compute(analysis: Analysis) -> Figure | None:
    """All runs, the runs that no cheaper one beats, and the lowest loss that the law gives each
    budget."""
    points = analysis.points
    if "c" not in points.known or not _spans(points.flops):
        return None
    figure, axes = _figure()
    n_known = "n" in points.known
    colours = np.log10(points.n_params) if n_known else BLUE
    dots = axes.scatter(
        points.flops, points.loss, c=colours, cmap="viridis", s=20, alpha=0.85, linewidths=0
    )
    if n_known:
        figure.colorbar(dots, ax=axes, label="log10 of parameters N", pad=0.01)
    if analysis.envelope is not None:
        rows = list(analysis.envelope.rows)
        axes.plot(
            points.flops[rows],
            points.loss[rows],
            color=INK,
            linewidth=1.2,
            drawstyle="steps-post",
            label="lowest measured",
        )
    fitted = _main(analysis)
    if fitted is not None and (
        fitted.fit.form.tradeoff is not None or fitted.fit.form.name.endswith("_c")
    ):
        flops = _budgets(analysis)
        losses = _best_losses(fitted, flops)
        low, high = _band(losses[1:])
        axes.fill_between(flops, low, high, color=VERMILION, alpha=0.2, linewidth=0)
        axes.plot(
            flops,
            losses[0],
            color=VERMILION,
            linewidth=1.8,
            label=f"{fitted.fit.form.name}: best of each budget",
        )
        axes.axvline(points.flops.max(), color=QUIET, linewidth=1, linestyle=(0, (5, 4)))
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="compute C (FLOPs)",
        ylabel="loss (nats per token)",
        title="Loss against compute",
    )
    _plain_ticks(axes, "y")
    axes.legend(loc="upper right")
    return figure


def isoflop_curves(analysis: Analysis) -> Figure | None:
    """Each budget's losses against size, with the minimum and its 95 % band."""
    found = analysis.isoflop.get("n") or analysis.isoflop.get("d")
    if found is None:
        return None
    import matplotlib

    figure, axes = _figure()
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(found.curves)))
    for colour, curve in zip(colours, found.curves, strict=True):
        label = f"{curve.flops:.2g} FLOPs" + ("" if curve.x_star is not None else ": no minimum")
        axes.plot(
            curve.x,
            curve.loss,
            color=colour,
            marker="o",
            markersize=3.5,
            linewidth=1,
            alpha=0.9,
            label=label,
        )
        if curve.x_star is None or curve.log_std is None or curve.loss_star is None:
            continue
        half = np.exp(1.96 * curve.log_std)
        axes.plot(
            [curve.x_star / half, curve.x_star * half],
            [curve.loss_star] * 2,
            color=VERMILION,
            linewidth=2,
            zorder=4,
        )
        axes.plot(
            curve.x_star,
            curve.loss_star,
            color=VERMILION,
            marker="D",
            markersize=6,
            markeredgecolor="white",
            zorder=5,
        )
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, labelspacing=0.25)
    X = found.axis.upper()
    what = "parameters N" if found.axis == "n" else "tokens D"
    axes.set(xscale="log", yscale="log", xlabel=what, ylabel="loss (nats per token)")
    axes.set_title(f"IsoFLOP curves, minima by {found.method}, {X}* ~ C^{found.exponent:.3f}")
    _plain_ticks(axes, "y")
    _log_ticks(axes, "x", format_count)
    return figure


def allocation(analysis: Analysis) -> Figure | None:
    """N*(C) and D*(C) of every approach, with bands, two decades beyond the largest run."""
    from matplotlib.figure import Figure

    if not analysis.isoflop and analysis.envelope is None and not _with_optimum(analysis):
        return None
    figure = Figure(figsize=(9.6, 4.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    flops = _budgets(analysis)
    k = analysis.points.definitions.flops_per_nd
    for colour, fitted in zip(
        (VERMILION, PURPLE, "#E69F00"), _with_optimum(analysis), strict=False
    ):
        n = np.array([optimal_n(fitted.fit.form, _some(fitted), c / k) for c in flops]).T
        _draw_band(left, flops, n, colour, f"{fitted.fit.form.name}")
        _draw_band(right, flops, flops / k / n, colour, f"{fitted.fit.form.name}")
    for axes, axis in ((left, "n"), (right, "d")):
        if (found := analysis.isoflop.get(axis)) is None:
            continue
        rows = slice(0, _MOST_DRAWS)
        drawn = np.exp(
            found.log_coefficients[rows, None] + found.exponents[rows, None] * np.log(flops)
        )
        line = np.exp(found.log_coefficient + found.exponent * np.log(flops))
        _draw_band(
            axes,
            flops,
            np.vstack([line[None], drawn]),
            BLUE,
            f"IsoFLOP, {found.method}: C^{found.exponent:.3f}",
        )
        used = [curve for curve in found.curves if curve.x_star is not None]
        axes.plot(
            [c.flops for c in used],
            [float(c.x_star or 0) for c in used],
            "D",
            color=BLUE,
            markersize=4.5,
        )
    if (envelope := analysis.envelope) is not None:
        line = np.exp(envelope.log_coefficient + envelope.exponent * np.log(flops))
        left.plot(
            flops,
            line,
            color=GREEN,
            linewidth=1.3,
            linestyle=(0, (4, 3)),
            label=f"envelope: C^{envelope.exponent:.3f}",
        )
    for axes, what in ((left, "parameters N*"), (right, "tokens D*")):
        axes.axvline(analysis.points.flops.max(), color=QUIET, linewidth=1, linestyle=(0, (5, 4)))
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="compute C (FLOPs)",
            ylabel=what,
            title=f"Best {what} of a budget",
        )
        axes.legend(loc="upper left", fontsize=8.5)
    return figure


def predicted_against_actual(analysis: Analysis) -> Figure | None:
    """Losses of the fit, and those that a fit to the smaller runs alone predicted of the larger
    ones."""
    fitted = _main(analysis)
    if fitted is None:
        return None
    loss = analysis.points.loss
    figure, axes = _figure(width=6.4, height=5.2)
    axes.plot(
        loss,
        loss * np.exp(fitted.fit.residuals),
        "o",
        color=BLUE,
        markersize=4,
        alpha=0.6,
        label="fitted",
    )
    if fitted.held_out:
        cut = fitted.held_out[0]  # the lowest cut: the most points ahead of it, and the farthest
        axes.plot(
            loss[cut.rows],
            loss[cut.rows] * (1 + cut.errors),
            "s",
            color=VERMILION,
            markersize=5,
            markerfacecolor="none",
            label=f"held out above {cut.cut:.2g} FLOPs: mean error {100 * cut.mean_error:.2g} %",
        )
    ends = [loss.min(), loss.max()]
    axes.plot(ends, ends, color=QUIET, linewidth=1)
    axes.set(
        xscale="log", yscale="log", xlabel="measured loss (nats)", ylabel="predicted loss (nats)"
    )
    axes.set_title(f"Predicted against measured, {fitted.fit.form.name}")
    _plain_ticks(axes, "x")
    _plain_ticks(axes, "y")
    axes.legend(loc="upper left")
    return figure


def residuals(analysis: Analysis) -> Figure | None:
    """Residuals of the fit against compute and against tokens per parameter, where trends show what
    the form misses."""
    from matplotlib.figure import Figure

    fitted, points = _main(analysis), analysis.points
    if fitted is None:
        return None
    figure = Figure(figsize=(9.6, 3.9), dpi=150, layout="constrained")
    against = [
        ("compute C (FLOPs)", points.flops),
        ("tokens per parameter D/N", points.n_tokens / points.n_params),
    ]
    shown = [None, "{:g}".format]
    for axes, (name, x), label in zip(
        figure.subplots(1, 2, sharey=True), against, shown, strict=True
    ):
        if np.isnan(x).all() or not _spans(x):
            axes.set_visible(False)
            continue
        axes.axhline(0, color=QUIET, linewidth=1)
        axes.plot(x, 100 * np.expm1(fitted.fit.residuals), "o", color=BLUE, markersize=4, alpha=0.6)
        axes.set(xscale="log", xlabel=name, ylabel="predicted over measured (%)")
        _log_ticks(axes, "x", label)
    figure.suptitle(
        f"Residuals, {fitted.fit.form.name}", fontsize=12, fontweight="bold", x=0.02, ha="left"
    )
    return figure


def bootstrap_pairs(analysis: Analysis) -> Figure | None:
    """Draws of every pair of parameters; narrow slanted clouds are parameters known together better
    than each alone."""
    from matplotlib.figure import Figure

    fitted = _main(analysis)
    if fitted is None:
        return None
    names, theta = fitted.fit.form.names, fitted.bootstrap.theta
    K, P = fitted.fit.form.n_terms, len(fitted.fit.form.names)
    if P < 2:
        return None
    figure = Figure(
        figsize=(1.9 * (P - 1) + 0.6, 1.8 * (P - 1) + 0.6), dpi=150, layout="constrained"
    )
    grid = figure.subplots(P - 1, P - 1, squeeze=False)
    shown = np.column_stack([np.exp(theta[:, :K]), theta[:, K:]])
    best = np.concatenate([np.exp(fitted.fit.theta[:K]), fitted.fit.theta[K:]])
    for row in range(1, P):
        for column in range(P - 1):
            axes = grid[row - 1, column]
            if column >= row:
                axes.set_visible(False)
                continue
            axes.plot(
                shown[:, column],
                shown[:, row],
                ".",
                color=BLUE,
                markersize=2,
                alpha=0.3,
                rasterized=True,
            )
            axes.plot(
                best[column], best[row], "D", color=VERMILION, markersize=5, markeredgecolor="white"
            )
            axes.set_xscale("log" if 0 < column < K else "linear")
            axes.set_yscale("log" if 0 < row < K else "linear")
            axes.tick_params(labelsize=7, which="both")
            for which, number in (("x", column), ("y", row)):
                if 0 < number < K:
                    _log_ticks(axes, which)
                else:
                    _plain_ticks(axes, which, 4)
            axes.set_xlabel(names[column] if row == P - 1 else "")
            axes.set_ylabel(names[row] if column == 0 else "")
    figure.suptitle(
        f"Bootstrap draws, {fitted.fit.form.name}",
        fontsize=12,
        fontweight="bold",
        x=0.02,
        ha="left",
    )
    return figure


def downstream(analysis: Analysis) -> Figure | None:
    """A downstream metric against loss."""
    metric = analysis.points.metric
    if not analysis.downstream or metric is None:
        return None
    figure, axes = _figure(width=6.4, height=4.6)
    loss = analysis.points.loss
    axes.plot(loss, metric, "o", color=BLUE, markersize=4.5, alpha=0.7, label="measured")
    grid = np.linspace(loss.min(), loss.max(), 200)
    for colour, fitted in zip((VERMILION, GREEN), analysis.downstream, strict=False):
        axes.plot(
            grid,
            fitted.metric(grid),
            color=colour,
            linewidth=1.8,
            label=f"{fitted.curve}: rms {fitted.rms:.3g}",
        )
    axes.set(
        xlabel="loss (nats per token)", ylabel="metric", title="From loss to the downstream metric"
    )
    axes.legend()
    return figure


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
    """(name, PNG, SVG) of every figure that there is something to draw for."""
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


def _figure(width: float = 8.2, height: float = 4.9) -> tuple[Figure, Axes]:
    # The object API with its own canvas: no pyplot, no global figure, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.add_subplot()


def _main(analysis: Analysis) -> FittedForm | None:
    """The form that the figures show: the first that was fitted."""
    return next(iter(analysis.forms.values()), None)


def _with_optimum(analysis: Analysis) -> list[FittedForm]:
    return [fitted for fitted in analysis.forms.values() if fitted.fit.form.tradeoff is not None]


def _some(fitted: FittedForm) -> Array:
    return fitted.law.sample()[: _MOST_DRAWS + 1]


def _budgets(analysis: Analysis) -> Array:
    flops = analysis.points.flops
    return np.geomspace(flops.min(), flops.max() * 10**_DECADES, 60)


def _best_losses(fitted: FittedForm, flops: Array) -> Array:
    """(1 + draws, budgets): of the best split where the form has one, else of the form in C."""
    form, sample = fitted.fit.form, _some(fitted)
    k = fitted.law.definitions.flops_per_nd
    if form.tradeoff is None:
        return predict_loss(form, sample, np.ones(len(flops)), flops / k)
    columns = []
    for c in flops:
        n = optimal_n(form, sample, c / k)
        columns.append(np.diag(predict_loss(form, sample, n, c / k / n)))
    return np.array(columns).T


def _spans(x: Array) -> bool:
    """Whether there is an axis to draw: values that differ by more than 1 %."""
    return bool(x.max() > 1.01 * x.min())


def _draw_band(axes: Axes, flops: Array, sample: Array, colour: str, label: str) -> None:
    low, high = _band(sample[1:])
    axes.fill_between(flops, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(flops, sample[0], color=colour, linewidth=1.6, label=label)


def _band(draws: Array) -> tuple[Array, Array]:
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def _log_ticks(axes: Axes, which: str, shown: Callable[[float], str] | None = None) -> None:
    """Labels at decades, of a narrow axis at 1, 2 and 5 of each: powers of ten, or what `shown`
    makes of a value."""
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


def _plain_ticks(axes: Axes, which: str, most: int = 6) -> None:
    """What spans about a decade gets plain numbers at a few places instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
