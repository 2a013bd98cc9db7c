"""What an error of composition means to the person who typed the words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from scaling.composition.hydra_parts import OverridesParser, Quote, QuotedString
from scaling.composition.known import meaning, no_value, unknown_key, unknown_option, where_set
from scaling.config.run_config import options_of
from scaling.config.spelling import TYPED, plain_message
from scaling.errors import ConfigError

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValidationError)


def explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """The ConfigError that says what an error of composition means to the person who typed the
    overrides."""
    if isinstance(error, ValidationError):
        return _explain_values(error, overrides)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return unknown_option(str(error.missing_cfg_file), error.options or [])
    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or "a key"
        return ConfigError(
            f"{key} has no value",
            "it has no default",
            f"Give one: {key}=... {meaning(key) or ''}".rstrip(),
        )
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return ConfigError(
            f"{error.full_key}: {str(error).splitlines()[0]}", where_set(error.full_key, overrides)
        )
    text = str(error)
    swept = [
        override for override in overrides if f"Ambiguous value for argument '{override}'" in text
    ]
    if swept:
        return _several(swept[0])
    match = re.search(r"Could not (?:override|append|delete)[^'\"]*['\"]([^'\"]+)['\"]", text)
    if match:
        key = match.group(1).lstrip("+~").split("=")[0].split("@")[0]
        return unknown_key(key, where_set(key, overrides))
    if isinstance(error, ValueError) and (option_error := _not_a_name(overrides)):
        return option_error
    lines = text.strip().splitlines() or [type(error).__name__]
    return ConfigError(
        " ".join(line.strip() for line in lines), "while composing the configuration", "See --help"
    )


_QUOTED = (
    "So must commas, brackets, braces, quotes, blanks at an end, letters beyond ASCII and any of "
    "= # ~ ! & ; < > ^ `."
)
"""What Hydra's grammar does not take within a word."""


def _unreadable(override: str) -> ConfigError:
    """The error for a word that Hydra's grammar does not take: their own value in quotes, where
    that would do."""
    key, equals, _ = override.partition("=")
    what = f"{override!r} cannot be read"
    if not equals:
        return no_value(key)
    in_quotes = _in_quotes(override)
    if not _reads(in_quotes):
        return ConfigError(
            what,
            TYPED,
            "Write GROUP=OPTION or KEY=VALUE; a KEY is made of letters, digits, _ and dots.",
        )
    fix = (
        f"Put the value in quotes, and all of it in the shell's: {shlex.quote(in_quotes)}. "
        f"{_QUOTED}"
    )
    return ConfigError(what, TYPED, fix)


def _several(override: str) -> ConfigError:
    """The error for a value with commas, which Hydra takes for a sweep."""
    fix = (
        f"As one value, put it in quotes: {shlex.quote(_in_quotes(override))}. "
        "As several runs, add -m."
    )
    return ConfigError(f"{override!r} gives several values to one run", TYPED, fix)


def _in_quotes(override: str) -> str:
    key, _, value = override.partition("=")
    quote = Quote.single if '"' in value else Quote.double
    return f"{key}={QuotedString(value, quote).with_quotes()}"


def _reads(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _not_a_name(overrides: Sequence[str]) -> ConfigError | None:
    """The error for an option of a group that is a number or a structure where its name belongs."""
    for override in overrides:
        group, _, option = override.partition("=")
        options = list(options_of(group)) if group else []
        if options and option not in options:
            return unknown_option(f"{group}/{option}", options)
    return None


def _explain_values(error: ValidationError, overrides: Sequence[str]) -> ConfigError:
    problems = [_describe(problem, overrides) for problem in error.errors()]
    first = problems[0]
    more = (
        f" ({len(problems) - 1} more: {'; '.join(p.what for p in problems[1:])})"
        if len(problems) > 1
        else ""
    )
    return ConfigError(first.what + more, first.where, first.fix)


def _describe(problem: ErrorDetails, overrides: Sequence[str]) -> ConfigError:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return unknown_key(key, where_set(key, overrides))
    if problem["type"] == "missing":
        return ConfigError(f"{key} has no value", None, f"Give one: {key}=...")
    message = plain_message(problem["msg"])
    # of a section, or of all
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
        return ConfigError(
            message, where_set(key, overrides) if key else _mentioned(message, overrides)
        )
    return ConfigError(
        f"{key}={problem['input']}: {message}", where_set(key, overrides), meaning(key)
    )


def _mentioned(message: str, overrides: Sequence[str]) -> str | None:
    """The overrides whose keys a message about several sections names."""
    own = [override for override in overrides if override.lstrip("+~").partition("=")[0] in message]
    return f"from the command line: {' '.join(own)}" if own else None
