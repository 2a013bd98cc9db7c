"""Finished runs as one table of N, D, C and loss: from a CSV file here, from run directories in
`study.py`.

A row that cannot serve is left out, with its reason; definitions that differ between rows are
refused, since a law through losses of two kinds, or sizes counted in two ways, is a law of nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scaling.config.run_config import RunConfig
from scaling.errors import DataError
from scaling.laws.cells import LINE, number, one_writing, read_table, share_or_number, truth
from scaling.laws.forms import FLOPS_PER_PARAMETER_TOKEN, Array, Form

Row = Mapping[str, str]

_SAME_FLOPS = 0.01
"""Relative difference up to which C is called 6 N D: rounding of published tables."""

_LARGEST = {"n": 1e30, "d": 1e30, "unique": 1e30, "c": 1e62, "loss": 1e6}
"""Numbers beyond these are no sizes of runs, and their products no floating-point numbers."""

_OTHER_FLOPS = 0.05
"""Relative difference from which C is counted otherwise: exact counts approach 6 N D gradually,
with sizes in between."""


@dataclass(frozen=True)
class Definitions:
    """What the numbers count; travels with every fit.

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
    """Points that a law is fitted to; all arrays (n), NaN where a variable is unknown in all of
    them.

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
        """Those of n, d and c that are known."""
        arrays = {"n": self.n_params, "d": self.n_tokens, "c": self.flops}
        return tuple(name for name, values in arrays.items() if not np.isnan(values).any())

    def at(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Points:
        """Only these rows; nothing is noted."""
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
        """Leave out the rows that are true, for these reasons (one a row left out)."""
        gone = tuple(
            Excluded(self.names[i], reason)
            for i, reason in zip(np.flatnonzero(rows), reasons, strict=True)
        )
        return replace(self.at(~rows), excluded=self.excluded + gone)

    def variables(self, form: Form) -> tuple[Array, Array]:
        """N and D as `form` reads them. A law in C alone reads the C of the table, which 6 N D only
        approximates."""
        if form.name.endswith("_c"):
            return np.ones(len(self)), self.flops / FLOPS_PER_PARAMETER_TOKEN
        return self.n_params, self.n_tokens


@dataclass(frozen=True)
class Columns:
    """Which column of a table is what; None: the table has none. `warmup` is tokens of warm-up, or
    a share of the run (2%)."""

    loss: str
    n: str | None = None
    d: str | None = None
    c: str | None = None
    run: str | None = None
    unique: str | None = None
    metric: str | None = None
    warmup: str | None = None
    decayed: str | None = None


def read_rows(
    path: Path, *, where: Mapping[str, str] | None = None, same: Sequence[str] = ()
) -> list[dict[str, str]]:
    """The rows of a CSV file with a header that match `where`; each gets its line's number under
    LINE.

    `same` names columns that must hold one value in all of them. Raises DataError.
    """
    columns, rows = read_table(path)
    _need_columns(path, columns, [*(where or {}), *same])
    kept = [row for row in rows if all(row[name] == value for name, value in (where or {}).items())]
    if not kept:
        asked = ", ".join(f"{name}:{value}" for name, value in (where or {}).items())
        raise DataError(
            f"{path} has no rows" + (f" with {asked}" if asked else ""),
            "where" if asked else "table",
        )
    for name in same:
        refuse_mixed(name, [row[name] for row in kept], f"where={name}:VALUE takes the rows of one")
    return kept


def refuse_mixed(name: str, values: Iterable[str], fix: str) -> None:
    """Raises DataError when the values differ."""
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


def points_of_rows(
    rows: Sequence[Row], columns: Columns, path: Path, *, n_counts: str, c_counts: str | None
) -> Points:
    """The table of these rows. `c_counts` is "6ND", "exact", or None to go by the numbers.

    A row with a number that is missing, not finite or not positive is left out with the reason.
    Raises DataError for columns that the table has not, for a cell that is no number, for fewer
    than one usable row, or when C is called 6ND and is not.
    """
    wanted = {name: column for name, column in vars(columns).items() if column is not None}
    _need_columns(path, list(rows[0]), wanted.values())
    numeric = [name for name in ("loss", "n", "d", "c", "unique", "metric") if name in wanted]
    if not {"n", "d", "c"} & set(numeric):
        raise DataError(
            "none of N, D and C is named",
            "table",
            "Name their columns: n=COLUMN d=COLUMN c=COLUMN.",
        )
    if columns.metric is not None:
        one_writing(rows, columns.metric)
    values: dict[str, list[float]] = {name: [] for name in numeric}
    names, excluded, kept = [], [], []
    for row in rows:
        name = (row[columns.run] if columns.run else "") or f"line {row[LINE]}"
        numbers = {
            key: number(row, wanted[key], "d" if key == "unique" else key) for key in numeric
        }
        trouble = next(
            (
                t
                for key in numeric
                if (t := _trouble(key, wanted[key], numbers[key], row[wanted[key]]))
            ),
            None,
        )
        if trouble is not None:
            excluded.append(Excluded(name, trouble))
            continue
        names.append(name)
        for key in numeric:
            values[key].append(numbers[key])
        kept.append(row)
    if not names:
        raise DataError(f"{path} has no usable row; the first: {excluded[0].reason}", "table")
    arrays = {key: np.array(column) for key, column in values.items()}
    n, d, c, definitions = complete(arrays.get("n"), arrays.get("d"), arrays.get("c"), c_counts)
    return Points(
        n,
        d,
        c,
        arrays["loss"],
        np.unique(names, return_inverse=True)[1] if columns.run else np.arange(len(names)),
        tuple(names),
        replace(definitions, n_counts=n_counts, loss_of=columns.loss),
        arrays.get("unique"),
        arrays.get("metric"),
        _warmup(kept, columns.warmup, d),
        _decayed(kept, columns.decayed),
        tuple(excluded),
    )


def _warmup(rows: Sequence[Row], column: str | None, n_tokens: Array) -> Array | None:
    """Tokens of warm-up, NaN where they are missing. Raises DataError for a number below 0 or
    without end."""
    if column is None:
        return None
    values = [
        share_or_number(row, column, total, "d") for row, total in zip(rows, n_tokens, strict=True)
    ]
    for row, value in zip(rows, values, strict=True):
        if value < 0 or math.isinf(value):
            raise DataError(
                f"line {row[LINE]}: {column} is {row[column]!r}, and warm-up is 0 tokens or more",
                f"column {column}",
            )
    return np.array(values)


def _decayed(rows: Sequence[Row], column: str | None) -> NDArray[np.bool_] | None:
    return None if column is None else np.array([truth(row, column) for row in rows])


def complete(
    n: Array | None, d: Array | None, c: Array | None, c_counts: str | None
) -> tuple[Array, Array, Array, Definitions]:
    """N, D and C, the missing one by C = 6 N D where two are known, NaN where only one is; and how
    C counts."""
    given = [x for x in (n, d, c) if x is not None]
    unknown = np.full(len(given[0]), math.nan)
    k = FLOPS_PER_PARAMETER_TOKEN
    if n is not None and d is not None and c is not None:
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
                f"the points mix definitions: C is 6 N D in {int(same.sum())} rows and {ratio[~same].min() / k:.3g} to "
                f"{ratio[~same].max() / k:.3g} times that in the others",
                "column of C",
                "Leave out the column of C and have it computed, or say c_counts=exact if all are counted alike.",
            )
        if c_counts == "6ND" and not is_6nd:
            low, high = ratio.min() / k, ratio.max() / k
            raise DataError(
                f"C is {low:.3g} to {high:.3g} times 6 N D",
                "c_counts=6ND",
                "Say c_counts=exact, or leave out the column of C and have it computed.",
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


def _trouble(key: str, column: str, value: float, text: str) -> str | None:
    if math.isnan(value):
        return f"{column} is {text!r}, not a number" + (
            ": the run diverged or was not measured" if key == "loss" else ""
        )
    if key == "metric":
        return None if math.isfinite(value) else f"{column} is {text!r}, not a number"
    if math.isinf(value) or value <= 0:
        what = (
            "a loss in nats is positive and finite"
            if key == "loss"
            else "it must be positive and finite"
        )
        return f"{column} is {value:g}: {what}"
    most = _LARGEST[key]
    return (
        None
        if 1 / most <= value <= most
        else f"{column} is {value:g}, outside {1 / most:g} to {most:g}"
    )


def _need_columns(path: Path, columns: Sequence[str], wanted: Iterable[str]) -> None:
    missing = [name for name in wanted if name not in columns]
    if missing:
        there = ", ".join(name for name in columns if name)
        raise DataError(
            f"{path} has no column {' or '.join(repr(name) for name in missing)}",
            "table",
            f"Its columns are: {there}.",
        )
