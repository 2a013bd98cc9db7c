"""What a signal does before and after training: it ends the process in exit code 75, with a line
that says so.

This imports next to nothing, so that it is in force before the heavy imports begin. While workers
are at work `launch/signals.py` takes over: a checkpoint is written first.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable
from types import FrameType

from scaling.errors import EXIT_STOPPED

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_FD_STANDARD = (1, 2)


class Stopped(SystemExit):
    """A signal came while no training was there to be checkpointed. `signal`: its name."""

    def __init__(self, name: str) -> None:
        super().__init__(EXIT_STOPPED)
        self.signal = name


_received: list[str] = []
_owner = -1
_after_stop: str | None = None


def received() -> str | None:
    """The name of the first signal that came while `enter` is at work; None where none has."""
    return _received[0] if _received else None


def enter(task: Callable[[], int], after_stop: str | None = None) -> int:
    """Run `task` as the process's one command; returns its exit code, or 75 where a signal came
    first.

    after_stop: what the same command does then, where it is no run.
    """
    global _owner, _after_stop
    _owner, _after_stop = os.getpid(), after_stop
    before = {number: signal.signal(number, _stop) for number in SIGNALS if not is_ignored(number)}
    try:
        code = task()
    except BaseException as error:
        _note_of_others(error)
        if received() is None:
            raise
        code = EXIT_STOPPED  # whatever the interrupted code made of it
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()
    return code


def leave(code: int) -> None:
    """End the process with this code, come what may. After a stop, threads that still start
    something are not waited for."""
    atexit.register(_ignore)
    if code == EXIT_STOPPED:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def is_ignored(number: signal.Signals) -> bool:
    """Whether whoever started the process wants it to outlive this signal: nohup ignores SIGHUP."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def hung_up(number: int) -> None:
    """Discard output after SIGHUP: the terminal is gone, and printing there is no error."""
    if number == signal.SIGHUP:
        for fd in _FD_STANDARD:
            if os.isatty(fd):
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def _stop(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _owner:  # a child made by fork, which has inherited this
        os._exit(EXIT_STOPPED)
    hung_up(number)
    name = signal.Signals(number).name
    again = bool(_received)
    _received.append(name)
    if again:
        os._exit(EXIT_STOPPED)
    _say_stopped(name)
    raise Stopped(name)


def _note_of_others(error: BaseException) -> None:
    """Ray's own handler, in force for a moment while it connects, leaves with the signal's number
    as the exit code."""
    if isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and error.code == signal.SIGTERM
    ):
        name = "SIGINT" if isinstance(error, KeyboardInterrupt) else "SIGTERM"
        _received.append(name)
        _say_stopped(name)


_DRY = re.compile(r"(?i)\+{0,2}dry_run=['\"]?(true|yes|on|y|1)['\"]?")


def _say_stopped(name: str) -> None:
    """A dry run, known by the command's words alone so early, has nothing to continue."""
    if _after_stop is not None:
        _say(f"{name}: stopped; {_after_stop}.\n")
        return
    dry = any(_DRY.fullmatch(word) for word in sys.argv[1:])
    rest = "a dry run begins nothing" if dry else "the same command continues"
    _say(f"{name}: stopped where no step was under way; {rest}.\n")


def _say(text: str) -> None:
    """Past the streams' buffers, which the interrupted code may be writing to."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
