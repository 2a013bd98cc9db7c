"""The output of a run at the terminal: one live line, or plain lines."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from scaling.channel.messages import Began
from scaling.config.run_config import RunConfig
from scaling.metrics import names
from scaling.metrics.throughput import RECENT_STEPS
from scaling.terminal import Display
from scaling.units import counted, format_count, format_duration


class ProgressLine(Display[Live]):
    """Step, tokens, loss, learning rate, tokens/s, MFU where the peak is known, and the time left.

    planned: whether the plan has an estimate of its time.
    """

    def __init__(self, console: Console, *, planned: bool = True) -> None:
        super().__init__(console, _live_line)
        self._last = ""
        self._left_out: set[str] = set()
        self._estimate = Estimate(wanted=not planned)

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.flush()

    def show(self, progress: dict[str, Any]) -> None:
        estimate = self._estimate.of(progress)
        if estimate:
            self.say(estimate)
        self._last = self._fitted(progress)
        if self.drawing is not None:
            self.drawing.update(Text(self._last))
        elif self.plain_due():
            self.flush()

    def _fitted(self, progress: dict[str, Any]) -> str:
        """The line without the fields that have once been too many, so that it does not flicker;
        whole in a pipe."""
        fields = progress_fields(progress)
        if self.drawing is None:
            return "  ".join(fields.values())
        for name in LEAVE_OUT:
            text = "  ".join(value for key, value in fields.items() if key not in self._left_out)
            if len(text) <= self.console.width:
                return text
            self._left_out.add(name)
        return "  ".join(value for key, value in fields.items() if key not in self._left_out)[
            : self.console.width
        ]

    def waiting(self, text: str) -> None:
        """Say what is being waited for, while there is no progress to show yet."""
        if self.drawing is not None:
            self.drawing.update(Text(text, style="dim", no_wrap=True, overflow="ellipsis"))
        else:
            self.say(text)

    def began(self, message: Began) -> None:
        self.say(message.text())

    def flush(self) -> None:
        """Print the last line for good."""
        if self._last:
            self.plain(self._last)
            self._last = ""


def _live_line(console: Console) -> Live:
    return Live(Text(""), console=console, refresh_per_second=4, transient=True)


LEAVE_OUT = ("lr", "MFU", "tokens", "tokens/s", "ETA", "loss", "")
"""What a narrow terminal's line does without, the first first."""


def time_left_s(progress: dict[str, Any]) -> float | None:
    """Seconds that the steps left take, at the rate of the recent ones; evaluations and checkpoints
    are in neither. None before a step is measured."""
    rate = progress.get("recent_tokens_per_s")
    return (progress["n_tokens_total"] - progress["n_tokens"]) / rate if rate else None


def time_left_text(left_s: float) -> str:
    """Never nothing while something is left."""
    return "under 0.1 s" if 0 < left_s < 0.1 else format_duration(left_s)


def progress_fields(progress: dict[str, Any]) -> dict[str, str]:
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
    left_s = time_left_s(progress)
    if left_s is not None:
        fields["ETA"] = f"ETA {time_left_text(left_s)}"
    return fields


class Estimate:
    """Reports the time that is left once, where the plan has no estimate, after as many steps as
    its rate is taken over. wanted: whether to report it."""

    def __init__(self, *, wanted: bool) -> None:
        self.wanted = wanted
        self._first_step: int | None = None

    def of(self, progress: dict[str, Any]) -> str | None:
        step = progress["step"]
        if self._first_step is None or step < self._first_step:
            self._first_step = step
        left_s, n_left = time_left_s(progress), progress["n_steps"] - step
        early = step - self._first_step < RECENT_STEPS
        if not self.wanted or early or not left_s or n_left <= 0:
            return None
        self.wanted = False
        per_step = _seconds(left_s / n_left)
        left = time_left_text(left_s)
        return f"About {left} to go, by the last {RECENT_STEPS} steps of {per_step}."


def _seconds(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 1 else format_duration(value)


RAY_START_S, WORKER_START_S = 10, 3
"""Seconds between the command and the first step with Ray, and without: measured,
docs/benchmarks.md."""


def starting_text(config: RunConfig, n_workers: int, *, study: bool = False) -> str:
    """What happens before the first step, and for about how long. study: whose workers are Ray's,
    be it one."""
    alone = n_workers == 1 and config.cluster.kind == "embedded" and not study
    about_s = WORKER_START_S if alone else RAY_START_S
    return f"Starting {counted(n_workers, 'worker')} (about {about_s} s) ..."
