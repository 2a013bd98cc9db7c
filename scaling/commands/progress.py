"""What the person at the terminal sees of work in stages: one bar for each, or plain lines."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from scaling.screen import visible
from scaling.terminal import Display
from scaling.units import format_duration


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
    )


class ProgressBar(Display[Progress]):
    """One bar a stage. Written to standard error, since standard output is for the result."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console or Console(stderr=True, highlight=False), _bars)
        self._stages: dict[str, TaskID] = {}
        self._begun_s = time.monotonic()
        self._stage = ""

    def report(self, message: str, part: float | None) -> None:
        """What is being done, and the part of it that is done (0 to 1, None where that is not
        known)."""
        message = visible(message)
        begun = message in self._stages or message == self._stage
        # A stage that is done when first reported was never under way: no bar for it.
        if part is None or (part == 1.0 and not begun):
            self.say(message)
        elif self.drawing is not None:
            if message not in self._stages:
                self._stages[message] = self.drawing.add_task(message, total=1.0)
            self.drawing.update(self._stages[message], completed=part)
        elif message != self._stage or part == 1.0 or self.plain_due():
            elapsed_s = time.monotonic() - self._begun_s
            self.plain(f"{message}: {part:.0%} after {format_duration(elapsed_s)}")
            self._stage = message
