"""The recipe of the corpus that a configuration describes, and a name by which the same corpus is
found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scaling.config.paths import split_paths
from scaling.config.run_config import DataConfig, TokenizerConfig
from scaling.data.io.remote import is_remote
from scaling.data.prepare.build import Recipe
from scaling.data.prepare.inputs import find_pieces, local_files, named_by
from scaling.data.prepare.pieces import Reading, pieces_of
from scaling.data.prepare.sources import files_identity, find_source
from scaling.data.prepare.tasks import Report, silent
from scaling.data.shards import FORMAT_VERSION

SAMPLE_BYTES = 100_000_000
"""Text that a tokenizer is trained on where the corpus may be large. Assumption: more changes
little."""
LARGEST_DOCUMENT_BYTES = 64_000_000
"""The same limit as max_document of scaling.prepare."""
# of what a build writes: raise it when the same source and settings give other bytes
_BUILDER_VERSION = 1


def recipe_of(
    data: DataConfig,
    tokenizer: TokenizerConfig,
    hub: str | None,
    commits: dict[str, str],
    report: Report = silent,
) -> Recipe:
    """The recipe of a corpus that is prepared here. `hub`: name or path of a tokenizer that exists,
    in place of `tokenizer`.

    `commits` and `report` as for `find_pieces`. Raises ConfigError for a source without files,
    DataError for one that cannot be read.
    """
    large = data.kind in ("python_packages", "documents")
    by_name, pairs = data.val_path is not None, data.kind == "text_pairs"
    if data.kind == "documents":
        with named_by("data.path"):
            pieces = find_pieces(
                inputs_of(data), max_files=data.max_files, commits=commits, report=report
            )
        if data.val_path is not None:
            with named_by("data.val_path"):
                held_out = find_pieces(split_paths(data.val_path), commits=commits, report=report)
            pieces += tuple(replace(piece, held_out=True) for piece in held_out)
        reading = Reading(data.field, max_bytes=LARGEST_DOCUMENT_BYTES)
    else:
        pieces, reading = pieces_of(find_source(data)), Reading()
    return Recipe(
        name=data.kind,
        pieces=pieces,
        tokenizer=tokenizer,
        hub=hub,
        val_fraction=data.val_fraction,
        shard_tokens=data.shard_tokens,
        reading=reading,
        sample_bytes=SAMPLE_BYTES if large else None,
        pairs=pairs,
        held_out_by_name=by_name,
    )


def directory_name(
    data: DataConfig, tokenizer: TokenizerConfig, tokenizer_sha256: str | None
) -> str:
    """Kind and a hash of all that the corpus is made of; of remote inputs the names, since a cached
    corpus needs no network.

    `tokenizer_sha256`: of one that is given, and not learnt from this corpus.
    """
    identity = {
        "source": _documents_identity(data)
        if data.kind == "documents"
        else find_source(data).identity(),
        "tokenizer": tokenizer.model_dump(exclude_defaults=True)
        | ({"sha256": tokenizer_sha256} if tokenizer_sha256 else {}),
        "val_fraction": data.val_fraction,
        "shard_tokens": data.shard_tokens,
        "format": [FORMAT_VERSION, _BUILDER_VERSION],
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{data.kind}-{digest[:12]}"


def inputs_of(data: DataConfig) -> Sequence[str]:
    assert data.path is not None
    return split_paths(data.path)


def _documents_identity(data: DataConfig) -> list[object]:
    identity = [*_inputs_identity(inputs_of(data), data.max_files), data.field, data.max_files]
    return identity + (
        [_inputs_identity(split_paths(data.val_path))] if data.val_path is not None else []
    )


def _inputs_identity(inputs: Sequence[str], max_files: int | None = None) -> list[object]:
    remote, local = (
        [text for text in inputs if is_remote(text)],
        [text for text in inputs if not is_remote(text)],
    )
    return [remote, files_identity(map(Path, local_files(local, max_files=max_files)))]
