"""What the training loop asks before each step: whether to stop, whether to save, and what the time
is spent on.

Every rank gets the same answer at the same step: what a single rank sees (a wish to stop, a failed
write, a clock) goes through one collective.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from scaling.channel.base import Channel, Notice
from scaling.checkpoint.saver import Checkpointer
from scaling.checkpoint.state import TrainState
from scaling.parallel.exchange import broadcast_json
from scaling.runs.goodput import (
    CHECKPOINTING,
    MEANING,
    PRODUCTIVE,
    RECOMPUTING,
    STARTING,
    Seconds,
)

STARTED, AGREEING, READING, COMPUTING, RECORDING, EVALUATED, SAVING = PHASES = (
    "starting",
    "waiting for the other ranks to agree on",
    "reading the batch of",
    "computing",
    "recording",
    "evaluating after",
    "saving a checkpoint after",
)
"""Phases of a step, in their order: a rank that is in an earlier one than the others keeps them
waiting."""

POLL_S = 5.0
"""Interval of requests for notices, each a collective through Ray; Ray Train's own watcher has the
same."""
_SAFETY_S = 5.0
"""Margin of the last checkpoint before the deadline, added to twice the longest step and write:
assumption."""


class Clock:
    """What a rank is doing, and since when: for the account of its time, and for the watchdog.

    It is always in exactly one activity (`scaling.runs.goodput`): it begins with starting, and ends
    with the process. step, phase: where the rank is. longest_step_s: the longest step so far. One
    thread writes, others read.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self.step, self.phase, self.longest_step_s = 0, STARTED, 0.0
        self._moved_s = now()
        self.begin()

    def at(self, phase: str, step: int) -> None:
        """The rank enters `phase` of the step that follows `step`."""
        self.step, self.phase, self._moved_s = step, phase, self._now()

    def stepped(self, step_time_s: float) -> None:
        self.longest_step_s = max(self.longest_step_s, step_time_s)

    def still_s(self) -> float:
        """Seconds since the rank last entered a phase."""
        return self._now() - self._moved_s

    def begin(self, activity: str = STARTING) -> None:
        """Set every count to zero, and count from now on."""
        with self._lock:
            self._seconds: Seconds = dict.fromkeys(MEANING, 0.0)
            self.activity, self._since_s = activity, self._now()

    def enter(self, activity: str) -> None:
        """Count the time from now on as `activity`."""
        with self._lock:
            now_s = self._now()
            self._seconds[self.activity] += now_s - self._since_s
            self.activity, self._since_s = activity, now_s

    @contextlib.contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Count the time in this context as `activity`, and then go back to the one before."""
        before = self.activity
        self.enter(activity)
        try:
            yield
        finally:
            self.enter(before)

    def seconds(self) -> Seconds:
        """Seconds by activity, the present one included; their sum is the time since `begin`."""
        with self._lock:
            running = self._seconds[self.activity] + self._now() - self._since_s
            return self._seconds | {self.activity: running}


class Agreement:
    """One all-reduce of a few numbers. group: gloo over all ranks, or None for a single rank."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group

    def any(self, *seen: bool) -> Sequence[bool]:
        """Answer each question with yes where any rank answers yes. A collective: all ranks ask the
        same questions in the same order."""
        if self._group is None:
            return seen
        votes = torch.tensor([float(vote) for vote in seen])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        return [bool(vote) for vote in votes.tolist()]

    def of_first(self, number: int) -> int:
        """The first rank's number. A collective."""
        return int(broadcast_json(number, self._group))


