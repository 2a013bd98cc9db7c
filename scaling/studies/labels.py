"""Labels of trials in tables and messages: varied keys, headings, short names and values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from scaling.screen import Column
from scaling.studies.trials import Trial

_SHAPE = (
    "model.n_layers",
    "model.d_model",
    "model.n_heads",
    "model.n_kv_heads",
    "model.d_head",
    "model.d_ff",
)
_IN_TOKENS = ("train.n_tokens", "train.parent")
"""Keys that the column of tokens already shows."""


def shown_keys(trials: Sequence[Trial]) -> list[str]:
    """Varied keys with a column: depth and width of the shape, and every key that these do not
    determine."""
    varied = [key for key in trials[0].varied if key not in _IN_TOKENS] if trials else []
    keys = [key for key in varied if key not in _SHAPE]
    keys += [key for key in _SHAPE[:2] if key in varied]
    for key in _SHAPE[2:]:
        if key in varied and not _fixed(key, keys, trials):
            keys.append(key)
    return keys


def _fixed(key: str, by: Sequence[str], trials: Sequence[Trial]) -> bool:
    """Whether trials that agree in all keys of `by` agree in `key`."""
    values: dict[str, set[str]] = {}
    for trial in trials:
        values.setdefault(repr([trial.varied[other] for other in by]), set()).add(
            repr(trial.varied[key])
        )
    return all(len(found) == 1 for found in values.values())


def varied_columns(keys: Sequence[str]) -> list[Column]:
    return [Column(heading, 1 if number else 0) for number, heading in enumerate(headings(keys))]


def headings(keys: Sequence[str]) -> list[str]:
    """The last part of each key; the whole key where two end alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    # model.dropout and optim.dropout, for example, keep their sections
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each run's name without the words that all names begin with. A name ends with the hash of its
    configuration."""
    words = zip(*(name.split("-")[:-1] for name in names), strict=False)
    shared = list(itertools.takewhile(lambda same: len(set(same)) == 1, words))
    return {name: "-".join(name.split("-")[len(shared) :]) for name in names}


def common_name(names: Mapping[str, str], trials: Sequence[Trial]) -> str:
    """The beginning that `short_names` removed, for the title."""
    if not trials or names[trials[0].name] == trials[0].name:
        return ""
    first = trials[0].name
    return f", each {first.removesuffix(names[first])}TRIAL"


def labels(trials: Sequence[Trial]) -> dict[str, str]:
    """A label for each trial: its varied keys and its name."""
    keys, names = shown_keys(trials), short_names([trial.name for trial in trials])
    found = {}
    for trial in trials:
        values = zip(keys, (trial.varied[key] for key in keys), strict=True)
        found[trial.name] = label(dict(values), names[trial.name])
    return found


def label(values: Mapping[str, Any], name: str) -> str:
    pairs = zip(headings(list(values)), values.values(), strict=True)
    text = " ".join(f"{heading}={shown(value)}" for heading, value in pairs)
    return f"{text} ({name})" if text else name


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
