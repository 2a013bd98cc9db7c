"""Commands that compose no configuration: run a task on checked options, with errors and exit codes
as everywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from scaling.commands.entry import reported, until_nobody_reads
from scaling.commands.fitted_help import print_help
from scaling.commands.notice import say
from scaling.composition.flags import answered
from scaling.composition.words import Options, option_lines, read_options
from scaling.config.spelling import TYPED
from scaling.errors import EXIT_FINISHED, ConfigError
from scaling.inference.options import PromptOptions

__all__ = ["EXIT_INTERRUPTED", "read_options", "run_command", "say"]

EXIT_INTERRUPTED = 130
"""The exit code that shells give to a command that Ctrl-C ended."""


def run_command(
    kind: type[Options], task: Callable[[Options], None], usage: str, words: Sequence[str]
) -> int:
    """Run `task` on the options of `words`; returns the exit code. A ScalingError is printed as its
    message."""
    if answered(words, lambda: print_help(usage + "\n".join(option_lines(kind)))):
        return EXIT_FINISHED
    codes: list[int] = []
    _write_anything(sys.stdout)
    try:
        with until_nobody_reads(codes), reported(codes, debug=False):
            options = read_options(kind, words)
            if isinstance(options, PromptOptions):
                options = options.model_copy(update={"prompt": _text(options.prompt)})
            task(options)
    except KeyboardInterrupt:
        print()
        return EXIT_INTERRUPTED
    return max(codes, default=EXIT_FINISHED)


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
