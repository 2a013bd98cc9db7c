"""Finished runs as one table of N, D, C and loss.

`from_table.py` builds it from a CSV file, `from_runs.py` from run directories. Definitions that
differ between rows are refused: a law through losses of two kinds, or through sizes counted in two
ways, has no meaning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scaling.config.run_config import RunConfig
from scaling.errors import DataError
from scaling.laws.forms import FLOPS_PER_PARAMETER_TOKEN, Array, Form
from scaling.units import counted

_SAME_FLOPS = 0.01
"""Relative difference up to which C counts as 6 N D: the rounding of published tables."""
_OTHER_FLOPS = 0.05
"""Relative difference from which C counts as another definition. Exact counts approach 6 N D
gradually, with sizes in between."""


@dataclass(frozen=True)
class Definitions:
    """Definitions of the numbers; they accompany every fit.

    n_counts         e.g. "with embeddings"; "as in the table" where nobody said
    c_counts         "6ND" or "exact", and how it came about
    loss_of          which loss: a column, or "val/loss"
    flops_per_nd     median of C / (N D), with which predictions turn a budget into N D
    """

    n_counts: str = "as in the table"
    c_counts: str = "6ND"
    loss_of: str = "loss"
    flops_per_nd: float = FLOPS_PER_PARAMETER_TOKEN


@dataclass(frozen=True)
class Excluded:
    run: str
    reason: str


@dataclass(frozen=True)
class Points:
    """Points for a fit. All arrays are (n), and NaN where a variable is unknown in every row.

    n_params, n_tokens, flops   N, D, C
    loss                        nats per token
    runs                        number of the run that a point is of; several points of a run are
                                resampled together
    names                       of the runs, for messages, one a point
    unique_tokens               tokens in the corpus, where the table says; D above it is repetition
    metric                      a downstream metric, where the table says
    warmup                      tokens of warm-up, where the table says; NaN in rows that do not
    decayed                     whether the learning rate had come down, where the table says
    base                        of a study, the configuration of its largest run
    """

    n_params: Array
    n_tokens: Array
    flops: Array
    loss: Array
    runs: NDArray[np.int64]
    names: tuple[str, ...]
    definitions: Definitions
    unique_tokens: Array | None = None
    metric: Array | None = None
    warmup: Array | None = None
    decayed: NDArray[np.bool_] | None = None
    excluded: tuple[Excluded, ...] = ()
    base: RunConfig | None = None

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def known(self) -> tuple[str, ...]:
        """The known variables among n, d and c."""
        arrays = {"n": self.n_params, "d": self.n_tokens, "c": self.flops}
        return tuple(name for name, values in arrays.items() if not np.isnan(values).any())

    def at(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Points:
        """Keep only these rows, without a note of the others."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        pick = {
            name: getattr(self, name)[rows]
            for name in ("n_params", "n_tokens", "flops", "loss", "runs")
        }
        optional = ("unique_tokens", "metric", "warmup", "decayed")
        more = {
            name: getattr(self, name)[rows] for name in optional if getattr(self, name) is not None
        }
        return replace(self, names=tuple(self.names[i] for i in rows), **pick, **more)

    def without(self, rows: NDArray[np.bool_], reasons: Sequence[str]) -> Points:
        """Leave out the rows that are true, with one reason for each."""
        gone = tuple(
            Excluded(self.names[i], reason)
            for i, reason in zip(np.flatnonzero(rows), reasons, strict=True)
        )
        return replace(self.at(~rows), excluded=self.excluded + gone)

    def variables(self, form: Form) -> tuple[Array, Array]:
        """N and D as `form` reads them. A law in C alone uses the C of the table, which 6 N D only
        approximates."""
        if form.name.endswith("_c"):
            return np.ones(len(self)), self.flops / FLOPS_PER_PARAMETER_TOKEN
        return self.n_params, self.n_tokens


def refuse_mixed(name: str, values: Iterable[str], fix: str) -> None:
    """Raise DataError when the values differ."""
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    if len(counts) > 1:
        found = ", ".join(f"{value!r} ({count})" for value, count in counts.items())
        raise DataError(
            f"the points mix definitions: {name} is {found}",
            "one law needs one definition",
            f"{fix}.",
        )


def complete(
    n: Array | None, d: Array | None, c: Array | None, c_counts: str | None
) -> tuple[Array, Array, Array, Definitions]:
    """Complete N, D and C, with a definition of C. The third follows from C = 6 N D where two are
    known; NaN where only one is."""
    given = [x for x in (n, d, c) if x is not None]
    unknown = np.full(len(given[0]), math.nan)
    k = FLOPS_PER_PARAMETER_TOKEN
    if n is not None and d is not None and c is not None:
        # Published tables count C in several ways; one law needs one of them.
        ratio = c / (n * d)
        same = np.abs(ratio / k - 1) <= _SAME_FLOPS
        is_6nd = bool(same.all())
        if (
            c_counts is None
            and same.any()
            and (np.abs(ratio[~same] / k - 1) > _OTHER_FLOPS).all()
            and not is_6nd
        ):
            raise DataError(
                f"the points mix definitions: C is 6 N D in {counted(int(same.sum()), 'row')} and "
                f"{ratio[~same].min() / k:.3g} to {ratio[~same].max() / k:.3g} times that "
                "in the others",
                "column of C",
                "Leave out the column of C to have it computed, "
                "or set c_counts=exact if all rows are counted alike.",
            )
        if c_counts == "6ND" and not is_6nd:
            low, high = ratio.min() / k, ratio.max() / k
            raise DataError(
                f"C is {low:.3g} to {high:.3g} times 6 N D",
                "c_counts=6ND",
                "Set c_counts=exact, or leave out the column of C to have it computed.",
            )
        counts = (
            "6ND"
            if is_6nd and c_counts != "exact"
            else f"exact, {ratio.min() / k:.3g} to {ratio.max() / k:.3g} times 6ND"
        )
        return (
            n,
            d,
            c,
            Definitions(c_counts=counts, flops_per_nd=k if is_6nd else float(np.median(ratio))),
        )
    if n is not None and d is not None:
        return n, d, k * n * d, Definitions(c_counts="6ND, computed")
    if n is not None and c is not None:
        return n, c / (k * n), c, Definitions(c_counts="6ND, D computed from C")
    if d is not None and c is not None:
        return c / (k * d), d, c, Definitions(c_counts="6ND, N computed from C")
    return (
        unknown if n is None else n,
        unknown if d is None else d,
        unknown if c is None else c,
        Definitions(c_counts="as given"),
    )
