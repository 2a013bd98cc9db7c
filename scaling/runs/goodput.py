"""Where the time of a run went, every second of it, out of its events; goodput is the share that
steps which count took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

PRODUCTIVE: Final = "productive"
RECOMPUTING: Final = "recomputing"
CHECKPOINTING: Final = "checkpointing"
EVALUATING: Final = "evaluating"
STARTING: Final = "starting"
RESTARTING: Final = "restarting"
STOPPED: Final = "stopped"

MEANING: Final = {
    PRODUCTIVE: "steps that count",
    RECOMPUTING: "steps done before, and done again since they were lost",
    CHECKPOINTING: "training waits for a snapshot, or for a checkpoint to be on the disk",
    EVALUATING: "held-out text, the sample, the summary",
    STARTING: "from the first command to the first step",
    RESTARTING: "from a later command, or from the last sign of life of the workers before, "
    "to the next step",
    STOPPED: "no driver was there",
}
"""Every moment since the first command is in one of them."""

Seconds = dict[str, float]


class _Timeline:
    """Adds up what is known of the time, in its order.

    until_s: the moment up to which it is accounted for. n_groups: of workers that have begun.
    """

    def __init__(self) -> None:
        self.seconds: Seconds = dict.fromkeys(MEANING, 0.0)
        self.until_s: float | None = None
        self.n_groups = 0

    def up_to(self, time_s: float, activity: str) -> None:
        """All that is not accounted for before `time_s` was `activity`."""
        if self.until_s is not None and time_s > self.until_s:
            self.seconds[activity] += time_s - self.until_s
        self.until_s = time_s if self.until_s is None else max(time_s, self.until_s)

    def command(self, time_s: float | None) -> None:
        """A driver was started at `time_s`; before, there was none."""
        if time_s is not None:
            self.up_to(time_s, STOPPED)

    def spent(self, begun_s: float, seconds: Mapping[str, float]) -> None:
        """A group of workers began at `begun_s` and kept count of its seconds from there."""
        for activity in MEANING:
            self.seconds[activity] += seconds.get(activity, 0.0)
        self.until_s = max(self.until_s or begun_s, begun_s + sum(seconds.values()))


def account(
    events: Iterable[Mapping[str, Any]], progress: Mapping[str, Any] | None = None
) -> Seconds:
    """Seconds of a run by what they went to, from the first command to the last event or sign of
    life.

    progress: of the group of workers that has not ended (`RunDir.read_progress`). Ends that no
    event tells, as a kill's, are known to the last progress before them: what is between that and
    the next start counts as restarting or stopped.
    """
    timeline, begun_s = _Timeline(), dict[str, float]()
    for event in events:
        kind = event["kind"]
        if kind in ("start", "resume"):
            timeline.command(event.get("command_s"))
            timeline.up_to(event["time_s"], RESTARTING if timeline.n_groups else STARTING)
            timeline.n_groups += 1
            begun_s[event.get("workers", "")] = event["time_s"]
        elif kind == "account" and event["workers"] in begun_s:
            timeline.spent(begun_s.pop(event["workers"]), event["seconds"])
        elif kind in ("preempted", "stopped", "failed"):
            timeline.command(event.get("command_s"))
            timeline.up_to(event["time_s"], RESTARTING)
        elif kind == "finished":
            timeline.up_to(event["time_s"], EVALUATING)
    if progress is not None and progress["workers"] in begun_s:
        timeline.spent(begun_s.pop(progress["workers"]), progress["seconds"])
    return timeline.seconds


def goodput(seconds: Mapping[str, float]) -> float | None:
    """Share of the time for which somebody ran the run; None before there is any."""
    total = sum(seconds.values()) - seconds[STOPPED]
    return seconds[PRODUCTIVE] / total if total > 0 else None


def n_failures(events: Iterable[Mapping[str, Any]]) -> int:
    """Groups of workers that were followed by another without having been asked to stop."""
    n_failed, running = 0, False
    for event in events:
        if event["kind"] in ("start", "resume"):
            n_failed, running = n_failed + running, True
        elif event["kind"] in ("preempted", "stopped"):
            running = False
    return n_failed


def reached_step(events: Iterable[Mapping[str, Any]]) -> int:
    """The last step that any event tells of: what is trained up to there again has been trained
    before."""
    return max((event.get("step") or 0 for event in events), default=0)
