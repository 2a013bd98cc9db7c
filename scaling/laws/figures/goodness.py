"""Figures of one fit: predictions against measurements, residuals, draws, the downstream metric."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scaling.laws.analysis import Analysis, FittedForm
from scaling.laws.figures.canvas import (
    BLUE,
    GREEN,
    QUIET,
    VERMILION,
    legend,
    log_ticks,
    new_figure,
    plain_ticks,
    spans,
)
from scaling.laws.forms import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def predicted_against_actual(analysis: Analysis) -> Figure | None:
    """Plot the losses of the fit, and the losses of larger runs that a fit to the smaller runs
    predicts."""
    fitted = shown_form(analysis)
    if fitted is None:
        return None
    loss = analysis.points.loss
    figure, axes = new_figure(width=6.4, height=5.2)
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
        cut = fitted.held_out[0]  # the lowest cut predicts the most points, and the farthest
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
    plain_ticks(axes, "x")
    plain_ticks(axes, "y")
    legend(axes, loc="upper left")
    return figure


def residuals(analysis: Analysis) -> Figure | None:
    """Plot the residuals against compute and against tokens per parameter. A trend shows what the
    form misses."""
    from matplotlib.figure import Figure

    fitted, points = shown_form(analysis), analysis.points
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
        if np.isnan(x).all() or not spans(x):
            axes.set_visible(False)
            continue
        axes.axhline(0, color=QUIET, linewidth=1)
        axes.plot(x, 100 * np.expm1(fitted.fit.residuals), "o", color=BLUE, markersize=4, alpha=0.6)
        axes.set(xscale="log", xlabel=name, ylabel="predicted over measured (%)")
        log_ticks(axes, "x", label)
    figure.suptitle(
        f"Residuals, {fitted.fit.form.name}", fontsize=12, fontweight="bold", x=0.02, ha="left"
    )
    return figure


def bootstrap_pairs(analysis: Analysis) -> Figure | None:
    """Plot the draws of every pair of parameters. A narrow slanted cloud means that the pair is
    known better than each parameter alone."""
    from matplotlib.figure import Figure

    fitted = shown_form(analysis)
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
            if column >= row:  # a pair is drawn once, below the diagonal
                axes.set_visible(False)
                continue
            _draw_pair(axes, shown, best, row, column, K)
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


def _draw_pair(axes: Axes, shown: Array, best: Array, row: int, column: int, n_terms: int) -> None:
    """The draws of two parameters and the fit itself, coefficients on logarithmic axes."""
    axes.plot(
        shown[:, column],
        shown[:, row],
        ".",
        color=BLUE,
        markersize=2,
        alpha=0.3,
        rasterized=True,
    )
    axes.plot(best[column], best[row], "D", color=VERMILION, markersize=5, markeredgecolor="white")
    axes.set_xscale("log" if 0 < column < n_terms else "linear")
    axes.set_yscale("log" if 0 < row < n_terms else "linear")
    axes.tick_params(labelsize=7, which="both")
    for which, number in (("x", column), ("y", row)):
        if 0 < number < n_terms:
            log_ticks(axes, which)
        else:
            plain_ticks(axes, which, 4)


def downstream(analysis: Analysis) -> Figure | None:
    """Plot a downstream metric against the loss."""
    metric = analysis.points.metric
    if not analysis.downstream or metric is None:
        return None
    figure, axes = new_figure(width=6.4, height=4.6)
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
    legend(axes)
    return figure


def shown_form(analysis: Analysis) -> FittedForm | None:
    """The form that the figures show: the first one fitted."""
    return next(iter(analysis.forms.values()), None)
