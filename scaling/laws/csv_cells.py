"""Read the cells of a table of runs as people write them: counts with units and thousands
separators, percentages, words for true and missing.

A cell with exactly one possible meaning is read. Any other cell raises DataError, which names the
line and the column.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from scaling.errors import DataError
from scaling.units import counted, other_delimiter

LINE = ""
"""Key under which each row holds its line number."""
_EMPTY = frozenset(
    ("", "-", "--", "n/a", "na", "#n/a", "nan", "-nan", "<na>", "none", "null", "nil")
)
MISSING = _EMPTY | {"?", "missing", "diverged", "failed"}
"""Words that mean a missing number."""
_TRUE = frozenset(("true", "t", "yes", "y", "on", "1"))
_FALSE = _EMPTY | {"false", "f", "no", "n", "off", "0"}

_NUMBER = re.compile(
    r"[+-]?(?:[0-9](?:_?[0-9])*(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?", re.IGNORECASE
)
# what stands between thousands: comma, apostrophes, blanks of several widths
_GROUPS = "[,'\u2019 \u00a0\u2009\u202f]"
_THOUSANDS = re.compile(rf"([+-]?[0-9]{{1,3}})((?:{_GROUPS}[0-9]{{3}})+)(\.[0-9]+)?(?![0-9])")
_PREFIXES = {
    "k": 1e3,
    "m": 1e6,
    "b": 1e9,
    "g": 1e9,
    "t": 1e12,
    "p": 1e15,
    "e": 1e18,
    "z": 1e21,
    "y": 1e24,
}
_UNITS = {
    "n": ("params", "param", "parameters", "parameter"),
    "d": ("tokens", "token", "toks", "tok"),
    "c": ("flops", "flop"),
    "loss": ("nats", "nat", "nats/token", "nats per token"),
    "metric": (),
}
"""Unit words that may follow a number, by kind of column."""
_EXAMPLES = {
    "n": "Write parameters as 124000000, 124_000_000, 124M or 1.24e8.",
    "d": "Write tokens as 2500000000, 2.5B or 2.5e9.",
    "c": "Write FLOPs as 1.5e21.",
    "loss": "Write the loss in nats per token with a decimal point, as 2.345.",
    "metric": "Write the metric as 0.452 or 45.2%, in one way in all rows.",
}


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The column names and the rows of a CSV file. Each row holds its line number under LINE; blank
    lines are skipped.

    Raises DataError for a header with one name twice, and for a row of more or fewer cells than the
    header.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            _check_delimiter(path, file.readline())
            file.seek(0)
            reader = csv.reader(file, skipinitialspace=True, strict=True)
            header = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        fix = "Give a CSV file in UTF-8 whose first line names its columns."
        raise DataError(f"cannot read {path}: {error}", "table", fix) from error
    if not any(header):
        raise DataError(
            f"{path} names no columns on its first line",
            "table",
            "The first line names the columns.",
        )
    for name in header:
        if name and header.count(name) > 1:
            places = " and ".join(
                str(place) for place, other in enumerate(header, 1) if other == name
            )
            raise DataError(
                f"{path} has two columns {name!r}, number {places}",
                "table",
                "Rename or remove one of them.",
            )
    return header, [_row(path, header, line, cells) for line, cells in lines if any(cells)]


def _check_delimiter(path: Path, header: str) -> None:
    if (delimiter := other_delimiter(header)) is not None:
        raise DataError(
            f"{path} separates its columns by a {delimiter}, not by a comma",
            "table",
            "Write it with commas between columns and points in numbers, as 2.345.",
        )


def _row(path: Path, header: list[str], line: int, cells: list[str]) -> dict[str, str]:
    while len(cells) > len(header) and not cells[-1]:  # a comma at the end of the line
        cells = cells[:-1]
    if len(cells) != len(header):
        more, fewer = (
            'A number with commas goes in quotes: "1,234,567".',
            "Give each line one cell per column; a cell may be empty.",
        )
        raise DataError(
            f"line {line} has {counted(len(cells), 'cell')} and the header {len(header)}",
            f"table={path}",
            more if len(cells) > len(header) else fewer,
        )
    return {name: cell for name, cell in zip(header, cells, strict=True) if name} | {
        LINE: str(line)
    }


def number(row: Mapping[str, str], column: str, kind: str) -> float:
    """The number in a cell; NaN where it is missing. kind: n, d, c, loss or metric. Raises
    DataError."""
    text = row[column].strip().lower()
    if text in MISSING:
        return math.nan
    if re.fullmatch(r"[+-]?inf(inity)?", text):
        return float(text)
    found = _THOUSANDS.match(text)
    if found is not None:
        if kind in ("loss", "metric") and "," in found.group(2):
            raise _unclear(
                row, column, kind, ": the comma may be a decimal one or separate thousands"
            )
        digits = found.group(1) + re.sub(r"[^0-9]", "", found.group(2)) + (found.group(3) or "")
    else:
        found = _NUMBER.match(text)
        digits = found.group().replace("_", "") if found else ""
    scale = _scale(text[found.end() :].strip(), kind) if found else None
    if scale is None:
        raise _unclear(row, column, kind, ", which is no number")
    return float(digits) * scale


def share_or_number(row: Mapping[str, str], column: str, total: float, kind: str) -> float:
    """Read a cell as `number` does, where 2% means that share of `total`."""
    text = row[column].strip()
    if text.endswith("%") and _NUMBER.fullmatch(text[:-1].strip()):
        return float(text[:-1].replace("_", "")) / 100 * total
    return number(row, column, kind)


def one_writing(rows: Sequence[Mapping[str, str]], column: str) -> None:
    """Raise DataError for a column that mixes percentages with plain numbers."""
    there = [row for row in rows if row[column].strip().lower() not in MISSING]
    percent = [row[column].endswith("%") for row in there]
    if any(percent) and not all(percent):
        row = there[percent.index(not percent[0])]
        raise DataError(
            f"line {row[LINE]}: {column} is {row[column]!r} "
            f"and {there[0][column]!r} in line {there[0][LINE]}",
            f"column {column}",
            _EXAMPLES["metric"],
        )


def truth(row: Mapping[str, str], column: str) -> bool:
    """Whether a cell means true; a missing value is false. Raises DataError for any other word."""
    word = row[column].strip().lower()
    # as pandas writes a column with gaps: 0.0, 1.0
    if _NUMBER.fullmatch(word) and float(word.replace("_", "")) in (0, 1):
        return float(word.replace("_", "")) == 1
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise DataError(
        f"line {row[LINE]}: {column} is {row[column]!r}, which is neither true nor false",
        f"column {column}",
        "Write true or false, yes or no, 1 or 0.",
    )


def _scale(unit: str, kind: str) -> float | None:
    """The factor that the letters after a number stand for; None for unknown letters."""
    if kind == "metric" and unit == "%":
        return 0.01
    if unit in ("", *_UNITS[kind]):
        return 1.0
    if kind in ("loss", "metric"):
        return None
    word = next(
        (word for word in sorted(_UNITS[kind], key=len, reverse=True) if unit.endswith(word)), ""
    )
    prefix = unit.removesuffix(word).strip()
    of_flops = kind == "c" and bool(word)  # a bare e, z or y is ambiguous
    return _PREFIXES.get(prefix) if of_flops or prefix not in ("e", "z", "y") else None


def _unclear(row: Mapping[str, str], column: str, kind: str, why: str) -> DataError:
    return DataError(
        f"line {row[LINE]}: {column} is {row[column]!r}{why}", f"column {column}", _EXAMPLES[kind]
    )
