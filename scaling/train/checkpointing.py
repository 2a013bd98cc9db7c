"""When a checkpoint is due, and how the ranks write one together."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from scaling.checkpoint import Manifest, commit, describe_file, newest_valid, partial_path, prune
from scaling.config import RunConfig
from scaling.engine.base import Engine
from scaling.errors import CheckpointError
from scaling.parallel.grid import Ranks
from scaling.plan.degrees import Layout
from scaling.train.state import TrainState


class Checkpointer:
    """Saves and restores one run. `group`: gloo over all ranks, or None for a single one.

    on_event(kind, **fields) is told of "checkpoint_committed" and "checkpoint_damaged", on the first rank.
    """

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        layout: Layout,
        *,
        corpus_fingerprint: str,
        ranks: Ranks,
        group: dist.ProcessGroup | None,
        on_event: Callable[..., None],
    ) -> None:
        self._directory = directory
        self._config = config
        self._layout = layout
        self._fingerprint = corpus_fingerprint
        self._ranks = ranks
        self._group = group
        self._on_event = on_event
        self.last_step = 0

    def due(self, state: TrainState) -> bool:
        every = self._config.checkpoint.every_steps
        return (every is not None and state.step % every == 0) or state.step in self._config.checkpoint.keep_steps

    def save(self, engine: Engine, state: TrainState) -> float:
        """Write and commit a checkpoint of `state`; returns the seconds it took. Raises CheckpointError."""
        begun_s = time.perf_counter()
        partial = partial_path(self._directory, state.step)
        try:
            if self._ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self._barrier()
            path = partial / f"rank-{self._ranks.rank:05d}.safetensors"
            engine.snapshot().write(path)
            own = {path.name: describe_file(path)}
            files = self._gather(own)
            if self._ranks.is_first:
                self._commit(state, files)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {state.step} cannot be written to {self._directory}: {error}",
                fix="The previous checkpoint is untouched. Make room (or set run.root) and run the same command again.",
            ) from error
        self._barrier()
        self.last_step = state.step
        return time.perf_counter() - begun_s

    def _commit(self, state: TrainState, files: dict[str, dict[str, Any]]) -> None:
        manifest = Manifest(
            semantic_hash=self._config.semantic_hash,
            corpus_fingerprint=self._fingerprint,
            step=state.step,
            state=state.to_dict(),
            layout=asdict(self._layout),
            files=files,
        )
        commit(self._directory, manifest)
        retention = self._config.checkpoint
        prune(
            self._directory, keep_last=retention.keep_last, keep_every_steps=retention.keep_every_steps,
            keep_steps=retention.keep_steps,
        )  # fmt: skip
        self._on_event("checkpoint_committed", step=state.step)

    def restore(self, engine: Engine) -> TrainState | None:
        """Load the newest sound checkpoint into `engine`; None when there is none. Raises CheckpointError."""
        found: list[Any] = [None]
        if self._ranks.is_first:
            found = [newest_valid(self._directory, on_damaged=self._damaged)]
        if self._group is not None:
            dist.broadcast_object_list(found, src=0, group=self._group)
        if found[0] is None:
            return None
        path, manifest = found[0]
        self._check(path, manifest)
        engine.load(path)
        self.last_step = manifest.step
        return TrainState(**manifest.state)

    def _damaged(self, path: Path, error: CheckpointError) -> None:
        self._on_event("checkpoint_damaged", path=str(path), reason=error.what)

    def _check(self, path: Path, manifest: Manifest) -> None:
        if manifest.semantic_hash != self._config.semantic_hash:
            raise CheckpointError(
                f"{path} belongs to run {manifest.semantic_hash[:8]}, not to {self._config.run_id}",
                fix="give this run another run.root or run.name",
            )
        if manifest.corpus_fingerprint != self._fingerprint:
            raise CheckpointError(
                f"{path} was written on a corpus with fingerprint {manifest.corpus_fingerprint[:12]}, and the shards now are "
                f"{self._fingerprint[:12]}: its data position would point at other text",
                fix="restore the shards it was trained on, or start another run with run.name=...",
            )

    def _barrier(self) -> None:
        if self._group is not None:
            dist.barrier(group=self._group)

    def _gather(self, own: dict[str, Any]) -> dict[str, Any]:
        """The union of every rank's dict, on every rank."""
        if self._group is None:
            return own
        parts: list[Any] = [None] * self._ranks.world_size
        dist.all_gather_object(parts, own, group=self._group)
        return {name: value for part in parts for name, value in part.items()}
