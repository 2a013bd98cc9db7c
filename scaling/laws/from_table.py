"""Read the points of a CSV file. A row that cannot be used is left out, with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scaling.errors import DataError
from scaling.laws.csv_cells import LINE, number, one_writing, read_table, share_or_number, truth
from scaling.laws.forms import Array
from scaling.laws.points import Excluded, Points, complete, refuse_mixed

Row = Mapping[str, str]
_LARGEST = {"n": 1e30, "d": 1e30, "unique": 1e30, "c": 1e62, "loss": 1e6}
"""Largest plausible numbers. Beyond them no run exists, and products overflow floating-point
numbers."""


@dataclass(frozen=True)
class Columns:
    """The column of each variable; None: the table has none. warmup: tokens of warm-up, or a share
    of the run (2%)."""

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
    """The rows of a CSV file with a header that match `where`. Each row holds its line number under
    LINE.

    `same` names columns that must hold one value in all rows. Raises DataError.
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


def points_of_rows(
    rows: Sequence[Row], columns: Columns, path: Path, *, n_counts: str, c_counts: str | None
) -> Points:
    """Points of these rows. `c_counts` is "6ND", "exact", or None to decide by the numbers.

    A row with a missing, infinite or non-positive number is left out, with a reason. Raises
    DataError for missing columns, for a cell that is not a number, for no usable row, or when
    `c_counts` is 6ND and C is not.
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
    """Tokens of warm-up, NaN where they are missing. Raises DataError for a negative or infinite
    number."""
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
