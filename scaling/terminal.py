"""The output of a command. Only this module knows whether a terminal shows it, or a pipe or a file
takes it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, Self, TypeVar

from rich.console import Console

from scaling.screen import FittedTable, fitted_lines, visible

PLAIN_INTERVAL_S = 10.0
"""Interval of plain lines: often enough to see life, seldom enough for a log file."""
_PIPE_WIDTH = 1000


def output_console(**options: Any) -> Console:
    """Standard output: as wide as the terminal is; a pipe or a file has no width to keep to, unless
    COLUMNS says one."""
    console = Console(highlight=False, **options)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(highlight=False, width=_PIPE_WIDTH, **options)


def print_items(items: Iterable[str | FittedTable]) -> None:
    """Print lines, wrapped between words on a terminal, and tables."""
    console = output_console()
    for item in items:
        if not isinstance(item, str):
            console.print(item)
            continue
        whole = console.width >= _PIPE_WIDTH
        text = visible(item)
        for line in text.split("\n") if whole else fitted_lines(text, console.width):
            print_line(console, line)


def print_line(console: Console, text: str) -> None:
    """Print `text` as it is: a pipe gets it on one line, and brackets are no markup."""
    console.print(visible(text), highlight=False, markup=False, soft_wrap=True)


class Drawing(Protocol):
    """What rich redraws in its place, such as a Live or a Progress."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


DrawingT = TypeVar("DrawingT", bound=Drawing)


class Display(Generic[DrawingT]):
    """Work in progress: a drawing on a terminal, and a plain line now and then elsewhere.

    make: makes the drawing. at_once: whether the first plain line waits for no interval.
    """

    def __init__(
        self, console: Console, make: Callable[[Console], DrawingT], *, at_once: bool = True
    ) -> None:
        self.console = console
        self.drawing = make(console) if console.is_terminal else None
        self._last_plain_s = -math.inf if at_once else time.monotonic()

    def __enter__(self) -> Self:
        if self.drawing is not None:
            self.drawing.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.drawing is not None:
            self.drawing.stop()

    def say(self, text: str) -> None:
        """Print a line for good, above the drawing."""
        print_line(self.console, text)

    def plain_due(self) -> bool:
        """Whether so much time has passed that a pipe gets its next line."""
        return time.monotonic() - self._last_plain_s >= PLAIN_INTERVAL_S

    def plain(self, text: str) -> None:
        """Print a line for good; the next interval begins."""
        self.say(text)
        self._last_plain_s = time.monotonic()
