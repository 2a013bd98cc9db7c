"""Every command ends in order: after a signal, and when the reader of its output has left."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.commands import entry
from scaling.errors import EXIT_STOPPED, ConfigError

DOORS = ("plan", "prepare", "status", "fit", "predict", "rehearse", "completion")
"""Doors that return their exit code; `run` has tests of its own, and the others read a prompt."""


@contextlib.contextmanager
def nobody_reads() -> Iterator[None]:
    """Standard output is a pipe whose other end is closed."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as out, contextlib.redirect_stdout(out):
        yield
        out.flush()  # as at the end of the process


@pytest.mark.parametrize(
    "words",
    [
        *([door, "--help"] for door in DOORS),
        ["completion", "bash"],
        ["status"],
        ["plan", "cluster=8xH100", "--json"],
        ["plan", "cluster=8xH100", "plan.top=1"],
    ],
    ids=" ".join,
)
def test_a_reader_that_has_left_ends_a_command_quietly(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    door = importlib.import_module(f"scaling.{words[0]}")
    with nobody_reads():
        assert door.main(words[1:]) == entry.EXIT_PIPE == 128 + signal.SIGPIPE
    assert capfd.readouterr().err == ""


def test_another_pipe_that_breaks_is_an_error() -> None:
    def broken(words: list[str]) -> int:
        raise BrokenPipeError("a socket")

    with pytest.raises(BrokenPipeError, match="a socket"):
        entry.enter(broken, [])


def test_an_error_is_its_message_and_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(words: list[str]) -> int:
        raise ConfigError(f"{words} is wrong", None, "Mend it.")

    assert entry.enter(wrong, ["x"]) == 2
    assert capsys.readouterr().err == "ConfigError: ['x'] is wrong.\n  Mend it.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", DOORS)
def test_a_signal_ends_a_command_in_75_with_a_line(
    name: str,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    door = importlib.import_module(f"scaling.{name}")

    def stopped(words: list[str]) -> int:
        os.kill(os.getpid(), number)
        return 0

    monkeypatch.setattr(door, "_command", stopped)
    before = signal.getsignal(number)
    assert door.main([]) == EXIT_STOPPED
    assert capfd.readouterr().err.startswith(f"{number.name}: stopped; the ")
    assert signal.getsignal(number) == before


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.2, 0.6, 1.0, 1.5, 2.0, 3.0])
def test_a_preparation_is_stopped_at_any_moment_and_continues(
    tmp_path: Path, delay_s: float
) -> None:
    for number in range(300):
        (tmp_path / f"{number}.txt").write_text(f"text {number} " * 500)
    command = [sys.executable, "-m", "scaling.prepare", f"inputs={tmp_path}/*.txt"]
    command += [f"out={tmp_path / 'out'}", "vocab_size=400", "processes=2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (caught := _catches(process.pid)) and process.poll() is None:
        time.sleep(0.001)
    assert caught
    time.sleep(delay_s)
    process.send_signal(signal.SIGTERM if delay_s < 1 else signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (0, EXIT_STOPPED), err
    assert "Traceback" not in out + err
    if process.returncode:
        assert ": stopped; the same command continues.\n" in err
        assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0


def _catches(pid: int) -> bool:
    """Whether the process has its own handler of SIGTERM."""
    text = Path(f"/proc/{pid}/status").read_text()
    (mask,) = (line.split()[1] for line in text.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)
