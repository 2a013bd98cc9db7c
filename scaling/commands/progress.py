"""What the person at the terminal sees of work in stages: a bar, or plain lines where there is no
terminal."""

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
from scaling.units import format_duration

PLAIN_INTERVAL_S = 10.0
"""Between two plain lines of one stage: often enough to see life, seldom enough for a log file."""


class ProgressBar:
    """One bar a stage. Written to standard error, since standard output is for the result."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        self._progress = (
            Progress(*columns, console=self._console) if self._console.is_terminal else None
        )
        self._stages: dict[str, TaskID] = {}
        self._begun_s = time.monotonic()
        self._stage, self._last_s = "", 0.0

    def __enter__(self) -> ProgressBar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def report(self, message: str, part: float | None) -> None:
        """What is being done, and the part of it that is done (0 to 1, None where that is not
        known)."""
        message = visible(message)
        begun = message in self._stages or message == self._stage
        if part is None or (part == 1.0 and not begun):
            self._console.print(message, markup=False, soft_wrap=True)
        elif self._progress is not None:
            if message not in self._stages:
                self._stages[message] = self._progress.add_task(message, total=1.0)
            self._progress.update(self._stages[message], completed=part)
        else:
            self._plain(message, part)

    def _plain(self, message: str, part: float) -> None:
        now_s = time.monotonic()
        if message != self._stage or part == 1.0 or now_s - self._last_s >= PLAIN_INTERVAL_S:
            self._console.print(
                f"{message}: {part:.0%} after {format_duration(now_s - self._begun_s)}",
                soft_wrap=True,
            )
            self._stage, self._last_s = message, now_s
