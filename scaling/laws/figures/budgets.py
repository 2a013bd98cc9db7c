"""Figures over compute: loss against compute, IsoFLOP curves, and the best split of a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scaling.laws.analysis import Analysis, FittedForm
from scaling.laws.figures.canvas import (
    BLUE,
    GREEN,
    INK,
    PURPLE,
    QUIET,
    VERMILION,
    band,
    draw_band,
    legend,
    log_ticks,
    new_figure,
    plain_ticks,
    spans,
)
from scaling.laws.figures.goodness import shown_form
from scaling.laws.forecast import optimal_n
from scaling.laws.forms import Array, predict_loss
from scaling.units import format_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECADES = 2.0
"""Decades that the allocation is drawn beyond the largest run."""
MOST_DRAWS = 300  # lines of a band: more do not change its quantiles visibly


def loss_against_compute(analysis: Analysis) -> Figure | None:
    """Plot all runs, the runs that no cheaper run beats, and the lowest loss that the law gives
    each budget."""
    points = analysis.points
    if "c" not in points.known or not spans(points.flops):
        return None
    figure, axes = new_figure()
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
    fitted = shown_form(analysis)
    if fitted is not None and (
        fitted.fit.form.tradeoff is not None or fitted.fit.form.name.endswith("_c")
    ):
        flops = budgets(analysis)
        losses = best_losses(fitted, flops)
        low, high = band(losses[1:])
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
    plain_ticks(axes, "y")
    legend(axes, loc="upper right")
    return figure


def isoflop_curves(analysis: Analysis) -> Figure | None:
    """Plot each budget's losses against size, with the minimum and its 95 % band."""
    found = analysis.isoflop.get("n") or analysis.isoflop.get("d")
    if found is None:
        return None
    import matplotlib

    figure, axes = new_figure()
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
    legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, labelspacing=0.25)
    X = found.axis.upper()
    what = "parameters N" if found.axis == "n" else "tokens D"
    axes.set(xscale="log", yscale="log", xlabel=what, ylabel="loss (nats per token)")
    axes.set_title(f"IsoFLOP curves, minima by {found.method}, {X}* ~ C^{found.exponent:.3f}")
    plain_ticks(axes, "y")
    log_ticks(axes, "x", format_count)
    return figure


def allocation(analysis: Analysis) -> Figure | None:
    """Plot N*(C) and D*(C) of every approach, with bands, two decades beyond the largest run."""
    from matplotlib.figure import Figure

    if not analysis.isoflop and analysis.envelope is None and not with_optimum(analysis):
        return None
    figure = Figure(figsize=(9.6, 4.6), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    flops = budgets(analysis)
    k = analysis.points.definitions.flops_per_nd
    for colour, fitted in zip((VERMILION, PURPLE, "#E69F00"), with_optimum(analysis), strict=False):
        n = np.array([optimal_n(fitted.fit.form, some_draws(fitted), c / k) for c in flops]).T
        draw_band(left, flops, n, colour, f"{fitted.fit.form.name}")
        draw_band(right, flops, flops / k / n, colour, f"{fitted.fit.form.name}")
    for axes, axis in ((left, "n"), (right, "d")):
        if (found := analysis.isoflop.get(axis)) is None:
            continue
        rows = slice(0, MOST_DRAWS)
        drawn = np.exp(
            found.log_coefficients[rows, None] + found.exponents[rows, None] * np.log(flops)
        )
        line = np.exp(found.log_coefficient + found.exponent * np.log(flops))
        draw_band(
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
        legend(axes, loc="upper left", fontsize=8.5)
    return figure


def with_optimum(analysis: Analysis) -> list[FittedForm]:
    return [fitted for fitted in analysis.forms.values() if fitted.fit.form.tradeoff is not None]


def some_draws(fitted: FittedForm) -> Array:
    return fitted.law.sample()[: MOST_DRAWS + 1]


def budgets(analysis: Analysis) -> Array:
    flops = analysis.points.flops
    return np.geomspace(flops.min(), flops.max() * 10**DECADES, 60)


def best_losses(fitted: FittedForm, flops: Array) -> Array:
    """Losses (1 + draws, budgets) of the best split; a form without a split is a form in C."""
    form, sample = fitted.fit.form, some_draws(fitted)
    k = fitted.law.definitions.flops_per_nd
    if form.tradeoff is None:
        return predict_loss(form, sample, np.ones(len(flops)), flops / k)
    columns = []
    for c in flops:
        n = optimal_n(form, sample, c / k)
        columns.append(np.diag(predict_loss(form, sample, n, c / k / n)))
    return np.array(columns).T
