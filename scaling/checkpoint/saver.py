"""When a checkpoint is due, saving it while training continues, and restoring the newest sound
one."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from scaling.checkpoint.fence import Fence
from scaling.checkpoint.fragments import Snapshot
from scaling.checkpoint.manifest import Manifest
from scaling.checkpoint.pace import Pace
from scaling.checkpoint.state import TrainState, check_state
from scaling.checkpoint.store import FENCE, newest_valid, remove_partials, set_aside
from scaling.checkpoint.writer import Writer
from scaling.config.run_config import RunConfig
from scaling.errors import CheckpointError
from scaling.parallel.exchange import Group, broadcast_json
from scaling.parallel.grid import Ranks
from scaling.planner.layout import Layout

_NICENESS = 10
"""Niceness of the writing thread, where threads have their own (Linux): training goes first on a
core that both want."""


class Stateful(Protocol):
    """All that the saver knows of an engine: it gives a snapshot, and loads a directory."""

    def snapshot(self, reuse: Snapshot | None = None) -> Snapshot: ...

    def load(self, directory: Path) -> None: ...


class Checkpointer:
    """Saves and restores one run. Every method is collective over the ranks.

    group: gloo over all ranks, for the training thread; writing_group: another one, for the thread
    that writes; both None for a single rank. on_event(kind, **fields) receives
    "checkpoint_committed", "checkpoint_damaged" and "not_removed", on the first rank. record:
    metrics.jsonl, where there is one. pace: the first rank's clock, where checkpoints are due by
    time. content_fingerprint: what older checkpoints have of the same corpus, without counts.
    corpus_changes() describes what differs from the corpus that the run recorded.

    workers: the name of this group of workers; no older group can commit from now on. last_step:
    step of the newest checkpoint that this group has restored or saved. longest_write_s: the
    longest time until a checkpoint was on the disk.
    """

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        layout: Layout,
        *,
        corpus_fingerprint: str,
        ranks: Ranks,
        group: Group,
        writing_group: Group,
        on_event: Callable[..., None],
        pace: Pace | None = None,
        record: Path | None = None,
        content_fingerprint: str | None = None,
        corpus_changes: Callable[[], str] = str,
    ) -> None:
        self._directory = directory
        self._config = config
        self._fingerprint, self._content_fingerprint = corpus_fingerprint, content_fingerprint
        self._corpus_changes = corpus_changes
        self._ranks = ranks
        self._group = group
        self._on_event = on_event
        self._pace = pace
        self.workers = broadcast_json(self._take_over(), group)
        self._writer = Writer(
            directory,
            config,
            layout,
            corpus_fingerprint,
            ranks,
            writing_group,
            self.workers,
            on_event,
            record,
        )
        # Safe only now: with the fence taken, no older group can still commit one of them.
        if ranks.is_first:
            remove_partials(directory, self._writer.not_removed)
        self._memory: Snapshot | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.longest_write_s = 0.0
        self.last_step: int | None = None

    def _take_over(self) -> str:
        """Become the run's only group of workers; returns its name."""
        return Fence(self._directory / FENCE).take() if self._ranks.is_first else ""

    @property
    def timely(self) -> bool:
        """Whether this rank's clock says that it is time for one."""
        return self._pace is not None and self._pace.wanted

    def due(self, state: TrainState, *, timely: bool) -> bool:
        """Whether `state` is to be saved. timely: whether any rank's clock says so."""
        if state.step == (self.last_step or 0):
            return False
        every = self._config.checkpoint.every_steps
        return (
            timely
            or (every is not None and state.step % every == 0)
            or state.step in self._config.checkpoint.keep_steps
        )

    def save(self, engine: Stateful, state: TrainState) -> float:
        """Take a snapshot, and write it while training continues; returns the seconds for which
        training waited.

        Waits for the checkpoint before, if it is still being written. Raises CheckpointError if
        that one could not be written.
        """
        begun_s = time.perf_counter()
        self.wait()
        snapshot = self._memory = engine.snapshot(self._memory)
        stall_s = time.perf_counter() - begun_s
        if self._pace is not None:
            self._pace.saving()
        self._thread = threading.Thread(
            target=self._write, args=(snapshot, state, stall_s), name="checkpoint", daemon=True
        )
        self._thread.start()
        self.last_step = state.step
        return stall_s

    def _write(self, snapshot: Snapshot, state: TrainState, stall_s: float) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            write_s = self._writer.write(snapshot, state, stall_s=stall_s)
            self.longest_write_s = max(self.longest_write_s, write_s)
        except BaseException as error:
            self._error = error
            return
        if self._pace is not None:
            # On CPUs the thread takes its time from the same cores as training.
            on_cpu = self._config.cluster.device.kind == "cpu"
            self._pace.measured(stall_s + (time.thread_time() if on_cpu else 0.0), write_s)

    @property
    def failed(self) -> bool:
        """Whether this rank knows that the last checkpoint could not be written; `wait` raises the
        reason, on every rank."""
        return self._error is not None

    def wait(self) -> float:
        """Wait until the last checkpoint is committed; returns the seconds waited. Raises
        CheckpointError if it could not be written."""
        begun_s = time.perf_counter()
        self.close()
        error, self._error = self._error, None
        if error is not None:
            raise error
        return time.perf_counter() - begun_s

    def close(self) -> None:
        """Wait for the checkpoint that is being written, whether it succeeds or fails."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def restore(self, engine: Stateful) -> TrainState | None:
        """Load the newest sound checkpoint into `engine`; None when there is none. Raises
        CheckpointError."""
        found = broadcast_json(self._newest() if self._ranks.is_first else None, self._group)
        if found is None:
            return None
        path, manifest = Path(found["path"]), Manifest(**found["manifest"])
        self._check(path, manifest)  # on every rank, so that all raise the same error
        engine.load(path)
        self.last_step = manifest.step
        return TrainState.from_dict(manifest.state)

    def _newest(self) -> dict[str, Any] | None:
        """Path and manifest of the newest sound checkpoint. Damaged ones are set aside, once a
        sound one is known."""
        damaged: list[Path] = []

        def report(path: Path, error: CheckpointError) -> None:
            damaged.append(path)
            self._on_event("checkpoint_damaged", path=str(path), reason=error.what)

        found = newest_valid(
            self._directory, on_damaged=report, check=lambda manifest: check_state(manifest.state)
        )
        for path in damaged:
            try:
                set_aside(path)
            except OSError as error:
                self._writer.not_removed(path, error)
        return None if found is None else {"path": str(found[0]), "manifest": asdict(found[1])}

    def _check(self, path: Path, manifest: Manifest) -> None:
        if manifest.semantic_hash != self._config.semantic_hash:
            raise CheckpointError(
                f"{path} belongs to run {manifest.semantic_hash[:8]}, not to {self._config.run_id}",
                fix="give this run another run.root or run.name",
            )
        if manifest.corpus_fingerprint not in (self._fingerprint, self._content_fingerprint):
            changes = self._corpus_changes()
            raise CheckpointError(
                f"{path} was written on a corpus with fingerprint"
                f" {manifest.corpus_fingerprint[:12]}, and the shards now are"
                f" {self._fingerprint[:12]}{f' ({changes})' if changes else ''}:"
                " its data position would point at other text",
                fix="restore the shards it was trained on, or start another run with run.name=...",
            )
