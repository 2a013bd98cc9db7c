"""The run directory: where it is, who drives it, and its small files.

    NAME-ID8/  config.yaml plan.json provenance.json events.jsonl metrics.jsonl tokenizer.json
               checkpoints/ summary.json
               driver.lock, and while workers are at work progress.json

Every JSON file is complete or absent (`runs/files.py`). Nothing here needs torch, Ray or DeepSpeed.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from scaling.config.recorded import RECORDED
from scaling.errors import ConfigError, RunDirError, ScalingError
from scaling.runs.files import (
    append_line,
    disk_error,
    free_name,
    parse_json,
    read_object,
    remove,
    set_aside,
    split_lines,
    to_json,
    write_atomic,
    write_json,
)
from scaling.runs.goodput import Seconds, account
from scaling.runs.lock import DriverLock, Owner
from scaling.runs.provenance import describe_attempt
from scaling.runs.records import (
    event_problem,
    plan_problem,
    progress_problem,
    provenance_problem,
    summary_problem,
)

if TYPE_CHECKING:
    from scaling.config.run_config import RunConfig

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
CURVE = "loss.png"
"""The picture of the losses against tokens."""

State = Literal["new", "begun", "preempted", "failed", "stopped", "pruned", "finished"]

_RECORDS = {
    "plan.json": plan_problem,
    "provenance.json": provenance_problem,
    "summary.json": summary_problem,
    "progress.json": progress_problem,
}
"""Files that only tell of the run, and what is wrong with their content."""

_STATE_AFTER: dict[str, State] = {
    "start": "begun",
    "resume": "begun",
    "preempted": "preempted",
    "failed": "failed",
    "stopped": "stopped",
    "pruned": "pruned",
    "finished": "finished",
}


_CHECKS: dict[Path, Callable[[], None]] = {}
"""Directories whose lock this process holds, with what checks that it still does. A run has many
RunDirs, and one lock."""


class RunDir:
    """One run's directory at `path`, an absolute path. Creating the object touches no disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = _local_path(str(path))

    @classmethod
    def for_config(cls, config: RunConfig) -> Self:
        """<run.root>/<name>-<run_id>. Raises ConfigError for a run.root that is no place here."""
        return cls(_local_path(config.run.root) / f"{config.name}-{config.run_id}")

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    def create(self) -> Self:
        """Make the directory and its checkpoints/, where they are not there yet. Raises
        RunDirError."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error("create", self.path, error) from error
        return self

    # Who drives it.

    @property
    def _lock(self) -> DriverLock:
        return DriverLock(self.path / "driver.lock")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the run's one driver while the context lasts. Raises RunDirError when another is it.

        From then on this process writes nothing into the directory that another driver has taken
        over: SupersededError.
        """
        with self._lock.hold() as check:
            _CHECKS[self.path] = check
            try:
                yield
            finally:
                del _CHECKS[self.path]

    def require(self) -> None:
        """Raise SupersededError where this process held the run's lock and another has it by
        now."""
        if (check := _CHECKS.get(self.path)) is not None:
            check()

    def owner(self) -> Owner | None:
        """Who drives the run, or drove it when killed: host, pid, started. Never waits; None when
        nobody is named."""
        return self._lock.owner()

    def is_driven(self) -> bool | None:
        """Whether a living driver holds the lock; None where this cannot be told. Never waits."""
        return self._lock.is_held()

    # Its small files.

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml once; later, check that it describes the same mathematics. Raises
        RunDirError when not."""
        import yaml

        path = self.path / "config.yaml"
        if not path.exists():
            text = yaml.safe_dump(
                config.model_dump(mode="json"), sort_keys=False, allow_unicode=True
            )
            write_atomic(path, text.encode())
            return
        written = self.read_config()
        if written.semantic_hash != config.semantic_hash:
            changes = _differences(written.semantic(), config.semantic())
            raise RunDirError(
                f"{self.path} holds another run: {'; '.join(changes)}",
                str(path),
                "Give the new run its own directory with run.name=NAME, or repeat the values that this one began with.",
            )

    def read_config(self) -> RunConfig:
        """The configuration that the run began with. Raises RunDirError when config.yaml is absent
        or damaged."""
        # here: pydantic's models take half a second, and a list of runs needs none of them
        import yaml

        from scaling.config.run_config import RunConfig

        path = self.path / "config.yaml"
        try:
            return RunConfig.model_validate(
                yaml.safe_load(path.read_text(encoding="utf-8")), context=RECORDED
            )
        except OSError as error:
            raise disk_error("read", path, error) from error
        except (yaml.YAMLError, ValueError) as error:
            fix = "Restore the file, or begin anew with run.name=NAME."
            raise RunDirError(
                f"{path} is no configuration of this version: {error}", fix=fix
            ) from error

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    def write_tokenizer(self, content: bytes) -> None:
        """Keep the tokenizer beside the weights that were trained with it, so that they are of use
        without the corpus."""
        write_atomic(self.tokenizer, content)

    def write_corpus(self, facts: dict[str, Any]) -> None:
        """Note the counts of the corpus that is trained on (`Corpus.facts`)."""
        write_json(self.path / "corpus.json", facts)

    def corpus_changes(self, facts: dict[str, Any]) -> str:
        """What differs from the corpus that was noted; nothing where none was, for it is only a
        record."""
        noted = read_object(self.path / "corpus.json", strict=False) or {}
        changed = [key for key in noted if noted[key] != facts.get(key)]
        return "; ".join(
            f"{key} was {noted[key]} and is {facts.get(key, 'none')}" for key in changed
        )

    def write_plan(self, plan: dict[str, Any]) -> None:
        write_json(self.path / "plan.json", plan)

    def read_plan(self) -> dict[str, Any] | None:
        return read_object(self.path / "plan.json")

    def write_summary(self, summary: dict[str, Any]) -> None:
        self.require()
        write_json(self.path / "summary.json", summary)

    def read_summary(self) -> dict[str, Any] | None:
        return read_object(self.path / "summary.json")

    def write_provenance(self, devices: Sequence[str] | None = None) -> None:
        """Add this attempt to provenance.json: code, packages, host, command line. `devices` as the
        vendor names them."""
        path = self.path / "provenance.json"
        # `mend` has seen to what is damaged
        attempts = (read_object(path) or {"attempts": []})["attempts"]
        write_json(
            path,
            {"attempts": [*attempts, {"time": _iso(time.time()), **describe_attempt(devices)}]},
        )

    # Where its time goes.

    @property
    def _progress(self) -> Path:
        return self.path / "progress.json"

    def write_progress(self, workers: str, step: int, seconds: Seconds) -> None:
        """Keep the account of a group of workers that is at work. Raises RunDirError."""
        write_json(self._progress, {"workers": workers, "step": step, "seconds": seconds})

    def read_progress(self) -> dict[str, Any] | None:
        """The account of the group that is at work, or that was killed; None where there is
        none."""
        found = read_object(self._progress, strict=False)
        return None if found is None or progress_problem(found) else found

    def settle_account(self) -> None:
        """Note in events.jsonl what a group that has ended has spent its time on. Raises
        RunDirError."""
        self.require()
        progress = self.read_progress()
        if progress is not None:
            rounded = {
                activity: round(seconds, 3) for activity, seconds in progress["seconds"].items()
            }
            self.event(
                "account", step=progress["step"], workers=progress["workers"], seconds=rounded
            )
        with contextlib.suppress(OSError):
            remove(self._progress)

    def seconds(self) -> Seconds:
        """Where its time has gone up to the last sign of life (`scaling.runs.goodput`)."""
        return account(self.read_events(), self.read_progress())

    # Records that are damaged.

    def mend(self) -> list[str]:
        """Set aside what is damaged of the files that only tell of the run, so that it goes on;
        says what was.

        Of events.jsonl, the sound lines stay. Only for the driver that has the lock. Raises
        RunDirError.
        """
        told = [self._mend_events()]
        for name, problem in _RECORDS.items():
            path = self.path / name
            try:
                found = read_object(path)
                reason = None if found is None else problem(found)
            except RunDirError as error:
                reason = error.what
            told.append(None if reason is None else self._damaged(path, reason, set_aside(path)))
        return [text for text in told if text is not None]

    def _mend_events(self) -> str | None:
        path = self.events
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return self._damaged(path, f"it cannot be read: {error.strerror}", set_aside(path))
        lines, _ = split_lines(content)
        sound = [line for line in lines if _sound_event(line) is not None]
        if len(sound) == len(lines):
            return None
        aside = free_name(path)
        write_atomic(aside, content)
        write_atomic(path, b"".join(line + b"\n" for line in sound))
        return self._damaged(
            path, f"{len(lines) - len(sound)} of {len(lines)} lines are no events", aside
        )

    def _damaged(self, path: Path, reason: str, aside: Path) -> str:
        self.event("record_damaged", file=path.name, reason=reason, aside=aside.name)
        return f"{path.name} is damaged ({reason}); it is kept as {aside.name}, and the run goes on without it."

    # What happened to it.

    def event(
        self,
        kind: EventKind,
        *,
        step: int | None = None,
        world_size: int | None = None,
        **fields: Any,
    ) -> None:
        """Append to events.jsonl what happened, and when; it is on the disk when this returns.
        Raises RunDirError."""
        assert kind in get_args(EventKind), kind
        self.require()
        now_s = time.time()
        known = {"step": step, "world_size": world_size, **fields}
        entry = {"kind": kind, "time": _iso(now_s), "time_s": now_s} | {
            k: v for k, v in known.items() if v is not None
        }
        append_line(self.events, to_json(entry), sync=True)

    def failed(self, error: ScalingError, **fields: Any) -> None:
        """Note that an attempt has ended so. Raises SupersededError, where the run is another
        driver's and stands as it says."""
        self.settle_account()
        self.event("failed", reason=str(error), **fields)

    def read_events(self) -> list[dict[str, Any]]:
        """All events, in order; a torn last line is passed over. Raises RunDirError for a damaged
        one before it."""
        try:
            lines, _ = split_lines(self.events.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise disk_error("read", self.events, error) from error
        return [
            _parse_event(self.events, number, line) for number, line in enumerate(lines, start=1)
        ]

    def condemned(self) -> list[int]:
        """First sequences of the global batches that rollbacks have condemned, of which no
        checkpoint may tell yet."""
        return [
            event["sequences"][0] for event in self.read_events() if event["kind"] == "rolled_back"
        ]

    def state(self) -> State:
        """How the run stands by its last event; "begun" is running or was interrupted (see
        `is_driven`)."""
        return state_after(self.read_events())


def state_after(events: Iterable[Mapping[str, Any]]) -> State:
    """How a run stands to which these events happened."""
    states = [_STATE_AFTER[event["kind"]] for event in events if event["kind"] in _STATE_AFTER]
    return states[-1] if states else "new"


def _local_path(text: str) -> Path:
    """An absolute path with ~ expanded. Raises ConfigError for a URL."""
    if not text.strip():
        raise ConfigError("run.root is empty", "run.root", "Give a directory: run.root=runs.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise ConfigError(
            f"run.root={text} is a URL, and run directories are kept on local or shared file systems only",
            "run.root",
            "Give a directory that every node mounts, such as run.root=/shared/runs.",
        )
    return Path(text).expanduser().absolute()


def _iso(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")


def _parse_event(path: Path, number: int, line: bytes) -> dict[str, Any]:
    event = _sound_event(line)
    if event is None:
        fix = "A crash tears only the last line, so something else wrote here: restore the file, or delete that line."
        raise RunDirError(f"line {number} of {path} is damaged: it is no event", fix=fix)
    return event


def _sound_event(line: bytes) -> dict[str, Any] | None:
    try:
        event = parse_json(line)
    except ValueError:
        return None
    return None if event_problem(event) else event


def _flat(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, inner in tree.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, tree


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Each leaf that differs, as "optim.lr was 0.001 and is 0.002 now"."""
    old, new = dict(_flat(before)), dict(_flat(now))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return [f"{name} was {old.get(name)} and is {new.get(name)} now" for name in names]
