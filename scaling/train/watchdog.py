"""The watchdog: a rank that makes no step within a bound reports it, writes its stacks and gives
its process up, so that the group is restarted."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from scaling.channel.base import Channel
from scaling.channel.failure import errors_dir
from scaling.channel.messages import Hung
from scaling.runs.goodput import PRODUCTIVE, RECOMPUTING
from scaling.train.control import PHASES, Clock

_PATIENCE = 3.0
"""Factor on the bound outside steps: a start, an evaluation, a checkpoint that is waited for.
Assumption."""
_SLOW_STEPS = 10.0
"""A step may take this many times the longest one so far, whatever the bound: a run of long steps
does not hang. Assumption."""
_GRACE_S = 3.0
"""Time for the other ranks' reports, before the end of this process ends them too. Assumption."""
_WAITING_IN = ("torch/distributed", "torch/autograd")
"""Paths in the stack of a rank that waits for others: collectives, and a backward that overlaps
with them."""


def limit_s(clock: Clock, bound_s: float) -> float:
    """Longest time in one phase, for a bound on the time without a finished step."""
    if clock.activity in (PRODUCTIVE, RECOMPUTING):
        return max(bound_s, _SLOW_STEPS * clock.longest_step_s)
    return _PATIENCE * bound_s


class Watchdog:
    """A thread of each rank, which watches the thread that makes it. bound_s: longest time without
    a finished step."""

    def __init__(
        self, clock: Clock, channel: Channel, run_dir: Path | str, rank: int, bound_s: float
    ) -> None:
        self._clock, self._channel, self._run_dir, self._rank, self._bound_s = (
            clock,
            channel,
            run_dir,
            rank,
            bound_s,
        )
        self._watched = threading.get_ident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(min(1.0, self._bound_s / 10)):
            still_s = self._clock.still_s()
            if still_s > limit_s(self._clock, self._bound_s):
                self._give_up(still_s)
                return

    def _give_up(self, still_s: float) -> None:
        stacks = errors_dir(self._run_dir) / f"hang-rank-{self._rank:05d}.txt"
        with stacks.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self._channel.send(self._report(still_s, stacks))
        time.sleep(_GRACE_S)
        self._channel.abandon()

    def _report(self, still_s: float, stacks: Path) -> Hung:
        frames = _frames(sys._current_frames().get(self._watched))
        waiting = any(path in name for name, _ in frames[:8] for path in _WAITING_IN)
        clock = self._clock
        return Hung(
            rank=self._rank,
            step=clock.step,
            phase=PHASES.index(clock.phase),
            doing=clock.phase,
            still_s=round(still_s, 1),
            where=_own(frames),
            waiting=waiting,
            stacks=str(stacks),
        )


def _frames(frame: FrameType | None) -> list[tuple[str, int]]:
    """(file, line), the innermost first."""
    found = []
    while frame is not None:
        found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return found


def _own(frames: list[tuple[str, int]]) -> str:
    """File and line of the innermost frame in this package, or of the innermost of all."""
    root = str(Path(__file__).parent.parent.parent)
    name, line = next(
        ((name, line) for name, line in frames if "/scaling/" in name),
        frames[0] if frames else ("unknown", 0),
    )
    return f"{name.removeprefix(root).lstrip('/')}:{line}"
