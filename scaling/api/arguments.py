"""Python values as options of a command, errors that name a function, and the import of pandas."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from scaling.errors import ConfigError, ScalingError
from scaling.screen import visible

ROOT = {"run.root=DIR": 'root="DIR"'}
"""The option of the commands, and the argument of the functions."""


def checked(
    kind: Any, own: Mapping[str, Any], options: Mapping[str, Any], refused: Mapping[str, str]
) -> Any:
    """Options from Python values, validated like those of the command line.

    own: options that the function sets itself.
    options: those of its caller; None stands for one that is not given.
    refused: options of the command that the caller may not set -> what does the same.
    """
    from scaling.composition.words import read_options
    from scaling.config.spelling import TYPED

    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key in refused:
            raise ConfigError(f"{key} is an option of the command alone", TYPED, refused[key])
    words = [f"{key}={_as_text(value)}" for key, value in {**own, **given}.items()]
    return read_options(kind, words, unnamed=refused)


@contextmanager
def named(who: str, also: Mapping[str, str] | None = None) -> Iterator[None]:
    """Errors inside name the function `who` where they would name the command line.

    also: other texts of errors -> what they are for the caller of a function.
    """
    from scaling.config.spelling import TYPED

    try:
        yield
    except ScalingError as error:
        for old, new in {TYPED: who, **(also or {})}.items():
            error.what = error.what.replace(old, new)
            error.where = error.where and error.where.replace(old, new)
            error.fix = error.fix and error.fix.replace(old, new)
        error.args = (error.what, error.where, error.fix)
        raise


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
