"""Data sets of the Hugging Face hub: which files a name stands for, and what is sent with a request
for them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from scaling.data.io.http import describe
from scaling.errors import ConfigError
from scaling.units import counted

DATA_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".json", ".txt", ".tar", ".tgz")
"""What is read of a data set; .gz and .zst of them too."""
_COMPRESSED = (".gz", ".zst", ".zstd")
_NOT_DATA = re.compile(r"(^|/)(\.[^/]*|readme|license|dataset_infos?)(\.[^/]*)?$", re.IGNORECASE)
_NAME = re.compile(
    r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:/]+))?"
    r"(?::(?P<subset>[^/]+))?(?:/(?P<pattern>.+))?"
)
_CONVERTED = {"~parquet": "refs/convert/parquet"}
_SPLIT = "(^|[-._ /]){}($|[-._ /0-9])"
_TRAIN = re.compile(_SPLIT.format("train(ing)?"), re.IGNORECASE)
_OTHER = re.compile(
    _SPLIT.format("(test(ing)?|eval(uation)?|valid(ation)?|val|dev)"), re.IGNORECASE
)
"""The hub's own convention for splits that no one has described: words in the names of files and
folders."""


@dataclass(frozen=True)
class HubFile:
    """One file of a data set at one commit."""

    url: str
    size: int
    version: str


@dataclass(frozen=True)
class HubName:
    """hf:OWNER/NAME[@REVISION][:SUBSET][/GLOB]"""

    text: str
    name: str
    revision: str | None
    subset: str | None
    pattern: str | None

    @staticmethod
    def parse(text: str) -> HubName | None:
        """None for what is no such name. Raises ConfigError for one that is misspelt."""
        if not text.startswith("hf:"):
            return None
        match = _NAME.fullmatch(text.removeprefix("hf://datasets/").removeprefix("hf:"))
        if match is None:
            raise ConfigError(
                f"{text!r} names no data set of the hub",
                fix="Write hf:OWNER/NAME, with @REVISION, :SUBSET and /GLOB behind it where "
                "needed, as hf:allenai/c4:en.",
            )
        revision = match["revision"]
        return HubName(
            text,
            match["name"],
            _CONVERTED.get(revision or "", revision),
            match["subset"],
            match["pattern"],
        )


def hub_files(name: HubName, commits: dict[str, str]) -> list[HubFile]:
    """The files for training that a name stands for, in the order of their paths.

    `commits`: data set -> commit, used where the name has no revision, and extended by what was
    found. With a glob those that match; else those that the data set's card gives to the subset;
    without a card those whose names speak of training, or of no split at all. Raises ConfigError
    for names that the hub does not know, and for what cannot be read.
    """
    api = _api()
    try:
        revision = name.revision or commits.get(name.name)
        info = api.dataset_info(name.name, revision=revision, timeout=_TIMEOUT_S)
        commits[name.name] = commit = str(info.sha)
        card = (info.card_data or {}) if name.pattern is None else {}
        patterns = [name.pattern] if name.pattern else _patterns(name, card.get("configs"))
        found = {
            file.path: file
            for pattern in patterns
            for file in _matching(api, name.name, commit, pattern)
        }
    except ConfigError:
        raise
    # of the hub's client, of the network, of the name: whatever it is, there are no files
    except Exception as error:
        raise _refused(name, error) from error
    paths = sorted(path for path in found if _is_data(path))
    if patterns == [_EVERYTHING]:
        paths = _for_training(paths)
    if not paths:
        raise _nothing(name, patterns, sorted(found))
    resolve = f"{_endpoint()}/datasets/{name.name}/resolve/{commit}"
    return [
        HubFile(f"{resolve}/{quote(path)}", found[path].size, found[path].blob_id) for path in paths
    ]


def hub_headers(location: str) -> Mapping[str, str]:
    """The token of the person who asks, for the hub's own files alone; nothing where there is
    none."""
    if not location.startswith(f"{_endpoint()}/"):
        return {}
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


_TIMEOUT_S = 20.0  # assumption: a hub that is silent for so long cannot be reached
_EVERYTHING = "**"


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint())


def _patterns(name: HubName, configs: Any) -> list[str]:
    """The globs of a subset's training files, as the data set's card gives them."""
    subsets = {
        str(entry.get("config_name")): entry for entry in configs or [] if isinstance(entry, dict)
    }
    if not subsets:
        return [f"{name.subset}/{_EVERYTHING}"] if name.subset else [_EVERYTHING]
    marked = [
        key
        for key, entry in subsets.items()
        if entry.get("default") or key == "default" or len(subsets) == 1
    ]
    chosen = name.subset or (marked[0] if marked else None)
    if chosen not in subsets:
        what = f"has no subset {chosen!r}" if chosen else "has several subsets"
        fix = f"Name one, as hf:{name.name}:{next(iter(subsets))}. There are: {', '.join(subsets)}."
        raise ConfigError(f"the data set {name.name} {what}", f"from {name.text}", fix)
    patterns = list(_training_patterns(subsets[chosen].get("data_files")))
    if not patterns:
        folder = subsets[chosen].get("data_dir")
        return [f"{folder}/{_EVERYTHING}"] if folder else [_EVERYTHING]
    return patterns


def _training_patterns(data_files: Any) -> Iterator[str]:
    """data_files of a card: a glob, several, or entries with a split each."""
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict) and entry.get("split", "train") == "train":
            path = entry.get("path")
            yield from map(str, path if isinstance(path, list) else [path] if path else [])


def _matching(api: Any, name: str, commit: str, pattern: str) -> Iterator[Any]:
    """The files of a data set that match a glob, with sizes; only the folder of its fixed beginning
    is listed."""
    from fsspec.utils import glob_translate

    pattern = pattern.removeprefix("./").lstrip("/")
    fixed = pattern[: re.search(r"[*?\[]|$", pattern).start()]  # type: ignore[union-attr]
    folder = fixed.rpartition("/")[0]
    matches = re.compile(glob_translate(pattern)).match
    for entry in api.list_repo_tree(
        name, folder or None, recursive=True, revision=commit, repo_type="dataset"
    ):
        if hasattr(entry, "blob_id") and matches(entry.path):
            yield entry


def _is_data(path: str) -> bool:
    lower = path.lower()
    for suffix in _COMPRESSED:
        lower = lower.removesuffix(suffix)
    return lower.endswith(DATA_SUFFIXES) and not _NOT_DATA.search(path)


def _for_training(paths: list[str]) -> list[str]:
    named = [path for path in paths if _TRAIN.search(path)]
    return named or [path for path in paths if not _OTHER.search(path)]


def _nothing(name: HubName, patterns: list[str], found: list[str]) -> ConfigError:
    what = (
        f"{counted(len(found), 'file')} match {' '.join(patterns)}, and none is of a kind that "
        "is read"
        if found
        else (f"no file matches {' '.join(patterns)}")
    )
    return ConfigError(
        f"nothing of the data set {name.name} can be read: {what}",
        f"from {name.text}",
        f"Read are {', '.join(DATA_SUFFIXES)} (.gz, .zst); the hub's own copy in parquet is "
        f"hf:{name.name}@~parquet.",
    )


def _refused(name: HubName, error: Exception) -> ConfigError:
    reason = [line for line in describe(error).strip().splitlines() if line.strip()]
    return ConfigError(
        f"the hub gives no data set {name.name}: {type(error).__name__}: "
        f"{reason[0] if reason else 'no reason given'}",
        f"from {name.text}",
        "Check the name, the network and, for a gated one, your rights and token (hf auth login).",
    )
