"""Notices that machines will be taken back: a checkpoint at once, another just before, and an end
where too few would stay."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from scaling.channel.base import Channel, Notice
from scaling.train.clock import Clock

POLL_S = 5.0
"""Between two looks, each a collective through Ray: as often as Ray Train's own watcher looks."""
_SAFETY_S = 5.0
"""Of the last checkpoint before the deadline, beside twice what a step and a write have taken at
most: assumption."""


class Preemption:
    """What is known of notices, the same on every rank.

    sizes: world sizes that the run may have. grace_s: from a notice without a deadline to the end
    of its machines. write_s: the longest a checkpoint has taken to be on the disk. on_event(kind,
    **fields) is told of "preemption_notice".
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
        self._saves_at_s = [0.0, deadline_s - margin_s]
        self._on_event(
            "preemption_notice",
            ranks=list(notice.ranks),
            left_s=round(deadline_s - time.time(), 1),
            ends_run=self.ends_run,
        )

    @property
    def save_wanted(self) -> bool:
        """Whether it is time for a checkpoint, by this rank's clock; each time is wanted once
        (`saved`)."""
        return bool(self._saves_at_s) and time.time() >= self._saves_at_s[0]

    def saved(self) -> None:
        now_s = time.time()
        self._saves_at_s = [at_s for at_s in self._saves_at_s if at_s > now_s]
