"""Random choices that depend on a run's seed and the number of a sequence alone."""

from __future__ import annotations

import numpy as np


def generator(seed: int, k: int) -> np.random.Generator:
    """The generator of sequence number k. Only its `random` is drawn from, whose stream is the bit
    generator's own."""
    return np.random.Generator(np.random.PCG64([seed, k]))


def choose(rng: np.random.Generator, n_of: int, n: int) -> np.ndarray:
    """n of range(n_of), each subset as likely as any other, sorted."""
    return np.sort(rng.random(n_of).argsort(kind="stable")[:n])


def composition(rng: np.random.Generator, total: int, parts: int) -> np.ndarray:
    """`total` as an ordered sum of `parts` positive numbers, each such sum as likely as any
    other."""
    cuts = choose(rng, total - 1, parts - 1) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
