"""The manifest of a checkpoint; whatever is wrong with one is reported as a CheckpointError."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from scaling.errors import CheckpointError
from scaling.runs.files import WORDS, parse_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
RANK_FILES = "rank-*"
"""Pattern of the names of all ranks' files, whatever their kind."""


def rank_file(rank: int) -> str:
    """Name of the file that a rank writes."""
    return f"rank-{rank:05d}.safetensors"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is, and the size and SHA-256 of each of its files.

    state: the training state (step, tokens, data position) as plain JSON. layout: the one that
    wrote it, for the record only, since it loads under any layout. corpus_fingerprint: identifies
    the data that the position points into.
    """

    semantic_hash: str
    corpus_fingerprint: str
    step: int
    state: dict[str, Any]
    layout: dict[str, Any]
    files: dict[str, dict[str, Any]]
    format_version: int = FORMAT_VERSION


_TYPES = {name: get_origin(hint) or hint for name, hint in get_type_hints(Manifest).items()}
"""Type of each field of a manifest, as JSON has it."""


def sealed(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with their own SHA-256 under "sha256": a flipped bit in the data position would
    train on other text."""
    return fields | {
        "sha256": hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    }


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint at `path`. Raises CheckpointError for a file that is no
    manifest."""
    try:
        fields = parse_json((path / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("it holds no JSON object")
        version = fields["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format {version}; this version reads {FORMAT_VERSION}"
            )
        seal = fields.pop("sha256")
        if sealed(fields)["sha256"] != seal:
            raise CheckpointError(f"{path / MANIFEST} is damaged: it differs from its own SHA-256")
        manifest = Manifest(**fields)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be read: {error}") from error
    problem = next(_nonsense(manifest), None)
    if problem is not None:
        raise CheckpointError(f"{path / MANIFEST} is damaged: {problem}")
    return replace(
        manifest, state={key: _with_floats(value) for key, value in manifest.state.items()}
    )


def _nonsense(manifest: Manifest) -> Iterator[str]:
    """Each field of a manifest that has the wrong type, as a line."""
    for name, kind in _TYPES.items():
        value = getattr(manifest, name)
        # Not isinstance: True is an int too, and no step.
        if type(value) is not kind:
            yield f"{name} is {reprlib.repr(value)}, not {kind.__name__}"
    for key, value in manifest.state.items():
        if not all(_is_number(one) for one in (value if isinstance(value, list) else [value])):
            yield f"state.{key} is {reprlib.repr(value)}, neither a number nor a list of them"
    for key, value in manifest.layout.items():
        if isinstance(value, dict | list):
            yield f"layout.{key} is {reprlib.repr(value)}, not one value"
    if not manifest.files:
        yield "it names no files"
    for name, file in manifest.files.items():
        if not _is_file_name(name):
            yield f"it names {name[:60]!r}, which is outside the checkpoint"
        found = (
            (type(file.get("size_bytes")), type(file.get("sha256")))
            if isinstance(file, dict)
            else None
        )
        if found != (int, str):
            yield f"files.{name[:60]} is {reprlib.repr(file)}, without a size and a checksum"


def _is_file_name(name: str) -> bool:
    return Path(name).name == name and len(name) < 256 and name.isascii() and name.isprintable()


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) or (isinstance(value, str) and value in WORDS)


def _with_floats(value: Any) -> Any:
    """Turn the words for numbers that are not finite back into numbers."""
    if isinstance(value, list):
        return [_with_floats(one) for one in value]
    return WORDS[value] if isinstance(value, str) else value
