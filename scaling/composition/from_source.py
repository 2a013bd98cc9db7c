"""What a configuration takes over from the source of its initial weights: shape and tokenizer."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling.config.run_config import InitSection
from scaling.errors import ConfigError
from scaling.runs.files import write_atomic
from scaling.screen import visible
from scaling.weights.source import Source, find_source

FREE: dict[str, tuple[str, ...]] = {
    "model": ("name", "dropout", "init_std", "balance_loss"),
    "attention": ("dropout",),
    "position": ("scaling", "scaling_factor", "original_seq_len"),
}
"""Keys of the groups that follow from a source which a run may choose again: no weight depends on
them."""


def with_source(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Composed values, with those of the source of `init_from`.

    Raises ConfigError for a source that cannot be opened, and for a key of the command line that
    contradicts it.
    """
    init = InitSection.model_validate(values.get("init_from") or {})
    if init.source is None:
        return dict(values)
    source = find_source(init.source, values["run"]["root"], _notice)
    if init.content_hash not in (None, source.content_hash):
        raise ConfigError(
            f"init_from={init.source} has other content: {source.content_hash[:16]}, not "
            f"{str(init.content_hash)[:16]}",
            "init_from.content_hash",
            "Restore the source that the run began with, or begin another run.",
        )
    given = _given(overrides)
    changed = {group: _settled(source, group, values, given) for group in FREE}
    if "objective" not in given and source.config is None:
        changed["objective"] = {**values["objective"], **source.settings["objective"]}
    elif "objective" not in given:
        changed["objective"] = {**source.settings["objective"]}
    changed["train"] = {**values["train"], **_length(source, values, given, changed["position"])}
    changed["tokenizer"] = _tokenizer(source, values, given)
    word = str(source.path) if source.step is None else f"{source.path}@{source.step}"
    changed["init_from"] = {
        "source": word if source.kind in ("run", "export") else init.source,
        "missing": init.missing,
        "content_hash": source.content_hash,
    }
    return {**values, **changed}


def _notice(text: str) -> None:
    print(visible(text), file=sys.stderr)


def _given(overrides: Sequence[str]) -> dict[str, str]:
    """Keys and groups of the command line, with the words that gave them."""
    return {word.lstrip("+~").partition("=")[0]: word for word in overrides}


def _settled(
    source: Source, group: str, values: Mapping[str, Any], given: Mapping[str, str]
) -> dict[str, Any]:
    """One group's values: those of the source, and what the command line may choose."""
    theirs = {key: value for key, value in source.settings[group].items() if key not in FREE[group]}
    ours: Mapping[str, Any] = values[group]
    for key, value in theirs.items():
        word = given.get(f"{group}.{key}") or given.get(group)
        if word is not None and ours.get(key) != value and not _same(ours.get(key), value):
            raise _contradiction(word, f"{group}.{key}", ours.get(key), value, source)
    free = {
        key: ours[key]
        for key in FREE[group]
        if f"{group}.{key}" in given and ours.get(key) is not None
    }
    kept = {
        key: source.settings[group][key] for key in FREE[group] if key in source.settings[group]
    }
    named = {"name": name_of(source)} if group == "model" else {}
    return named | kept | theirs | free


def _same(ours: Any, theirs: Any) -> bool:
    return isinstance(ours, int | float) and isinstance(theirs, int | float) and ours == theirs


def _contradiction(word: str, key: str, ours: Any, theirs: Any, source: Source) -> ConfigError:
    return ConfigError(
        f"{word} makes {key}={ours}, and init_from={source.word} has {key}={theirs}",
        "from the command line",
        f"Leave out {word}: shape and tokenizer follow from the source.",
    )


def name_of(source: Source) -> str:
    """A name for the shape of a source that a directory can have."""
    if source.config is not None:
        return source.config.model.name
    stem = source.path.stem if source.kind == "gguf" else source.path.name
    return re.sub(r"[^\w.-]+", "_", stem).strip("-.")[:80] or source.kind


def _length(
    source: Source, values: Mapping[str, Any], given: Mapping[str, str], position: Mapping[str, Any]
) -> dict[str, int]:
    """train.seq_len: that of the source where it has a vector for each position, else at most so
    much unless positions are scaled."""
    limit = source.settings.get("train", {}).get("seq_len")
    if limit is None:
        return {}
    ours, word = values["train"]["seq_len"], given.get("train.seq_len")
    fixed = position["kind"] == "learned"
    if word is None:
        return {"seq_len": limit if fixed else min(int(ours), limit)}
    if (fixed and int(ours) != limit) or (int(ours) > limit and position.get("scaling") is None):
        fix = f"Use train.seq_len={limit}" + (
            "." if fixed else " or less, or position.scaling and position.scaling_factor."
        )
        raise ConfigError(
            f"{word}, and init_from={source.word} reads {limit} positions",
            "from the command line",
            fix,
        )
    return {}


def _tokenizer(
    source: Source, values: Mapping[str, Any], given: Mapping[str, str]
) -> dict[str, Any]:
    own = [key for key in given if key.split(".")[0] == "tokenizer" and key != "tokenizer.lossy"]
    recorded = values["init_from"].get("content_hash") is not None  # words of a run that has begun
    if own and not recorded:
        word = given[own[0]]
        raise ConfigError(
            f"{word}, and init_from={source.word} has a tokenizer of its own",
            "from the command line",
            f"Leave out {word}; tokenizer.lossy is the only key that may be given.",
        )
    found: dict[str, Any] = {
        "kind": "hf",
        "name": str(_tokenizer_file(source, values)),
        "vocab_size": n_entries(source),
        "special_tokens": "own",
        "n_sentinels": 0,
    }
    if source.config is not None:
        tokenizer = source.config.tokenizer
        found |= {
            "special_tokens": tokenizer.special_tokens,
            "n_sentinels": tokenizer.n_sentinels,
        }
    if "tokenizer.lossy" in given:
        found["lossy"] = given["tokenizer.lossy"].partition("=")[2]
    return found


def _tokenizer_file(source: Source, values: Mapping[str, Any]) -> Path:
    """tokenizer.json beside the weights; that of a GGUF file is written into the cache."""
    if source.kind != "gguf":
        return source.path / "tokenizer.json"
    cache = Path(values["data"]["cache_dir"]).expanduser().absolute()
    path = cache / f"tokenizer-{source.content_hash[:12]}.json"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        write_atomic(path, source.tokenizer)
    return path


def n_entries(source: Source) -> int:
    """Entries of a tokenizer.json, added tokens included."""
    try:
        raw = json.loads(source.tokenizer)
        vocab = raw["model"]["vocab"]
        words = set(vocab) if isinstance(vocab, dict) else {entry[0] for entry in vocab}
        return len(words | {token["content"] for token in raw.get("added_tokens") or ()})
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(
            f"the tokenizer of {source.word} cannot be read: {error!r}", "tokenizer.json"
        ) from error
