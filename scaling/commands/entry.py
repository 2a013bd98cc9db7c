"""The one way into a command: signals, errors, a reader that has left, and the exit code.

This imports next to nothing, so that signals are handled before the heavy imports of a command
begin.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

from scaling.errors import ScalingError
from scaling.launch import interrupt
from scaling.launch.interrupt import leave

__all__ = ["AGAIN", "EXIT_PIPE", "enter", "leave", "reported", "until_nobody_reads"]

EXIT_PIPE = 141
"""The reader of the output has left, as head does: 128 + SIGPIPE, as shells report it."""
AGAIN = "the same command begins again"
"""What follows a stop of a command that keeps nothing of its work."""


def enter(
    command: Callable[[list[str]], int],
    words: Sequence[str] | None = None,
    *,
    after_stop: str | None = None,
) -> int:
    """Run `command` on `words`, by default those of the command line; returns the exit code.

    A ScalingError is printed as its message; after a signal the code is 75. after_stop: what the
    same command does then, where it is not a run.
    """
    given = list(sys.argv[1:] if words is None else words)

    def guarded() -> int:
        codes: list[int] = []
        with until_nobody_reads(codes), reported(codes, debug=False):
            codes.append(command(given))
        return codes[-1]

    return interrupt.enter(guarded, after_stop)


@contextlib.contextmanager
def reported(codes: list[int], *, debug: bool) -> Iterator[None]:
    """Print a ScalingError as its message, with the traceback in debugging, and note its exit
    code."""
    try:
        yield
    except ScalingError as error:
        if debug:
            traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        codes.append(error.exit_code)


@contextlib.contextmanager
def until_nobody_reads(codes: list[int]) -> Iterator[None]:
    """End quietly, and note the exit code, once the reader of standard output has left."""
    try:
        yield
        sys.stdout.flush()  # here: at the end of the process an error could not be caught
    except BrokenPipeError:
        if not _output_is_broken():
            raise
    except SystemExit as error:
        # rich leaves so, its output already redirected
        if not isinstance(error.__context__, BrokenPipeError):
            raise
    else:
        return
    with contextlib.suppress(OSError, ValueError):
        # what is still buffered goes nowhere, instead of into an error at the end of the process
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    codes.append(EXIT_PIPE)


def _output_is_broken() -> bool:
    """Whether it is standard output that broke, and no other pipe or socket."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (OSError, ValueError):
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
