"""Commands that compose no configuration: KEY=VALUE words -> checked options -> a task, with errors
and exit codes as everywhere.

Everything behind the first = is the value as it stands, so that a prompt needs no quotes but the
shell's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO, TypeVar

from pydantic import ValidationError

from scaling.commands.cli import reported
from scaling.composition.flags import FLAGS, answered
from scaling.config.section import Section
from scaling.config.spelling import TYPED as WHERE
from scaling.config.spelling import did_you_mean, no_flag, no_key
from scaling.errors import EXIT_FINISHED, ConfigError
from scaling.inference.options import RunOptions
from scaling.screen import print_help

Options = TypeVar("Options", bound=Section)
EXIT_INTERRUPTED = 130
"""By Ctrl-C, as shells say it."""


def run_command(
    kind: type[Options], task: Callable[[Options], None], usage: str, words: Sequence[str]
) -> int:
    """Run `task` on the options of `words`; returns the exit code. A ScalingError is printed as its
    message."""
    if answered(words, lambda: print_help(usage + "\n".join(_help_lines(kind)))):
        return EXIT_FINISHED
    codes: list[int] = []
    _write_anything(sys.stdout)
    try:
        with reported(codes, debug=False):
            options = read_options(kind, words)
            if isinstance(options, RunOptions):
                options = options.model_copy(update={"prompt": _text(options.prompt)})
            task(options)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read has enough: nothing more is written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print()
        return EXIT_INTERRUPTED
    return max(codes, default=EXIT_FINISHED)


def say(text: str) -> None:
    """Tell the person who waits, beside the output."""
    print(text, file=sys.stderr, flush=True)


def _write_anything(out: TextIO) -> None:
    """A model may write characters that the terminal's encoding lacks."""
    if reconfigure := getattr(out, "reconfigure", None):
        reconfigure(errors="backslashreplace")


def _text(prompt: str) -> str:
    """The prompt itself, or for - what stands on standard input, without the line's end. Raises
    ConfigError."""
    if prompt == "-":
        if sys.stdin.isatty():
            say("Type the prompt, and Ctrl-D on a line of its own.")
        try:
            return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"standard input is not UTF-8: {error}",
                "prompt=-",
                "Convert it, as with iconv -t utf-8.",
            ) from error
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            "prompt is not UTF-8",
            WHERE,
            "Use a terminal with a UTF-8 locale, or prompt=- and a file.",
        ) from error
    return prompt


def read_options(kind: type[Options], words: Sequence[str]) -> Options:
    """The options that these words set. Raises ConfigError."""
    given: dict[str, str] = {}
    known = list(_descriptions(kind))
    for number, word in enumerate(words):
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            raise no_flag(words, number, known, FLAGS)
        if not equals:
            raise no_key(word, known)
        if key not in known:
            raise ConfigError(
                f"there is no option {key!r}",
                WHERE,
                f"{did_you_mean(key, known)}There are: {', '.join(known)}.",
            )
        if key in given:
            raise ConfigError(
                f"{key} is given twice, as {given[key]!r} and {value!r}", WHERE, "Give it once."
            )
        given[key] = value
    try:
        return kind.model_validate(given, context="words")
    except ValidationError as error:
        raise _explained(kind, error) from error


def _help_lines(kind: type[Section]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        default = "" if field.is_required() or field.default is None else str(field.default)
        shown = f"  {f'{field.alias or name}={default}':<20} "
        yield f"{shown} {field.description or ''}".rstrip()


def _descriptions(kind: type[Section]) -> dict[str, str]:
    return {
        field.alias or name: field.description or "" for name, field in kind.model_fields.items()
    }


def _explained(kind: type[Section], error: ValidationError) -> ConfigError:
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not problem["loc"]:  # of several options together
        return ConfigError(message, WHERE)
    key = str(problem["loc"][0])
    meaning = f"{key} is: {_descriptions(kind)[key]}."
    if problem["type"] == "missing":
        return ConfigError(f"{key} is not given", "it has no default", meaning)
    return ConfigError(f"{key}={problem['input']}: {message}", WHERE, meaning)
