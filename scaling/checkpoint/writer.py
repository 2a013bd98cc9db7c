"""Writing a checkpoint by all ranks together, while training continues."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from scaling.channel.messages import decode_error, encode_error
from scaling.checkpoint.fragments import Snapshot
from scaling.checkpoint.manifest import Manifest, rank_file
from scaling.checkpoint.state import TrainState
from scaling.checkpoint.store import commit, describe_file, partial_path, prune
from scaling.config.run_config import RunConfig
from scaling.errors import CheckpointError, ScalingError
from scaling.parallel.exchange import Group, gather_json
from scaling.parallel.grid import Ranks
from scaling.planner.layout import Layout
from scaling.runs.files import sync


@dataclass(frozen=True)
class Writer:
    """Writes and commits checkpoints of one run under one layout.

    group: gloo over all ranks, for this writer alone, since it runs beside training's own
    collectives. workers: the name of this group of workers in the fence. record: metrics.jsonl,
    which is on the disk before a checkpoint is committed. on_event(kind, **fields) receives
    "checkpoint_committed" and "not_removed", on the first rank.
    """

    directory: Path
    config: RunConfig
    layout: Layout
    corpus_fingerprint: str
    ranks: Ranks
    group: Group
    workers: str
    on_event: Callable[..., None]
    record: Path | None = None
    _left: set[Path] = field(default_factory=set)

    def write(self, snapshot: Snapshot, state: TrainState, *, stall_s: float) -> float:
        """Write and commit a checkpoint; returns the seconds that it took.

        A collective: where a rank fails, every rank raises its error, and no file of the checkpoint
        is left. stall_s: how long training waited for the snapshot, for the record.
        """
        begun_s = time.perf_counter()
        partial = partial_path(self.directory, state.step, self.workers)
        try:
            self._together(state, lambda: partial.mkdir(parents=True), by_first=True)
            written = self._together(state, lambda: self._write_own(partial, snapshot))
            files = {name: file for own in written for name, file in own.items()}
            self._together(state, lambda: self._commit(state, files), by_first=True)
        except ScalingError:
            if self.ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        write_s = time.perf_counter() - begun_s
        if self.ranks.is_first:
            size_bytes = sum(file["size_bytes"] for file in files.values())
            times = {"stall_s": round(stall_s, 4), "write_s": round(write_s, 4)}
            self.on_event("checkpoint_committed", step=state.step, size_bytes=size_bytes, **times)
            self._prune(state)
        return write_s

    def _prune(self, state: TrainState) -> None:
        """Remove old checkpoints. What cannot be removed is reported once, and harms no new one."""
        retention = self.config.checkpoint
        try:
            prune(
                self.directory,
                keep_last=retention.keep_last,
                keep_every_steps=retention.keep_every_steps,
                keep_steps=retention.keep_steps,
                last_update=state.step - state.skipped_in_a_row,
                on_trouble=self.not_removed,
            )
        except OSError as error:
            self.not_removed(self.directory, error)

    def not_removed(self, path: Path, error: OSError) -> None:
        """Report, once, that `path` cannot be removed."""
        if path not in self._left:
            self._left.add(path)
            self.on_event("not_removed", path=str(path), reason=error.strerror or str(error))

    def _together(
        self, state: TrainState, act: Callable[[], Any], *, by_first: bool = False
    ) -> list[Any]:
        """What `act` returned on each rank, as plain JSON; with `by_first` only the first rank
        acts."""
        # A rank with nothing to do takes part all the same: the gathering is a collective.
        idle = by_first and not self.ranks.is_first
        outcomes = gather_json({"value": None} if idle else _attempt(act), self.group)
        for rank, outcome in enumerate(outcomes):
            if "failure" in outcome:
                raise self._failure(state, rank, outcome["failure"])
            if "error" in outcome:
                raise decode_error(outcome["error"])
        return [outcome["value"] for outcome in outcomes]

    def _failure(self, state: TrainState, rank: int, reason: str) -> CheckpointError:
        who = f" by rank {rank}" if self.ranks.world_size > 1 else ""
        return CheckpointError(
            f"the checkpoint of step {state.step} cannot be written to {self.directory}{who}:"
            f" {reason}",
            fix="The previous checkpoint is untouched. Make room (or set run.root) and run the same"
            " command again.",
        )

    def _write_own(self, partial: Path, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
        path = partial / rank_file(self.ranks.rank)
        snapshot.write(path)
        return {path.name: describe_file(path)}

    def _commit(self, state: TrainState, files: dict[str, dict[str, Any]]) -> None:
        manifest = Manifest(
            semantic_hash=self.config.semantic_hash,
            corpus_fingerprint=self.corpus_fingerprint,
            step=state.step,
            state=state.to_dict(),
            layout=asdict(self.layout),
            files=files,
        )
        if self.record is not None:
            sync(self.record)
        commit(self.directory, manifest, self.workers)


def _attempt(act: Callable[[], Any]) -> dict[str, Any]:
    """What `act` returns, or why it failed, as JSON for the other ranks."""
    try:
        return {"value": act()}
    except ScalingError as error:
        return {"error": encode_error(error)}
    except (OSError, SafetensorError) as error:
        return {"failure": str(error)}
