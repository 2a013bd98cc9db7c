"""Checkpoints on the disk, complete or absent: a manifest with every file's size and checksum,
committed by one rename.

Layout of a run's checkpoints directory:

    step-00000100/                   committed: manifest.json has a checksum of every other file
    .step-00000150.1f3b09aa.partial/ being written by one group of workers, or left by a killed one;
                                     never read
    .step-00000050.damaged/          found damaged when a run resumed, and set aside; removed once
                                     the run is past it
    .fence                           which group of workers may commit (checkpoint/fence.py)
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scaling.checkpoint.fence import Fence
from scaling.checkpoint.manifest import MANIFEST, RANK_FILES, Manifest, read_manifest, sealed
from scaling.errors import CheckpointError
from scaling.runs.files import fsync, portable, remove

_NAME = re.compile(r"^step-(\d{8,})$")
_PARTIAL = re.compile(r"^\.step-\d{8,}(\.\w+)?\.partial$")
_DAMAGED = re.compile(r"^\.step-(\d{8,})(\.\w+)?\.damaged$")
FENCE = ".fence"
_READERS = 8
"""Number of files whose checksums are computed at a time, enough to hide the latency of a network
disk: assumption."""


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def partial_path(directory: Path, step: int, group: str = "") -> Path:
    """Directory in which a group of workers writes a checkpoint before it is committed."""
    return directory / f".{checkpoint_name(step)}{f'.{group}' if group else ''}.partial"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_file(path: Path) -> dict[str, Any]:
    """Force a file to the disk; returns its size and checksum."""
    fsync(path)
    return {"size_bytes": path.stat().st_size, "sha256": _sha256(path)}


def commit(directory: Path, manifest: Manifest, group: str | None = None) -> Path:
    """Write the manifest into the partial directory of its step, and rename that directory into
    place. Before the rename the checkpoint is absent, after it complete.

    group: the workers that wrote it; raises SupersededError unless they have the fence. A damaged
    checkpoint of the same step is removed first. Raises CheckpointError if a sound one of this
    step, or any of a later step, exists already.
    """
    partial, final = (
        partial_path(directory, manifest.step, group or ""),
        directory / checkpoint_name(manifest.step),
    )
    path = partial / MANIFEST
    path.write_text(
        json.dumps(sealed(portable(asdict(manifest))), indent=1, allow_nan=False) + "\n"
    )
    fsync(path)
    fsync(partial)
    # The fence is held, so no other group can take the run between the check and the rename.
    with Fence(directory / FENCE).passing(group) if group else contextlib.nullcontext():
        _make_way(directory, final, manifest.step)
        os.replace(partial, final)
        fsync(directory)  # the rename is on the disk only with its directory
    return final


def _make_way(directory: Path, final: Path, step: int) -> None:
    """Remove a damaged checkpoint of the same name. Raises CheckpointError for a sound one, or a
    newer one."""
    newest = newest_step(directory)
    # Verify only newer ones: normally there are none.
    if newest is not None and newest > step:
        newest = max(
            (found for found, path in committed(directory) if found > step and _is_sound(path)),
            default=None,
        )
    if newest is not None and newest > step:
        fix = "Two drivers must not share a run directory; nothing was overwritten."
        raise CheckpointError(
            f"{directory} holds step {newest} already, which is newer than this of step {step}",
            fix=fix,
        )
    if os.path.lexists(final):
        if _is_sound(final):
            raise CheckpointError(
                f"{final} exists already, and is sound",
                fix="two drivers must not share a run directory",
            )
        remove(final)


def _is_sound(path: Path) -> bool:
    try:
        verify(path)
    except CheckpointError:
        return False
    return True


def _problem(path: Path, name: str, expected: dict[str, Any]) -> str | None:
    """How a file of a checkpoint differs from its entry in the manifest; None where it does not."""
    file = path / name
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):
            return f"{file} is not a regular file"
        size = found.st_size
        if size != expected["size_bytes"]:
            return f"{file} has {size} bytes, not {expected['size_bytes']}"
        return (
            f"{file} is damaged: its SHA-256 differs from the manifest's"
            if _sha256(file) != expected["sha256"]
            else None
        )
    except FileNotFoundError:
        return f"{file} is missing"
    except OSError as error:
        return f"{file} cannot be read: {error.strerror or error}"


def verify(path: Path) -> Manifest:
    """Check every file of a checkpoint against its manifest. Raises CheckpointError where one
    differs or cannot be read."""
    manifest = read_manifest(path)
    try:
        names = os.listdir(path)
    except OSError as error:  # a failing disk, a stale handle of a network file system
        raise CheckpointError(f"{path} cannot be listed: {error.strerror or error}") from error
    foreign = sorted(set(fnmatch.filter(names, RANK_FILES)) - manifest.files.keys())
    if foreign:
        raise CheckpointError(f"{path / foreign[0]} is not named by the manifest")
    if (
        path.name != checkpoint_name(manifest.step)
        or manifest.state.get("step") != manifest.step
        or manifest.step < 0
    ):
        raise CheckpointError(f"{path} holds step {manifest.step} under another name")
    with ThreadPoolExecutor(max_workers=_READERS) as pool:
        for problem in pool.map(lambda item: _problem(path, *item), manifest.files.items()):
            if problem is not None:
                raise CheckpointError(problem)
    return manifest


def committed(directory: Path) -> list[tuple[int, Path]]:
    """(step, path) of every committed checkpoint, oldest first, none of them verified."""
    return [(step, directory / name) for step, name in _steps(directory)]


def has_step(directory: Path, step: int) -> bool:
    """Whether there is a committed checkpoint of this very step, verified or not."""
    return os.path.lexists(directory / checkpoint_name(step))


def newest_step(directory: Path) -> int | None:
    """The step of the newest committed checkpoint, verified or not; None where there is none."""
    return max((step for step, _ in _found(directory)), default=None)


def _steps(directory: Path, pattern: re.Pattern[str] = _NAME) -> list[tuple[int, str]]:
    """(step, name) of every checkpoint whose name matches, oldest first."""
    return sorted(_found(directory, pattern))


def _found(directory: Path, pattern: re.Pattern[str] = _NAME) -> Iterator[tuple[int, str]]:
    """The same in no order. Reads only names: a run may have 200 000 of them."""
    for name in _listed(directory):
        if match := pattern.match(name):
            yield int(match.group(1)), name


def _listed(directory: Path) -> Iterator[str]:
    """Names in a directory; none where the directory does not exist."""
    try:
        with os.scandir(directory) as entries:
            yield from (entry.name for entry in entries)
    except (FileNotFoundError, NotADirectoryError):
        return


def newest_valid(
    directory: Path,
    *,
    on_damaged: Callable[[Path, CheckpointError], None] = lambda path, error: None,
    check: Callable[[Manifest], None] = lambda manifest: None,
) -> tuple[Path, Manifest] | None:
    """The newest checkpoint whose files all verify, or None when there are no checkpoints.

    check: raises CheckpointError for a manifest that the caller rejects. Damaged checkpoints are
    reported to `on_damaged` and ignored. Raises CheckpointError when some exist but none is sound:
    to start again would silently lose the run.
    """
    steps, newest = _steps(directory), None
    for _, name in reversed(steps):
        path = directory / name
        try:
            _require_manifest(path)
            manifest = verify(path)
            check(manifest)
            return path, manifest
        except CheckpointError as error:
            # Only the text: the error itself would keep its frames, and their tensors, alive.
            newest = newest or error.what
            on_damaged(path, error)
    if steps:
        raise CheckpointError(
            f"none of the {len(steps)} checkpoints in {directory} is sound; the newest: {newest}",
            fix="restore one from a copy, or remove the checkpoints directory to start the run"
            " afresh",
        )
    return None


def _require_manifest(path: Path) -> None:
    """Raise CheckpointError where there is no manifest: one look, since many directories may have
    been left without one, and reading each takes ten times as long."""
    if not os.path.lexists(os.path.join(path, MANIFEST)):
        raise CheckpointError(f"{path / MANIFEST} cannot be read: there is no such file")


def prune(
    directory: Path,
    *,
    keep_last: int,
    keep_every_steps: int | None,
    keep_steps: Collection[int] = (),
    last_update: int | None = None,
    on_trouble: Callable[[Path, OSError], None] = lambda path, error: None,
) -> list[Path]:
    """Remove checkpoints that retention does not keep, and damaged ones that the run is past;
    returns the paths of the former.

    last_update: the newest step whose update was applied; the newest checkpoint up to there is kept
    too. What cannot be removed is reported to `on_trouble` and stays. A link is removed, never its
    target.
    """
    steps = _steps(directory)
    kept = {step for step, _ in steps[-keep_last:]} | set(keep_steps)
    if last_update is not None:
        # a row of skipped steps may lead nowhere, so its checkpoints replace none before it
        kept |= {max((step for step, _ in steps if step <= last_update), default=-1)}
    if keep_every_steps:
        kept |= {step for step, _ in steps if step % keep_every_steps == 0}
    gone = [directory / name for step, name in steps if step not in kept]
    for path in [*gone, *_damaged_up_to(directory, steps[-1][0] if steps else -1)]:
        _try_to_remove(path, on_trouble)
    return gone


def _try_to_remove(path: Path, on_trouble: Callable[[Path, OSError], None]) -> None:
    try:
        remove(path)
    except OSError as error:
        on_trouble(path, error)


def _damaged_up_to(directory: Path, step: int) -> list[Path]:
    return [directory / name for found, name in _steps(directory, _DAMAGED) if found <= step]


def set_aside(path: Path) -> None:
    """Rename a damaged checkpoint, so that it no longer counts as committed. A sound one must
    exist.

    An earlier one of the same name is removed, or left where that fails. Raises OSError.
    """
    aside = path.with_name(f".{path.name}.damaged")
    with contextlib.suppress(OSError):
        remove(aside)
    os.replace(
        path,
        path.with_name(f".{path.name}.{secrets.token_hex(4)}.damaged")
        if os.path.lexists(aside)
        else aside,
    )


def remove_partials(
    directory: Path, on_trouble: Callable[[Path, OSError], None] = lambda path, error: None
) -> None:
    """Remove what killed groups of workers left half-written. Only the driver that has the lock, or
    the group that has the fence, may call this.

    What cannot be removed is reported to `on_trouble`. It does no harm, since names of groups
    differ.
    """
    # the whole list first: what is removed meanwhile may make the directory skip a name
    for name in list(_listed(directory)):
        if _PARTIAL.match(name):
            _try_to_remove(directory / name, on_trouble)
