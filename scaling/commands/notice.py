"""What a command says beside its output."""

from __future__ import annotations

import sys

from scaling.screen import visible


def say(text: str) -> None:
    """Print a line for the person who waits, on standard error."""
    print(visible(text), file=sys.stderr, flush=True)
