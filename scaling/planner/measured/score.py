"""`python -m scaling.plan score TABLE.csv ...`: predict every row of tables of measurements, and
print how far off that is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaling.errors import DataError, ScalingError
from scaling.planner.measured.accuracy import report, row_results, score
from scaling.planner.measured.table import read_table
from scaling.runs.files import to_json

COLUMNS = (
    ("source", "", 18),
    ("rows", "rows", 5),
    ("verdict", "verdict_accuracy", 7),
    ("oom", "oom_recall", 6),
    ("fits", "fit_recall", 6),
    ("mem", "memory_median", 6),
    ("p90", "memory_p90", 6),
    ("mfu", "mfu_median", 6),
    ("p90", "mfu_p90", 6),
    ("inside", "mfu_inside", 6),
    ("40 %", "baseline_median", 6),
    ("first", "choice_first", 6),
    ("of 3", "choice_three", 6),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scaling.plan score", description=__doc__)
    parser.add_argument("tables", nargs="+", type=Path, help="CSV files; blank cells are unknown")
    parser.add_argument(
        "--calibrate-one-per-source",
        action="store_true",
        help="one row of each source gives its scale of time",
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="write the errors and every row's prediction"
    )
    given = parser.parse_args(argv)
    try:
        tables = [read_table(path) for path in given.tables]
    except ScalingError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    unread = [line for _, lines in tables for line in lines]
    rows = score(
        [case for cases, _ in tables for case in cases], calibrate=given.calibrate_one_per_source
    )
    errors = report(rows)
    print("\n".join(table_lines(errors)))
    if given.json:
        answer = {
            "errors": errors,
            "rows": row_results(rows),
            "unread": [str(line) for line in unread],
        }
        given.json.write_text(to_json(answer, indent=1) + "\n")
    if unread:
        print(
            f"DataError: {len(unread)} rows were not scored (leave what is unknown blank):",
            *unread,
            sep="\n",
            file=sys.stderr,
        )
    return DataError.exit_code if unread else 0


def table_lines(errors: dict[str, Any]) -> list[str]:
    """Errors as lines of text: a source a line, then all rows, then means over sources. Shares and
    errors in per cent."""
    lines = [
        "  ".join(
            name.ljust(width) if not key else name.rjust(width) for name, key, width in COLUMNS
        )
    ]
    named = {**errors["sources"], "all rows": errors["pooled"]}
    lines += ["  ".join([name.ljust(18), *_cells(values)]) for name, values in named.items()]
    means = {
        key: errors["pooled"][f"mean_of_{key}s"]
        for key in ("mfu_median", "baseline_median", "memory_median")
    }
    return [*lines, "  ".join(["mean of sources".ljust(18), *_cells(means)])]


def _cells(values: dict[str, Any]) -> list[str]:
    return [_cell(values.get(key), key).rjust(width) for _, key, width in COLUMNS[1:]]


def _cell(value: float | None, key: str) -> str:
    if value is None:
        return "-"
    return str(value) if key == "rows" else f"{100 * value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
