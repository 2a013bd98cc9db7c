"""Parse and print tokens, FLOPs, bytes and durations. Decimal prefixes throughout, except GiB where
named."""

from __future__ import annotations

import math
import re

_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12, "p": 10**15}
_COUNT = re.compile(
    r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([kmbgtp]?)\s*$", re.IGNORECASE
)

_BYTES = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kmgtp]?)b?\s*$", re.IGNORECASE)


def parse_count(text: str | int | float) -> int:
    """Read a count such as 200_000, "2M", "1.5B" or 3e9. Raises ValueError when it is not a whole
    number."""
    if isinstance(text, bool):
        raise ValueError(f"{text!r} is not a count")
    if isinstance(text, int):
        return text
    if isinstance(text, float):
        value = text
    elif not isinstance(text, str):
        raise ValueError(f"{text!r} is not a count")
    else:
        match = _COUNT.match(text)
        if match is None:
            raise ValueError(f"{text!r} is not a count such as 200_000, 2M or 1.5B")
        value = float(match.group(1).replace("_", "")) * _SUFFIXES[match.group(2).lower()]
    if (
        value != value
        or value in (float("inf"), float("-inf"))
        or abs(value - round(value)) > 1e-6 * max(1.0, value)
    ):
        raise ValueError(f"{text!r} is not a whole number")
    return round(value)


def parse_share(text: str | int | float, total: int) -> int:
    """Read a part of `total`: "2%" is a share of it, anything else a count."""
    if isinstance(text, str) and text.strip().endswith("%"):
        percent = float(text.strip()[:-1])
        if not 0 <= percent < float("inf"):
            raise ValueError(f"{text!r} is not a share such as 2%")
        return round(percent / 100 * total)
    return parse_count(text)


def parse_bytes(text: str | int) -> int:
    """Read a size such as 500_000_000, "500MB" or "5 GB" (decimal). Raises ValueError when it is
    none."""
    match = None if isinstance(text, bool) else _BYTES.match(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 5GB, 500MB or 500_000_000")
    return parse_count(match.group(1) + match.group(2))


def _scaled(value: float, names: list[str], base: float) -> str:
    if not math.isfinite(value):
        return "unknown"
    if value < 0:
        return "-" + _scaled(-value, names, base)
    index = 0
    while value >= base * 0.9995 and index < len(names) - 1:
        value, index = value / base, index + 1
    digits = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return f"{digits} {names[index]}".rstrip()


def number_text(value: float | None, style: str) -> str:
    """A number in a style of format(); "unknown" for None and for what is not finite."""
    return "unknown" if value is None or not math.isfinite(value) else format(value, style)


def format_count(value: float) -> str:
    """1234567 -> "1.23 M"; what is not finite is "unknown", here and below."""
    return _scaled(value, ["", "k", "M", "B", "T"], 1000)


def format_flops(value: float) -> str:
    """6.1e15 -> "6.1 PFLOP"."""
    return _scaled(
        value,
        ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP", "YFLOP"],
        1000,
    )


def format_bytes(value: float) -> str:
    """2.1e9 -> "2.1 GB" (decimal)."""
    return _scaled(value, ["B", "kB", "MB", "GB", "TB", "PB"], 1000)


def format_duration(seconds: float) -> str:
    """75 -> "1 min 15 s"; 100000 -> "27 h 47 min"; what is not finite is "unknown"."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 72 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{seconds / 86400:.1f} days"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """1, "worker" -> "1 worker"; 2, "worker" -> "2 workers"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def other_delimiter(header: str) -> str | None:
    """The delimiter of a table's first line, where it is not the comma: "semicolon (;)"."""
    names = {";": "semicolon (;)", "\t": "tab", "|": "bar (|)"}
    most = max(names, key=header.count)
    return names[most] if header.count(most) > header.count(",") else None
