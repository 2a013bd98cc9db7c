"""Checkpoints that are complete or absent: a manifest with every file's size and checksum, committed by one rename.

Layout of a run's checkpoints directory:

    step-00000100/          committed: manifest.json lists and vouches for every other file
    .step-00000150.partial/ being written, or left by a killed run; never read, removed by the next driver
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaling.errors import CheckpointError

FORMAT_VERSION = 1
_NAME = re.compile(r"^step-(\d{8,})$")
_PARTIAL = re.compile(r"^\.step-\d{8,}\.partial$")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is, and the size and SHA-256 of each of its files.

    state: the training state (step, tokens, data position) as plain JSON. layout: who wrote it, for the record
    only: it loads under any layout. corpus_fingerprint: of the data that the position points into.
    """

    semantic_hash: str
    corpus_fingerprint: str
    step: int
    state: dict[str, Any]
    layout: dict[str, Any]
    files: dict[str, dict[str, Any]]
    format_version: int = FORMAT_VERSION


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def partial_path(directory: Path, step: int) -> Path:
    """Where the files of a checkpoint are written before it is committed."""
    return directory / f".{checkpoint_name(step)}.partial"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def describe_file(path: Path) -> dict[str, Any]:
    """Size and checksum of a file that is first forced to disk."""
    _fsync(path)
    return {"size_bytes": path.stat().st_size, "sha256": _sha256(path)}


def sealed(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with a SHA-256 of their own under "sha256": a bit that falls over in the data position is a wrong run."""
    return fields | {"sha256": hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()}


def commit(directory: Path, manifest: Manifest) -> Path:
    """Write the manifest into the partial directory of its step and rename that into place: the checkpoint exists, or not.

    A checkpoint of the same step that was found damaged is moved away first. Raises CheckpointError if a sound
    one of this step stands already (a run never overwrites a newer state).
    """
    partial, final = partial_path(directory, manifest.step), directory / checkpoint_name(manifest.step)
    path = partial / MANIFEST
    path.write_text(json.dumps(sealed(asdict(manifest)), indent=1) + "\n")
    _fsync(path)
    _fsync(partial)
    if final.exists():
        try:
            verify(final)
        except CheckpointError:
            shutil.rmtree(final)
        else:
            raise CheckpointError(f"{final} exists already, and is sound", fix="two drivers must not share a run directory")
    os.replace(partial, final)
    _fsync(directory)
    return final


def _read_manifest(path: Path) -> Manifest:
    try:
        fields = json.loads((path / MANIFEST).read_text())
        if fields["format_version"] != FORMAT_VERSION:
            raise CheckpointError(f"{path} has format {fields['format_version']}; this version reads {FORMAT_VERSION}")
        seal = fields.pop("sha256")
        if sealed(fields)["sha256"] != seal:
            raise CheckpointError(f"{path / MANIFEST} is damaged: it differs from its own SHA-256")
        return Manifest(**fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be read: {error}") from error


def verify(path: Path) -> Manifest:
    """Check every file of a checkpoint against its manifest. Raises CheckpointError naming the first that differs."""
    manifest = _read_manifest(path)
    if path.name != checkpoint_name(manifest.step) or manifest.state.get("step") != manifest.step:
        raise CheckpointError(f"{path} holds step {manifest.step} under another name")
    for name, expected in manifest.files.items():
        file = path / name
        if Path(name).name != name:
            raise CheckpointError(f"{path / MANIFEST} names {name!r}, which is outside the checkpoint")
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        size = file.stat().st_size
        if size != expected["size_bytes"]:
            raise CheckpointError(f"{file} has {size} bytes, not {expected['size_bytes']}")
        if _sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} is damaged: its SHA-256 differs from the manifest's")
    return manifest


def committed(directory: Path) -> list[tuple[int, Path]]:
    """(step, path) of every committed checkpoint, oldest first; nothing of them is verified."""
    if not directory.is_dir():
        return []
    found = [(int(match.group(1)), path) for path in directory.iterdir() if (match := _NAME.match(path.name))]
    return sorted(found)


def newest_valid(
    directory: Path, *, on_damaged: Callable[[Path, CheckpointError], None] = lambda path, error: None
) -> tuple[Path, Manifest] | None:
    """The newest checkpoint whose files all verify, or None when there are none at all.

    Damaged ones are reported to `on_damaged` and passed over. Raises CheckpointError when some exist but none is sound:
    starting afresh would silently lose the run.
    """
    errors = []
    for _, path in reversed(committed(directory)):
        try:
            return path, verify(path)
        except CheckpointError as error:
            errors.append(error)
            on_damaged(path, error)
    if errors:
        raise CheckpointError(
            f"none of the {len(errors)} checkpoints in {directory} is sound; the newest: {errors[0].what}",
            fix="restore one from a copy, or remove the checkpoints directory to start the run afresh",
        )
    return None


def prune(directory: Path, *, keep_last: int, keep_every_steps: int | None, keep_steps: Collection[int] = ()) -> list[Path]:
    """Remove what retention does not keep; returns the paths that went."""
    steps = committed(directory)
    kept = {path for _, path in steps[-keep_last:]} | {path for step, path in steps if step in keep_steps}
    if keep_every_steps:
        kept |= {path for step, path in steps if step % keep_every_steps == 0}
    gone = [path for _, path in steps if path not in kept]
    for path in gone:
        shutil.rmtree(path)
    return gone


def remove_partials(directory: Path) -> None:
    """Remove what killed runs left half-written. Only the driver that holds the run's lock may call this."""
    if directory.is_dir():
        for path in directory.iterdir():
            if _PARTIAL.match(path.name):
                shutil.rmtree(path)
