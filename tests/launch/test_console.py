"""The output of a run and of a study at the terminal, and how it ends."""

from __future__ import annotations

import io
import signal
from typing import Any

import pytest
from rich.console import Console

from scaling.launch.console import Estimate, ProgressLine, progress_fields, starting_text
from scaling.launch.signals import StopSignals
from scaling.launch.study.console import StudyConsole, Tally, progress_cells
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
    "recent_tokens_per_s": 123_456.0,
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


@pytest.mark.parametrize("rate", [200.0, 3.7, 1e7])
def test_an_estimate_comes_once_and_agrees_with_the_line(rate: float) -> None:
    console, out = screen(200, terminal=False)
    with ProgressLine(console, planned=False) as line:
        for step in (1, 11, 20):
            line.show(at(step, recent_tokens_per_s=0.5))
        assert "to go" not in out.getvalue()
        for step in (22, 41):
            line.show(at(step, recent_tokens_per_s=rate, **{names.TOKENS_PER_S: 7.0}))
            line.flush()
    told, eta = out.getvalue().splitlines()[-3:-1]
    assert told.startswith("About ")
    assert told.split(" to go")[0].removeprefix("About ") == eta.split("ETA ")[1]
    assert rate != 200 or told == "About 8 min 09 s to go, by the last 20 steps of 500 ms."
    assert rate != 1e7 or "under 0.1 s" in told


def test_what_is_left_is_never_nothing_before_the_end() -> None:
    last = at(999, recent_tokens_per_s=1e9)
    assert progress_fields(last)["ETA"] == "ETA under 0.1 s"
    assert progress_cells(last)[-1] == "under 0.1 s"
    assert progress_fields(at(1000, recent_tokens_per_s=1e9))["ETA"] == "ETA 0.0 s"
    estimate = Estimate(wanted=True)
    assert [estimate.of(at(step, recent_tokens_per_s=1e9)) for step in (1, 1000)] == [None, None]


def test_a_planned_time_is_not_estimated_again() -> None:
    estimate = Estimate(wanted=False)
    assert [estimate.of(at(step, recent_tokens_per_s=9.0)) for step in (1, 31)] == [None, None]


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
