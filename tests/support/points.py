"""Synthetic points of known laws, for the tests of scaling.laws."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from scaling.laws.points import Definitions, Points

# Roughly what Hoffmann et al. 2022 found; any other values would do.
E, A, B, ALPHA, BETA = 1.7, 400.0, 1000.0, 0.34, 0.30

THETAS = {
    "chinchilla": [np.log(1.7), np.log(400), np.log(1000), 0.34, 0.30],
    "kaplan": [8.0, 10.0, 0.8, 0.1],
    "gadre": [np.log(1.8), np.log(700), np.log(2000), 0.17],
    "kaplan_n": [3.0, 0.08],
    "kaplan_d": [3.0, 0.09],
    "kaplan_c": [3.5, 0.05],
    "floor_n": [0.5, 5.0, 0.3],
    "floor_d": [0.5, 5.0, 0.28],
    "floor_c": [0.5, 5.0, 0.15],
}
"""theta of every form."""


def chinchilla(n, d):
    return E + A / n**ALPHA + B / d**BETA


def isoflop_grid(budgets=(1e18, 3e18, 1e19, 3e19, 1e20), sizes=9, half_width=1.2):
    """n, d of `sizes` models about the best of each budget."""
    a = BETA / (ALPHA + BETA)
    G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    n = np.concatenate(
        [G * (c / 6) ** a * np.exp(np.linspace(-half_width, half_width, sizes)) for c in budgets]
    )
    c = np.repeat(budgets, sizes)
    return n, c / (6 * n)


def points(n, d, loss, **more):
    count = len(loss)
    return Points(
        n,
        d,
        6 * n * d,
        loss,
        np.arange(count),
        tuple(f"run {i}" for i in range(count)),
        Definitions(),
        **more,
    )


def noisy(seed=0, sigma=0.003, **grid):
    n, d = isoflop_grid(**grid)
    return points(
        n, d, chinchilla(n, d) * np.exp(np.random.default_rng(seed).normal(0, sigma, len(n)))
    )


def write_table(path: Path, columns: dict) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path
