"""What a command answers before it loads anything: its help, and which version this is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from scaling import __version__

FLAGS = ("--help", "--version")


def answered(words: Sequence[str], show_help: Callable[[], None]) -> bool:
    """Whether these words ask for one of the two, which is printed then."""
    if {"--help", "-h"} & set(words) or list(words[:1]) == ["help"]:
        show_help()
        return True
    if "--version" in words or list(words) == ["version"]:
        print(f"scaling {__version__}")
        return True
    return False
