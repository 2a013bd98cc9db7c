"""What the person at the terminal sees while a run goes on: one live line, or plain lines where
there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from scaling.channel.messages import Began
from scaling.config.run_config import RunConfig
from scaling.metrics import names
from scaling.units import counted, format_count, format_duration

PLAIN_INTERVAL_S = 10.0
"""Between two plain lines: often enough to see life, seldom enough for a log file."""


class ProgressLine:
    """Step, tokens, loss, learning rate, tokens/s, MFU where the peak is known, and the time left.

    planned: whether the plan has told how long it takes.
    """

    def __init__(self, console: Console, *, planned: bool = True) -> None:
        self._console = console
        self._live = (
            Live(Text(""), console=console, refresh_per_second=4, transient=True)
            if console.is_terminal
            else None
        )
        self._last_plain_s = 0.0
        self._last = ""
        self._left_out: set[str] = set()
        self._estimate = Estimate(wanted=not planned)

    def __enter__(self) -> ProgressLine:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()
        self.flush()

    def show(self, progress: dict[str, Any]) -> None:
        told = self._estimate.of(progress)
        if told:
            self.say(told)
        self._last = self._fitted(progress)
        if self._live is not None:
            self._live.update(Text(self._last))
        elif time.monotonic() - self._last_plain_s >= PLAIN_INTERVAL_S:
            self.flush()

    def _fitted(self, progress: dict[str, Any]) -> str:
        """The line without the fields that have once been too many, so that it does not flicker;
        whole in a pipe."""
        rate = progress.get(names.TOKENS_PER_S) or self._estimate.tokens_per_s
        fields = progress_fields(progress, rate)
        if self._live is None:
            return "  ".join(fields.values())
        for name in LEAVE_OUT:
            text = "  ".join(value for key, value in fields.items() if key not in self._left_out)
            if len(text) <= self._console.width:
                return text
            self._left_out.add(name)
        return "  ".join(value for key, value in fields.items() if key not in self._left_out)[
            : self._console.width
        ]

    def waiting(self, text: str) -> None:
        """Say what is being waited for, while there is no progress to show yet."""
        if self._live is not None:
            self._live.update(Text(text, style="dim", no_wrap=True, overflow="ellipsis"))
        else:
            self.say(text)

    def began(self, message: Began) -> None:
        self.say(message.text())

    def flush(self) -> None:
        """Print the last line for good."""
        if self._last:
            self._console.print(self._last, highlight=False, soft_wrap=True)
            self._last, self._last_plain_s = "", time.monotonic()

    def say(self, text: str) -> None:
        """Print a line of its own, above the live one."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


LEAVE_OUT = ("lr", "MFU", "tokens", "tokens/s", "ETA", "loss", "")
"""What a narrow terminal's line does without, the first first."""


def progress_fields(progress: dict[str, Any], tokens_per_s: float | None) -> dict[str, str]:
    """The fields of the line, in their order; what is not measured yet is left out."""
    fields = {
        "step": f"step {progress['step']}/{progress['n_steps']}",
        "tokens": f"{format_count(progress['n_tokens'])} tokens",
    }
    if "loss" in progress:
        fields["loss"] = f"loss {progress['loss']:.4f}"
    fields["lr"] = f"lr {progress['lr']:.2e}"
    if progress.get(names.TOKENS_PER_S) is not None:
        fields["tokens/s"] = f"{format_count(progress[names.TOKENS_PER_S])} tokens/s"
    if progress.get(names.DEVICE_MFU) is not None:
        fields["MFU"] = f"MFU {100 * progress[names.DEVICE_MFU]:.1f} %"
    if tokens_per_s:
        fields["ETA"] = (
            f"ETA {format_duration((progress['n_tokens_total'] - progress['n_tokens']) / tokens_per_s)}"
        )
    return fields


class Estimate:
    """Of the time that is left, by the driver's own clock, told once after `AFTER_STEPS` steps
    where a plan had none.

    wanted: whether it is to be told; without, it only serves for the ETA before the first record.
    """

    AFTER_STEPS = 20

    def __init__(self, *, wanted: bool, now: Callable[[], float] = time.monotonic) -> None:
        self.wanted = wanted
        self.tokens_per_s: float | None = None
        self._now = now
        self._first: tuple[float, dict[str, Any]] | None = None

    def of(self, progress: dict[str, Any]) -> str | None:
        now_s = self._now()
        if self._first is None or progress["step"] < self._first[1]["step"]:
            self._first = now_s, progress
            return None
        begun_s, first = self._first
        steps = progress["step"] - first["step"]
        if steps < self.AFTER_STEPS or now_s <= begun_s:
            return None
        self.tokens_per_s = (progress["n_tokens"] - first["n_tokens"]) / (now_s - begun_s)
        if not self.wanted:
            return None
        self.wanted = False
        left_s = (progress["n_tokens_total"] - progress["n_tokens"]) / self.tokens_per_s
        per_step_s = (now_s - begun_s) / steps
        return f"About {format_duration(left_s)} to go, by {steps} steps of {_seconds(per_step_s)}."


def _seconds(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 1 else format_duration(value)


RAY_START_S, WORKER_START_S = 10, 3
"""From the command to the first step with Ray, and without: measured, docs/benchmarks.md."""


def starting_text(config: RunConfig, n_workers: int, *, study: bool = False) -> str:
    """What happens before the first step, and for about how long. study: whose workers are Ray's,
    be it one."""
    alone = n_workers == 1 and config.cluster.kind == "embedded" and not study
    about_s = WORKER_START_S if alone else RAY_START_S
    return f"Starting {counted(n_workers, 'worker')} (about {about_s} s) ..."
