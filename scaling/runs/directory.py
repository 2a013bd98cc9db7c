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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from scaling.errors import ConfigError, RunDirError, ScalingError
from scaling.runs.config_file import read_config, write_config
from scaling.runs.events import Damage, EventKind, EventLog, State, iso_time, state_after
from scaling.runs.files import disk_error, read_object, remove, set_aside, write_atomic, write_json
from scaling.runs.goodput import Seconds, account
from scaling.runs.lock import DriverLock, Owner
from scaling.runs.provenance import describe_attempt
from scaling.runs.records import (
    plan_problem,
    progress_problem,
    provenance_problem,
    summary_problem,
)

if TYPE_CHECKING:
    from scaling.config.run_config import RunConfig

CURVE = "loss.png"
"""The picture of the losses against tokens."""

_RECORDS = {
    "plan.json": plan_problem,
    "provenance.json": provenance_problem,
    "summary.json": summary_problem,
    "progress.json": progress_problem,
}
"""Files that only describe the run, and what is wrong with their content."""

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
        write_config(self.path / "config.yaml", config)

    def read_config(self) -> RunConfig:
        """The configuration that the run began with. Raises RunDirError when config.yaml is absent
        or damaged."""
        return read_config(self.path / "config.yaml")

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
            {"attempts": [*attempts, {"time": iso_time(time.time()), **describe_attempt(devices)}]},
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
        # A file that stays is settled again under the same workers, and counted once.
        with contextlib.suppress(OSError):
            remove(self._progress)

    def seconds(self) -> Seconds:
        """Where its time has gone up to the last sign of life (`scaling.runs.goodput`)."""
        return account(self.read_events(), self.read_progress())

    # Records that are damaged.

    def mend(self) -> list[str]:
        """Set aside what is damaged of the files that only describe the run, so that it continues.
        Returns a line for each.

        The sound lines of events.jsonl stay. Only for the driver that has the lock. Raises
        RunDirError.
        """
        # The events first: every damage is itself an event, and is appended to a sound file.
        found = [self._reported(self.events, self._log.mend())]
        found += [self._reported(self.path / name, self._mended(name)) for name in _RECORDS]
        return [text for text in found if text is not None]

    def _mended(self, name: str) -> Damage | None:
        path = self.path / name
        try:
            content = read_object(path)
            reason = None if content is None else _RECORDS[name](content)
        except RunDirError as error:
            reason = error.what
        return None if reason is None else Damage(reason, set_aside(path))

    def _reported(self, path: Path, damage: Damage | None) -> str | None:
        if damage is None:
            return None
        reason, aside = damage.reason, damage.aside.name
        self.event("record_damaged", file=path.name, reason=reason, aside=aside)
        return (
            f"{path.name} is damaged ({reason}); it is kept as {aside}, and the run continues "
            "without it."
        )

    # What happened to it.

    @property
    def _log(self) -> EventLog:
        return EventLog(self.events)

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
        self.require()
        self._log.append(kind, step=step, world_size=world_size, **fields)

    def failed(self, error: ScalingError, **fields: Any) -> None:
        """Note that an attempt has ended so. Raises SupersededError, where the run is another
        driver's and stands as it says."""
        self.settle_account()
        self.event("failed", reason=str(error), **fields)

    def read_events(self) -> list[dict[str, Any]]:
        """All events, in order; a torn last line is passed over. Raises RunDirError for a damaged
        one before it."""
        return self._log.read()

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


def _local_path(text: str) -> Path:
    """An absolute path with ~ expanded. Raises ConfigError for a URL."""
    if not text.strip():
        raise ConfigError("run.root is empty", "run.root", "Give a directory: run.root=runs.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise ConfigError(
            f"run.root={text} is a URL, and run directories are kept on local or shared file "
            "systems only",
            "run.root",
            "Give a directory that every node mounts, such as run.root=/shared/runs.",
        )
    return Path(text).expanduser().absolute()
