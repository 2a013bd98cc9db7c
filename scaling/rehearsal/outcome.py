"""What a drill did to a run and how the run came through it."""

from __future__ import annotations

from dataclasses import dataclass, field

from scaling.metrics import names
from scaling.metrics.record import Record

RESIZE = "resize"


@dataclass
class Kill:
    """What was done to the run. step: the last on record then. lost_s: without a new step; None
    where nobody missed it.

    A resize is no kill but a stop by SIGTERM, after which it is started with another number of
    workers.
    """

    kind: str
    step: int
    at_s: float
    world_size: int
    restarts: int
    lost_s: float | None = None


@dataclass
class Outcome:
    """pending: what the run has not recovered from yet. starts: of the driver; starts_since: what
    is pending.

    furthest, furthest_s: the last step on record, of all workers so far, and when it was first
    seen.
    """

    kills: list[Kill] = field(default_factory=list)
    resizes: list[Kill] = field(default_factory=list)
    pending: Kill | None = None
    starts: int = 0
    starts_since: int = 0
    furthest: int = 0
    furthest_s: float = 0.0

    def add(self, kill: Kill) -> None:
        (self.resizes if kill.kind == RESIZE else self.kills).append(kill)
        self.pending, self.starts_since = kill, 0

    def saw(self, record: Record, now_s: float) -> bool:
        """Take note of the newest record. Whether the run has recovered: it is of a new step, by
        other workers."""
        step, recovered = int(record[names.STEP]), False
        if step <= self.furthest:
            return False
        if self.pending and record[names.RUN_RESTARTS] > self.pending.restarts:
            self.pending.lost_s = round(now_s - self.furthest_s, 2)
            self.pending, recovered = None, True
        self.furthest, self.furthest_s = step, now_s
        return recovered


def kill_at(kind: str, record: Record, at_s: float) -> Kill:
    return Kill(
        kind,
        int(record[names.STEP]),
        at_s,
        int(record[names.RUN_WORLD_SIZE]),
        int(record[names.RUN_RESTARTS]),
    )
