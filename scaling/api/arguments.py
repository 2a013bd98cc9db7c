"""Python values as options of a command, the optional import of pandas, and messages."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from scaling.errors import ConfigError
from scaling.screen import visible


def checked(kind: Any, values: Mapping[str, Any]) -> Any:
    """Options from Python values, validated like those of the command line."""
    from scaling.commands.options import read_options

    words = [f"{key}={_as_text(value)}" for key, value in values.items() if value is not None]
    return read_options(kind, words)


def _as_text(value: Any) -> str:
    """A value as it is typed: a list with commas, a pair or a mapping with colons."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ",".join(_as_text(item) for item in value)
    return str(value)


def import_pandas(who: str) -> Any:
    try:
        import pandas
    except ImportError as error:
        fix = "pip install 'scaling-ladder[notebook]'"
        raise ConfigError("pandas is not installed", who, fix) from error
    return pandas


def report(text: str) -> None:
    print(visible(text), file=sys.stderr, flush=True)
