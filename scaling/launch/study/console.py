"""The output of a study at the terminal: a live table, or plain lines."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from scaling.launch.console import time_left_s, time_left_text
from scaling.metrics import names
from scaling.screen import Column, FittedTable, sparkline
from scaling.terminal import Display
from scaling.units import format_count, format_duration

_REFRESH_PER_S = 2
_COLUMNS = (
    Column("trial", wraps=True),
    Column("state", 4, left=True),
    Column("step"),
    Column("curve", 5, left=True),
    Column("loss"),
    Column("tokens/s", 6),
    Column("ETA", 3),
)


@dataclass
class Tally:
    """The study as a whole. flops: of what is still to be done, and done since this command
    began."""

    n_trials: int
    finished: int = 0
    failed: int = 0
    waiting: int = 0
    flops: float = 0.0
    flops_done: float = 0.0


def _live_table(console: Console) -> Live:
    return Live(console=console, refresh_per_second=_REFRESH_PER_S, transient=True)


class StudyConsole(Display[Live]):
    """The trials that run, each with its progress, and a line for the study."""

    def __init__(self, console: Console) -> None:
        # The table of the plan has just been printed: the first line in a pipe waits an interval.
        super().__init__(console, _live_table, at_once=False)
        self._losses: dict[str, dict[int, float]] = {}
        self._began_s = time.monotonic()

    def show(self, running: Mapping[str, dict[str, Any]], tally: Tally) -> None:
        """running: what a trial is called -> its latest progress, empty before the first."""
        for name, progress in running.items():
            self._losses.setdefault(name, {}).update(
                {progress["step"]: progress["loss"]} if "loss" in progress else {}
            )
        if self.drawing is not None:
            self.drawing.update(self._table(running, tally))
        elif self.plain_due():
            steps = [f"{name} {p['step']}/{p['n_steps']}" for name, p in running.items() if p]
            self.plain("; ".join([self._whole(tally), *steps]))

    def _table(self, running: Mapping[str, dict[str, Any]], tally: Tally) -> RenderableType:
        table = FittedTable(_COLUMNS)
        for name, progress in running.items():
            state, step, loss, rate, eta = progress_cells(progress)
            table.add(
                name, state, step, sparkline(self._losses[name].values()) or "-", loss, rate, eta
            )
        whole = Text("\n".join(textwrap.wrap(self._whole(tally), self.console.width)))
        return Group(table, whole) if table.rows else whole

    def _whole(self, tally: Tally) -> str:
        elapsed_s = time.monotonic() - self._began_s
        parts = [f"{tally.finished}/{tally.n_trials} finished"]
        if tally.failed:
            parts.append(f"{tally.failed} failed")
        if tally.waiting:
            parts.append(f"{tally.waiting} waiting")
        parts.append(f"{format_duration(elapsed_s)} so far")
        # before that the rate is that of the start
        if tally.flops and tally.flops_done > 0.01 * tally.flops:
            left_s = elapsed_s * (tally.flops / tally.flops_done - 1)
            parts.append(f"ETA {time_left_text(left_s)}")
        return ", ".join(parts)


def progress_cells(progress: dict[str, Any]) -> tuple[str, ...]:
    """State, step, loss, tokens/s and ETA of a trial that runs."""
    if not progress:
        return "starting", "-", "-", "-", "-"
    rate = progress.get(names.TOKENS_PER_S)
    left_s = time_left_s(progress)
    return (
        "running",
        f"{progress['step']}/{progress['n_steps']}",
        f"{progress['loss']:.4f}" if "loss" in progress else "-",
        format_count(rate) if rate else "-",
        "-" if left_s is None else time_left_text(left_s),
    )
