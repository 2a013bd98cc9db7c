"""The values that a search draws and the steps at which it compares trials. `launch/search/tune.py`
runs it through Ray Tune.

search.json keeps the drawn values in order. A repeated command begins with these, finds their runs
where they stand, and draws new values only after them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scaling.config.run_config import RunConfig
from scaling.config.study import Choices, Range
from scaling.errors import ConfigError
from scaling.planner.budget import tokens_per_step
from scaling.runs.files import read_object, write_json
from scaling.studies.generators import changed

FILE = "search.json"
_MUTABLE = ("optim.", "schedule.", "model.dropout", "objective.label_smoothing")
"""Keys that may change during a run: weights, data order and number of steps are unaffected."""

Values = dict[str, Any]
"""Map of dotted key -> value."""
PARENT = "train.parent"
"""Key for the place in another run at which a trial begins. It is drawn with the values: empty, or
as recorded for a trial that has begun."""


def space_of(config: RunConfig) -> dict[str, Choices]:
    """The searched space. Raises ConfigError for a study without a space, for an unknown key, or
    for one that may not change."""
    study = config.study
    if not study.space:
        fix = (
            "Give KEY: [values] or KEY: {low, high, log}, as in "
            "study.space={optim.lr:{low:1e-4,high:1e-2,log:true}}."
        )
        raise ConfigError(f"study={study.kind} needs study.space", "it has no default", fix)
    for key, choices in study.space.items():
        for value in _ends(choices):
            changed(config, {key: value})
        if study.kind == "pbt" and not key.startswith(_MUTABLE):
            names = (name + "*" if name.endswith(".") else name for name in _MUTABLE)
            fix = f"Keys that can: {', '.join(names)}."
            raise ConfigError(
                f"{key} cannot change during a run, and study=pbt would change it",
                "study.space",
                fix,
            )
    return study.space


def _ends(choices: Choices) -> tuple[Any, ...]:
    if isinstance(choices, Range):
        return (
            (int(choices.low), int(choices.high))
            if choices.integer
            else (choices.low, choices.high)
        )
    if not choices:
        raise ConfigError(
            "a key of study.space has no values", "study.space", "Give it some: KEY: [a, b]."
        )
    return choices


def clipped(values: Values, space: Mapping[str, Choices]) -> Values:
    """Limit `values` to the ranges that they were drawn from, after PBT has perturbed them."""
    out = dict(values)
    for key, choices in space.items():
        if isinstance(choices, Range):
            value = min(max(out[key], choices.low), choices.high)
            out[key] = round(value) if choices.integer else float(value)
    return out


def stops(config: RunConfig) -> list[int]:
    """Steps at which trials are compared, ascending; the last is the end of the run.

    asha: the first rung and its multiples by powers of reduction_factor; pbt: every interval;
    bayesian: the end only.
    """
    study, n_tokens, step = config.study, config.train.n_tokens or 0, tokens_per_step(config)
    last = -(-n_tokens // step)
    if study.kind == "asha":
        first = study.first_rung_tokens or n_tokens / 16
        return [*_rungs(max(1, math.ceil(first / step)), study.reduction_factor, last), last]
    if study.kind == "pbt":
        every = max(1, math.ceil((study.interval_tokens or n_tokens / 8) / step))
        return [*range(every, last, every), last]
    return [last]


def _rungs(first: int, factor: int, last: int) -> Iterator[int]:
    while first < last:
        yield first
        first *= factor


def population(drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest trial of each member of a search, in the members' order."""
    newest = {entry["member"]: entry for entry in drawn if entry["member"] is not None}
    return [newest[member] for member in sorted(newest)]


def renumbered(drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number the members from 0 in the order in which a repeated command begins with them; replaced
    ones get no number."""
    members = {entry["run"]: number for number, entry in enumerate(population(drawn))}
    return [entry | {"member": members.get(entry["run"])} for entry in drawn]


def read_drawn(directory: Path) -> list[dict[str, Any]]:
    """Every trial so far, in order: {"values", "parent", "run", "member"}. Raises RunDirError for a
    damaged file."""
    found = read_object(directory / FILE)
    return [] if found is None else list(found["trials"])


def write_drawn(directory: Path, trials: list[dict[str, Any]]) -> None:
    write_json(directory / FILE, {"trials": trials})
