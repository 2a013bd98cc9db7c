"""What the person at the terminal sees while a run goes on: one live line, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from scaling.metrics import names
from scaling.units import format_count, format_duration

PLAIN_INTERVAL_S = 10.0
"""Between two plain lines: often enough to see life, seldom enough for a log file."""


class ProgressLine:
    """Step, tokens, loss, learning rate, tokens/s, MFU where the peak is known, and the time left."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(Text(""), console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._last_plain_s = 0.0
        self._last = ""

    def __enter__(self) -> ProgressLine:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.stop()
        self.flush()

    def show(self, progress: dict[str, Any]) -> None:
        self._last = progress_text(progress)
        if self._live is not None:
            self._live.update(Text(self._last))
        elif time.monotonic() - self._last_plain_s >= PLAIN_INTERVAL_S:
            self.flush()

    def waiting(self, text: str) -> None:
        """Say what is being waited for, while there is no progress to show yet."""
        if self._live is not None:
            self._live.update(Text(text, style="dim"))

    def flush(self) -> None:
        """Print the last line for good."""
        if self._last:
            self._console.print(self._last, highlight=False, soft_wrap=True)
            self._last, self._last_plain_s = "", time.monotonic()

    def say(self, text: str) -> None:
        """Print a line of its own, above the live one."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def progress_text(progress: dict[str, Any]) -> str:
    """One line with fixed fields; what is not measured yet is left out."""
    parts = [
        f"step {progress['step']}/{progress['n_steps']}",
        f"{format_count(progress['n_tokens'])} tokens",
    ]
    if "loss" in progress:
        parts.append(f"loss {progress['loss']:.4f}")
    parts.append(f"lr {progress['lr']:.2e}")
    rate = progress.get(names.TOKENS_PER_S)
    if rate is not None:
        parts.append(f"{format_count(rate)} tokens/s")
    mfu = progress.get(names.DEVICE_MFU)
    if mfu is not None:
        parts.append(f"MFU {100 * mfu:.1f} %")
    if rate:
        parts.append(f"ETA {format_duration((progress['n_tokens_total'] - progress['n_tokens']) / rate)}")
    return "  ".join(parts)
