"""Help, fitted to the terminal."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from typing import Any, TextIO

HELP_WIDTH = 120
"""Width where there is no terminal."""


def print_help(text: str, out: TextIO | None = None) -> None:
    """Print help, fitted to the terminal."""
    out = out or sys.stdout
    width = shutil.get_terminal_size().columns if out.isatty() else HELP_WIDTH
    print(fitted_help(text, width).rstrip("\n"), file=out)


_ITEM = re.compile(r"( *\S.*?(?: {2,}|\t))(\S.*)$")


def fitted_help(text: str, width: int) -> str:
    """Wrap again what is too wide: paragraphs filled, the meaning of "term  meaning" lines in its
    column or below a long term."""
    found: list[str] = []
    paragraph: list[str] = []

    def flush() -> None:
        if any(len(line) > width for line in paragraph):
            paragraph[:] = textwrap.wrap(
                " ".join(paragraph), width, break_on_hyphens=False, break_long_words=False
            )
        found.extend(paragraph)
        paragraph.clear()

    for line in text.split("\n"):
        item = _ITEM.match(line)
        if line.strip() and not line.startswith((" ", "Usage:")) and item is None:
            paragraph.append(line)
            if line.endswith((":", ".", ";")):
                flush()
            continue
        flush()
        found += [line] if len(line) <= width else _fitted_item(line, item, width)
    flush()
    return "\n".join(found)


def _fitted_item(line: str, item: re.Match[str] | None, width: int) -> list[str]:
    options: Any = {"break_on_hyphens": False, "break_long_words": False}
    indent = " " * (len(line) - len(line.lstrip()))
    if line.lstrip().startswith("python -m "):
        command = line if item is None else item[1]
        lines = textwrap.wrap(
            command.strip(),
            width - 2,
            initial_indent=indent,
            subsequent_indent=indent + "    ",
            **options,
        )
        found = [f"{text} \\" for text in lines[:-1]] + lines[-1:]
        return (
            found
            if item is None
            else [
                *found,
                *textwrap.wrap(item[2], width, initial_indent=indent + "      ", **options),
            ]
        )
    if item is None:
        return textwrap.wrap(
            line.strip(), width, initial_indent=indent, subsequent_indent=indent + "    ", **options
        )
    term, meaning = item.groups()
    if len(term) <= 0.45 * width:
        return textwrap.wrap(
            meaning, width, initial_indent=term, subsequent_indent=" " * len(term), **options
        )
    hang = indent + "      "
    first = textwrap.wrap(
        term.strip(), width, initial_indent=indent, subsequent_indent=hang, **options
    )
    return first + textwrap.wrap(
        meaning, width, initial_indent=hang, subsequent_indent=hang, **options
    )
