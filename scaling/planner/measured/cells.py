"""Numbers in the cells of a table; blank is unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping


def number(row: Mapping[str, str], name: str) -> float | None:
    """Raises ValueError for what is no number of 0 or more."""
    text = row.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a number") from None
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={text!r} is not a number of 0 or more")
    return value


def whole(row: Mapping[str, str], name: str) -> int | None:
    """Raises ValueError for what is no whole number above 0."""
    value = number(row, name)
    if value is None:
        return None
    if value != int(value) or value < 1:
        raise ValueError(f"{name}={row[name]!r} is not a whole number above 0")
    return int(value)
