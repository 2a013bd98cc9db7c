"""When it is time for a checkpoint, by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean

from scaling.config.run_config import RunConfig
from scaling.planner.cost.failures import (
    checkpoint_interval_s,
    hours_between_failures,
    with_experience,
)
from scaling.planner.cost.money import CHECKPOINT_BYTES_PER_PARAM
from scaling.planner.run_plan import RunPlan
from scaling.runs.directory import RunDir
from scaling.runs.goodput import STOPPED, n_failures

_FIRST_BYTES_PER_S = 1e9
"""Speed of copying into the host's memory, used until a save has been measured: assumption."""


class Pace:
    """Checkpoints by the clock of the first rank, which the others follow. interval_s: from one
    checkpoint to the next.

    minutes: a fixed interval; None derives it from the measured cost of saves, which is estimated
    from the bytes that a rank saves until the first one. hours_between: mean time between failures.
    """

    def __init__(
        self,
        minutes: float | None,
        hours_between: float,
        own_bytes: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._minutes, self._hours_between, self._now = minutes, hours_between, now
        self._expected_s = own_bytes / _FIRST_BYTES_PER_S
        self._costs_s: list[float] = []
        self._writes_s: list[float] = []
        self._begun_s = now()

    @property
    def interval_s(self) -> float:
        if self._minutes is not None:
            return 60 * self._minutes
        cost_s = fmean(self._costs_s) if self._costs_s else self._expected_s
        return checkpoint_interval_s(cost_s, fmean(self._writes_s or [0.0]), self._hours_between)

    @property
    def wanted(self) -> bool:
        return self._now() - self._begun_s >= self.interval_s

    def saving(self) -> None:
        """Start the interval again: a snapshot is taken now."""
        self._begun_s = self._now()

    def measured(self, cost_s: float, write_s: float) -> None:
        """Take note of what a checkpoint cost training, and of the time until it was on the
        disk."""
        self._costs_s.append(cost_s)
        self._writes_s.append(write_s)


def pace_of(config: RunConfig, plan: RunPlan, run_dir: RunDir) -> Pace | None:
    """The clock of a run's checkpoints; None where they are not due by time."""
    checkpoint, cluster, layout = config.checkpoint, config.cluster, plan.layout
    if checkpoint.every_steps is not None or checkpoint.every == "end":
        return None
    expected_hours = hours_between_failures(cluster, layout.world_size)
    events, seconds = run_dir.read_events(), run_dir.seconds()
    hours = (sum(seconds.values()) - seconds[STOPPED]) / 3600
    hours_between = with_experience(expected_hours, hours=hours, n_failures=n_failures(events))
    own_bytes = CHECKPOINT_BYTES_PER_PARAM * plan.counts.n_params / layout.world_size
    return Pace(checkpoint.every_minutes, hours_between, own_bytes)
