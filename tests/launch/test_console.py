"""What a person sees while a run or a study goes on, and how it ends."""

from __future__ import annotations

import io
import signal
from typing import Any

import pytest
from rich.console import Console

from scaling.launch.console import Estimate, ProgressLine, starting_text
from scaling.launch.signals import StopSignals
from scaling.launch.study.console import StudyConsole, Tally
from scaling.metrics import names
from tests.support.configs import composed

PROGRESS = {
    "step": 12345,
    "n_steps": 250_000,
    "n_tokens": 1_234_567_890,
    "n_tokens_total": 25_000_000_000,
    "loss": 3.4567,
    "lr": 6.1e-4,
    names.TOKENS_PER_S: 123_456.0,
    names.DEVICE_MFU: 0.451,
}


def at(step: int, **fields: Any) -> dict[str, Any]:
    return {
        "step": step,
        "n_steps": 1000,
        "n_tokens": 100 * step,
        "n_tokens_total": 100_000,
        "lr": 1e-3,
        **fields,
    }


def screen(width: int, *, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(
        file=out, width=width, force_terminal=terminal, color_system=None, highlight=False
    ), out


def last_line(width: int, *, terminal: bool) -> str:
    console, out = screen(width, terminal=terminal)
    line = ProgressLine(console)
    line.show(PROGRESS)
    line.flush()
    return out.getvalue().strip("\n").splitlines()[-1]


@pytest.mark.parametrize("width", [30, 60, 80])
def test_the_line_fits_and_keeps_step_and_loss(width: int) -> None:
    text = last_line(width, terminal=True)
    assert len(text) <= width
    assert text.startswith("step 12345/250000")
    assert width < 40 or "loss 3.4567" in text
    assert width < 80 or "ETA" in text


@pytest.mark.parametrize(("width", "terminal"), [(120, True), (80, False)])
def test_with_room_or_in_a_pipe_every_field_is_there(width: int, terminal: bool) -> None:
    text = last_line(width, terminal=terminal)
    for part in (
        "1.23 B tokens",
        "loss 3.4567",
        "lr 6.10e-04",
        "123 k tokens/s",
        "MFU 45.1 %",
        "ETA 53 h 28 min",
    ):
        assert part in text


def test_an_estimate_comes_once_after_twenty_steps() -> None:
    times = iter([100.0, 105.0, 110.0, 120.0])
    estimate = Estimate(wanted=True, now=lambda: next(times))
    told = [estimate.of(at(step)) for step in (1, 11, 21, 41)]
    assert told == [None, None, "About 8 min 10 s to go, by 20 steps of 500 ms.", None]
    assert estimate.tokens_per_s == 200.0


def test_a_planned_time_is_not_estimated_again() -> None:
    times = iter([0.0, 10.0])
    estimate = Estimate(wanted=False, now=lambda: next(times))
    assert [estimate.of(at(step)) for step in (1, 31)] == [None, None]
    assert estimate.tokens_per_s == 300.0


@pytest.mark.parametrize("terminal", [True, False])
def test_the_start_is_said(terminal: bool) -> None:
    console, out = screen(80, terminal=terminal)
    with ProgressLine(console) as line:
        line.waiting(starting_text(composed(), 2))
    assert "Starting 2 workers (about 10 s) ..." in out.getvalue()
    assert starting_text(composed(), 1, study=True) == "Starting 1 worker (about 10 s) ..."
    assert starting_text(composed(), 1) == "Starting 1 worker (about 3 s) ..."


@pytest.mark.parametrize("width", [60, 80])
def test_a_study_shows_what_varies_and_its_curves(width: int) -> None:
    console, out = screen(width, terminal=True)
    shown, name = StudyConsole(console), "lr=0.001 d_model=64 (7d72d9db)"
    for step, loss in ((10, 4.0), (20, 3.0), (30, 2.0)):
        shown.show({name: at(step, loss=loss)}, Tally(2))
    console.print(shown._table({name: at(30, loss=2.0)}, Tally(2)))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for part in ("d_model=64", "7d72d9db", "30/1000", "2.0000"):
        assert part in text
    assert width < 80 or "█▅▁" in text


@pytest.mark.parametrize(
    ("number", "by", "event"),
    [
        (signal.SIGINT, "Ctrl-C", "stopped"),
        (signal.SIGTERM, "SIGTERM", "preempted"),
        (signal.SIGUSR1, "SIGUSR1", "preempted"),
    ],
)
def test_a_person_stops_and_a_scheduler_preempts(
    number: signal.Signals, by: str, event: str
) -> None:
    with StopSignals() as signals:
        assert signals.event == "preempted", "a spot notice comes without a signal"
        signal.raise_signal(number)
    assert (signals.by, signals.event) == (by, event)