class Preemption:
    """Notices that machines will be taken back, as all ranks know them: a checkpoint at once, one
    more just before the deadline, and an end where too few ranks would stay.

    sizes: world sizes that the run may have. grace_s: from a notice without a deadline to the end
    of its machines. write_s: the longest time that a checkpoint took to reach the disk.
    on_event(kind, **fields) receives "preemption_notice".
    """

    def __init__(
        self,
        channel: Channel,
        clock: Clock,
        *,
        world_size: int,
        sizes: Sequence[int],
        grace_s: float,
        write_s: Callable[[], float],
        on_event: Callable[..., None],
    ) -> None:
        self._channel, self._clock = channel, clock
        self._world_size, self._sizes, self._grace_s = world_size, sizes, grace_s
        self._write_s, self._on_event = write_s, on_event
        self._looked_s = 0.0
        self._notice: Notice | None = None
        self._saves_at_s: list[float] = []
        self.ends_run = False

    @property
    def look_wanted(self) -> bool:
        """Whether it is time to look, by this rank's clock."""
        return self._channel.watches_machines and time.monotonic() - self._looked_s >= POLL_S

    def look(self) -> None:
        """Ask for notices: a collective over all ranks."""
        self._looked_s = time.monotonic()
        notice = self._channel.notice()
        if notice is None or notice == self._notice:
            return
        self._notice = notice
        deadline_s = (
            notice.deadline_s if notice.deadline_s is not None else time.time() + self._grace_s
        )
        staying = self._world_size - len(notice.ranks)
        self.ends_run = not any(size <= staying for size in self._sizes)
        margin_s = 2 * (self._write_s() + self._clock.longest_step_s) + _SAFETY_S
        self._saves_at_s = [0.0, deadline_s - margin_s]  # at once, and once more at the end
        self._on_event(
            "preemption_notice",
            ranks=list(notice.ranks),
            left_s=round(deadline_s - time.time(), 1),
            ends_run=self.ends_run,
        )

    @property
    def save_wanted(self) -> bool:
        """Whether it is time for a checkpoint, by this rank's clock; `saved` ends each wish."""
        return bool(self._saves_at_s) and time.time() >= self._saves_at_s[0]

    def saved(self) -> None:
        now_s = time.time()
        self._saves_at_s = [at_s for at_s in self._saves_at_s if at_s > now_s]


@dataclass(frozen=True)
class Decision:
    """What all ranks do before the next step."""

    stop: bool
    save: bool


@dataclass
class Timing:
    """step_time_s: seconds from the request for a batch to the end of the update, once known."""

    step_time_s: float = 0.0


@dataclass(frozen=True)
class Control:
    """The one object that the loop asks. stop_requested: what this rank knows of the wish to
    stop."""

    clock: Clock
    agreement: Agreement
    preemption: Preemption
    checkpoints: Checkpointer
    stop_requested: Callable[[], bool]

    def decide(self, state: TrainState) -> Decision:
        """The one collective of a step. Raises CheckpointError, on every rank, at the step after a
        checkpoint could not be written."""
        self.clock.at(AGREEING, state.step)
        stop, failed, timely, look = self.agreement.any(
            self.stop_requested(),
            self.checkpoints.failed,
            self.checkpoints.timely or self.preemption.save_wanted,
            self.preemption.look_wanted,
        )
        if failed:
            self.checkpoints.wait()
        if look:
            self.preemption.look()
        if stop or self.preemption.ends_run:
            return Decision(stop=True, save=False)
        return Decision(stop=False, save=self.checkpoints.due(state, timely=timely))

    @contextlib.contextmanager
    def step(self, state: TrainState, *, again: bool) -> Iterator[Timing]:
        """Time the step that follows `state`. again: it was done before, and lost."""
        self.clock.enter(RECOMPUTING if again else PRODUCTIVE)
        self.clock.at(READING, state.step)
        begun_s, timing = time.perf_counter(), Timing()
        yield timing
        # Not in a `finally`: a step that raises keeps its phase, which the report names.
        timing.step_time_s = time.perf_counter() - begun_s
        self.clock.stepped(timing.step_time_s)
        self.clock.at(RECORDING, state.step + 1)

    @contextlib.contextmanager
    def saving(self, state: TrainState) -> Iterator[None]:
        """Training waits for a snapshot of `state`."""
        self.clock.at(SAVING, state.step)
        with self.clock.doing(CHECKPOINTING):
            yield
        self.preemption.saved()

    def end(self) -> None:
        """No step follows: training waits for its last checkpoint."""
        self.clock.enter(CHECKPOINTING)

    @property
    def reason(self) -> str | None:
        """Why the ranks themselves ended the run before its last step; None where they did not."""
        return "the notice that machines are taken back" if self.preemption.ends_run else None
