"""data.path alone says what kind of data it is: a folder of shards, pairs, documents or plain
text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from scaling.config.data import Kind
from scaling.config.paths import exists, matching, split_paths
from scaling.config.run_config import options_of
from scaling.errors import ConfigError

_DEFAULT = "python_stdlib"  # as in conf/config.yaml
_INDEX = "index.json"
_PAIRS = (".tsv",)
_ONE_FILE = (
    ".gz",
    ".zst",
    ".zstd",
    ".jsonl",
    ".ndjson",
    ".json",
    ".parquet",
    ".tar",
    ".tgz",
    ".txt",
    ".text",
    ".md",
    ".rst",
)
"""Ends of what documents are read from. A URL that ends otherwise is a folder of shards."""


def with_chosen_kind(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Composed values, with data.kind as data.path says where nobody chose one. Raises ConfigError
    for a path of no kind."""
    data = values.get("data")
    named = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if (
        not isinstance(data, Mapping)
        or data.get("kind") != _DEFAULT
        or named & {"data", "data.kind"}
    ):
        return dict(values)
    path = data.get("path")
    if not isinstance(path, str) or not path.strip():
        return dict(values)
    objective = values.get("objective")
    pairs = isinstance(objective, Mapping) and objective.get("kind") == "seq2seq"
    return {
        **values,
        "data": {**data, "kind": kind_of(path, pairs=pairs or bool(data.get("target_path")))},
    }


def names_a_path(option: str) -> bool:
    """Whether data=OPTION means data.path=OPTION: no option has such a name, and paths have."""
    if not option or option in options_of("data"):
        return False
    return "/" in option or option.startswith(("~", ".", "hf:")) or exists(option)


def kind_of(path: str, *, pairs: bool = False) -> Kind:
    """What data.path names. `pairs`: the rest of the configuration wants pairs of texts. Raises
    ConfigError."""
    inputs = split_paths(path)
    if any(_is_remote(text) for text in inputs):
        one_folder = (
            len(inputs) == 1
            and "*" not in path
            and not path.startswith("hf:")
            and not path.lower().endswith(_ONE_FILE)
        )
        return "shards" if one_folder else "documents"
    found = [match for text in inputs for match in _matches(text)]
    if len(found) == 1 and (found[0] / _INDEX).is_file():
        return "shards"
    if any(place.name == _INDEX for place in found):
        raise ConfigError(
            f"data.path={path!r} is an index",
            "from the command line",
            "Give its folder: data.path=FOLDER.",
        )
    for place in found:
        if any(place.glob("train-*.tar")) and place.is_dir():
            raise ConfigError(
                f"{place} holds shards and no {_INDEX}",
                f"data.path={path!r}",
                "End their preparation by the same command again, or copy the index too. "
                f"Tars of texts are data.path='{place}/*.tar'.",
            )
    if pairs or all(_ends(place) in _PAIRS or _holds_pairs(place) for place in found):
        return "text_pairs"
    return (
        "text_files"
        if all(place.is_file() and not _ends(place) for place in found)
        else "documents"
    )


def _is_remote(text: str) -> bool:
    return text.startswith("hf:") or ("://" in text and not text.lower().startswith("file://"))


def _matches(text: str) -> list[Path]:
    """The place of that name, or what matches the glob. Raises ConfigError where there is
    neither."""
    found = [Path(path) for path in matching(text)]
    if not found:
        raise ConfigError(
            f"data.path={text!r} names no file or folder",
            f"seen from {Path.cwd()}",
            "Check the path. To plan for data that are elsewhere, "
            "say what they are: data=documents or data=shards.",
        )
    return found


def _ends(place: Path) -> str:
    return PurePosixPath(place.name.lower()).suffix


def _holds_pairs(place: Path) -> bool:
    """Whether all the files of a folder are lines of pairs."""
    if not place.is_dir():
        return False
    names = [name for _, _, files in os.walk(place) for name in files if not name.startswith(".")]
    return bool(names) and all(name.lower().endswith(_PAIRS) for name in names)
