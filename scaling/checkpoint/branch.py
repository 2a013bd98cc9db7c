"""A run that begins at a copy of another run's checkpoint: the steps up to there are the same, so
they are not repeated.

Up to that step the weights, moments and data position depend only on what both configurations have
in common. So the copy equals what the run would have reached by itself. It gets the run's own
identity.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

from scaling.checkpoint.manifest import Manifest
from scaling.checkpoint.store import (
    commit,
    committed,
    has_step,
    newest_step,
    partial_path,
    verify,
)
from scaling.config.run_config import RunConfig
from scaling.errors import CheckpointError
from scaling.metrics.record import copy_record
from scaling.runs.directory import RunDir
from scaling.runs.files import disk_error, remove


def take_over(trunk: RunDir, run_dir: RunDir, config: RunConfig, step: int) -> int | None:
    """Begin the run of `config` at the newest sound checkpoint of `trunk` up to `step`; returns its
    step.

    Returns None and changes nothing where there is no such checkpoint, or where the run has
    checkpoints of its own. Raises RunDirError.
    """
    if newest_step(run_dir.checkpoints) is not None:
        return None
    for at, path in reversed(committed(trunk.checkpoints)):
        if at > step:
            continue
        try:
            manifest = verify(path)
        except CheckpointError:
            continue
        wall_s = _copy_record(trunk, run_dir, at)
        run_dir.event("branched", step=at, trunk=trunk.path.name, wall_s=wall_s)
        _copy_checkpoint(path, run_dir, manifest, config)
        return at
    return None


def reached(trunk: RunDir, step: int) -> bool:
    """Whether the trunk has a checkpoint of exactly this step."""
    return has_step(trunk.checkpoints, step)


def _copy_record(trunk: RunDir, run_dir: RunDir, step: int) -> float:
    """Copy the records up to `step`; returns the seconds that they took."""
    return copy_record(trunk.metrics, run_dir.metrics, step).wall_s


def _copy_checkpoint(path: Path, run_dir: RunDir, manifest: Manifest, config: RunConfig) -> None:
    partial = partial_path(run_dir.checkpoints, manifest.step)
    try:
        remove(partial)
        partial.mkdir(parents=True)
        for name in manifest.files:
            _copy(path / name, partial / name)
    except OSError as error:
        raise disk_error("copy a checkpoint to", partial, error) from error
    commit(run_dir.checkpoints, replace(manifest, semantic_hash=config.semantic_hash))


def _copy(source: Path, target: Path) -> None:
    """Copy a file, as a hard link where the file system has them."""
    # A link is safe: files of a checkpoint are never changed, only removed.
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
