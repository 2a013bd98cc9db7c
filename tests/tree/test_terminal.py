"""One module knows whether a terminal or a pipe shows what a command prints."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live
from rich.text import Text

from scaling import terminal
from scaling.terminal import Display, print_line

PACKAGE = Path(__file__).parents[2] / "scaling"


def shown(*, is_terminal: bool, at_once: bool = True) -> tuple[Display[Live], io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, width=20, force_terminal=is_terminal, color_system=None)
    return Display(console, lambda c: Live(Text("drawn"), console=c), at_once=at_once), out


def test_a_terminal_has_the_drawing_and_lines_above_it() -> None:
    display, out = shown(is_terminal=True)
    with display:
        assert display.drawing is not None
        assert display.drawing.is_started
        display.say("a line")
    assert not display.drawing.is_started
    assert out.getvalue().rindex("drawn") > out.getvalue().index("a line")


@pytest.mark.parametrize("at_once", [True, False])
def test_a_pipe_has_a_line_per_interval(at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 5.0  # of a machine that has just been started
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now_s)
    display, out = shown(is_terminal=False, at_once=at_once)
    assert display.drawing is None
    printed = []
    with display:
        for now_s in (5.0, 14.9, 15.1, 25.0, 25.2):
            if display.plain_due():
                display.plain(f"after {now_s}")
                printed.append(now_s)
    assert printed == ([5.0, 15.1, 25.2] if at_once else [15.1, 25.2])
    assert out.getvalue().splitlines() == [f"after {now_s}" for now_s in printed]


def test_a_line_is_printed_as_it_is() -> None:
    out = io.StringIO()
    text = "[bold] is no markup, and 30 columns are no reason to fold"
    print_line(Console(file=out, width=30), text + "\x1b")
    assert out.getvalue() == text + "\\x1b\n"


def test_no_other_module_asks() -> None:
    asking = [p.name for p in PACKAGE.rglob("*.py") if "is_terminal" in p.read_text()]
    assert asking == ["terminal.py"]
