"""Commands that compose no configuration: run a task on checked options, with errors and exit codes
as everywhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from scaling.commands.cli import reported
from scaling.composition.flags import answered
from scaling.composition.words import Options, read_options
from scaling.config.section import Section
from scaling.config.spelling import TYPED
from scaling.errors import EXIT_FINISHED, ConfigError
from scaling.inference.options import PromptOptions
from scaling.screen import print_help, visible

__all__ = ["EXIT_INTERRUPTED", "read_options", "run_command", "say"]

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
            if isinstance(options, PromptOptions):
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
    print(visible(text), file=sys.stderr, flush=True)


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
            TYPED,
            "Use a terminal with a UTF-8 locale, or prompt=- and a file.",
        ) from error
    return prompt


def _help_lines(kind: type[Section]) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        default = "" if field.is_required() or field.default is None else str(field.default)
        shown = f"  {f'{field.alias or name}={default}':<20} "
        yield f"{shown} {field.description or ''}".rstrip()
