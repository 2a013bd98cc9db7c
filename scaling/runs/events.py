"""The events of a run: what happened to it, one line each in events.jsonl, and how it stands by
them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from scaling.errors import RunDirError
from scaling.runs.files import (
    append_line,
    disk_error,
    free_name,
    parse_json,
    set_aside,
    split_lines,
    to_json,
    write_atomic,
)
from scaling.runs.records import event_problem

EventKind = Literal[
    "start",
    "resume",
    "preempted",
    "failed",
    "finished",
    "checkpoint_committed",
    "checkpoint_damaged",
    "shard_skipped",
    "first_step",
    "branched",
    "stopped",
    "pruned",
    "account",
    "step_skipped",
    "rolled_back",
    "worker_failed",
    "data_stalled",
    "preemption_notice",
    "not_removed",
    "record_gap",
    "record_damaged",
]
State = Literal["new", "begun", "preempted", "failed", "stopped", "pruned", "finished"]
_STATE_AFTER: dict[str, State] = {
    "start": "begun",
    "resume": "begun",
    "preempted": "preempted",
    "failed": "failed",
    "stopped": "stopped",
    "pruned": "pruned",
    "finished": "finished",
}


def state_after(events: Iterable[Mapping[str, Any]]) -> State:
    """State of a run to which these events happened."""
    states = [_STATE_AFTER[event["kind"]] for event in events if event["kind"] in _STATE_AFTER]
    return states[-1] if states else "new"


def iso_time(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Damage:
    """A file of which something is damaged: why, and under which name it is kept."""

    reason: str
    aside: Path


class EventLog:
    """events.jsonl at `path`, absent before the first event."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, kind: EventKind, **fields: Any) -> None:
        """Add an event of now; fields that are None are left out. It is on the disk when this
        returns. Raises RunDirError."""
        assert kind in get_args(EventKind), kind
        now_s = time.time()
        known = {key: value for key, value in fields.items() if value is not None}
        entry = {"kind": kind, "time": iso_time(now_s), "time_s": now_s} | known
        append_line(self.path, to_json(entry), sync=True)

    def read(self) -> list[dict[str, Any]]:
        """All events, in order; a torn last line is passed over. Raises RunDirError for a damaged
        one before it."""
        try:
            lines, _ = split_lines(self.path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise disk_error("read", self.path, error) from error
        return [self._parsed(number, line) for number, line in enumerate(lines, start=1)]

    def mend(self) -> Damage | None:
        """Keep the sound lines alone, and the file as it was under another name. None where all
        are sound."""
        try:
            content = self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return Damage(f"it cannot be read: {error.strerror}", set_aside(self.path))
        lines, _ = split_lines(content)
        sound = [line for line in lines if _sound_event(line) is not None]
        if len(sound) == len(lines):
            return None
        # The copy first: a crash between the two writes must not lose the damaged lines.
        aside = free_name(self.path)
        write_atomic(aside, content)
        write_atomic(self.path, b"".join(line + b"\n" for line in sound))
        return Damage(f"{len(lines) - len(sound)} of {len(lines)} lines are no events", aside)

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        event = _sound_event(line)
        if event is None:
            raise RunDirError(
                f"line {number} of {self.path} is damaged: it is no event",
                fix="A crash tears only the last line, so something else wrote here: "
                "restore the file, or delete that line.",
            )
        return event


def _sound_event(line: bytes) -> dict[str, Any] | None:
    try:
        event = parse_json(line)
    except ValueError:
        return None
    return None if event_problem(event) else event
