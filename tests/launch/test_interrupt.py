"""Signals before and after training: exit code 75 and a line that says so, whatever they
interrupt."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaling.launch import interrupt as door
from scaling.launch.signals import StopSignals
from tests.support.runs import ONE_WORKER, TWO_WORKERS, Workplace


def interrupted(number: signal.Signals) -> int:
    os.kill(os.getpid(), number)
    return 0


@pytest.mark.parametrize("number", door.SIGNALS)
def test_every_signal_ends_in_75_with_a_line(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    # Whoever runs the tests may ignore a signal, as nohup does, and the door respects that.
    before = signal.signal(number, signal.default_int_handler)
    try:
        assert door.enter(lambda: interrupted(number)) == 75
        assert (
            capfd.readouterr().err
            == f"{number.name}: stopped where no step was under way; the same command continues.\n"
        )
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("word", ["dry_run=true", "dry_run=True", "++dry_run=yes"])
def test_a_dry_run_has_nothing_to_continue(
    word: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "model=gpt_nano", word])
    assert door.enter(lambda: interrupted(signal.SIGTERM)) == 75
    assert door.enter(lambda: sys.exit(int(signal.SIGTERM))) == 75
    line = "SIGTERM: stopped where no step was under way; a dry run begins nothing.\n"
    assert capfd.readouterr().err == 2 * line
    monkeypatch.setattr(sys, "argv", ["run.py", "dry_run=false", "run.name=dry_run=true"])
    assert door.enter(lambda: interrupted(signal.SIGTERM)) == 75
    assert "the same command continues" in capfd.readouterr().err


def test_what_is_interrupted_may_make_another_error_of_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def importing() -> int:
        try:
            return interrupted(signal.SIGTERM)
        except BaseException as error:
            raise ImportError("cannot import name 'x'") from error

    assert door.enter(importing) == 75
    assert "SIGTERM" in capfd.readouterr().err


def test_a_signal_that_is_swallowed_is_not_forgotten() -> None:
    def swallowing() -> int:
        with contextlib.suppress(BaseException):
            interrupted(signal.SIGINT)
        with StopSignals() as signals:
            return 75 if signals.received == "SIGINT" else 0

    assert door.enter(swallowing) == 75


def test_rays_own_way_out_while_it_connects_is_ours() -> None:
    assert door.enter(lambda: sys.exit(int(signal.SIGTERM))) == 75


def test_an_error_stays_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        door.enter(lambda: 1 // 0)
    with pytest.raises(SystemExit):
        door.enter(lambda: sys.exit(2))


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert door.enter(lambda: interrupted(signal.SIGHUP)) == 0
        with StopSignals() as signals:
            interrupted(signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_door_is_there_before_anything_heavy() -> None:
    doors = ("run", "plan", "prepare", "fit", "predict", "rehearse", "status")
    heavy = {"numpy", "pydantic", "hydra", "rich", "torch", "yaml"}
    imports = ", ".join(f"scaling.{door}" for door in doors)
    program = f"import sys, {imports}; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


def catches(pid: int) -> bool:
    """Whether the process has its own handler of SIGTERM."""
    (mask,) = (
        line.split()[1]
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("SigCgt")
    )
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("words", [ONE_WORKER, TWO_WORKERS], ids=["one", "two"])
def test_signals_at_any_moment_of_a_start(
    workplace: Workplace, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Sends signals at many moments between the door and the tenth step."""
    for place, delay_s in enumerate(
        [0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.5, 8.0, 10.0, 13.0]
    ):
        number = door.SIGNALS[place % len(door.SIGNALS)]
        run = workplace.start(
            *words, f"data.cache_dir={tmp_path / str(place)}", root=tmp_path / f"runs-{place}"
        )
        while not catches(run.process.pid):
            time.sleep(0.001)
        time.sleep(delay_s)
        run.signal(number)
        code = run.wait()
        assert code == 75, f"{number.name} after {delay_s} s: {code}: {run.output}"
        assert number.name in run.output
        assert "Traceback" not in run.output
        assert run.leftovers() == []
