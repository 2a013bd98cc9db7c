"""A finished run that continues for more tokens: what the longer run takes over, and from which
step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.checkpoint.store import committed
from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError, ScalingError
from scaling.planner.budget import schedule_tokens, token_budget, tokens_per_step
from scaling.runs.by_name import find_run, find_runs
from scaling.runs.directory import RunDir

_EXACT = ("constant", "wsd", "inverse_sqrt")
"""Schedules whose rate before the end does not depend on where the end is."""
_LONGER = ("train.n_tokens", "schedule.warmup_tokens", "schedule.decay_tokens")
"""Keys in which a run and its extension may differ."""


@dataclass(frozen=True)
class Trunk:
    """The run that is extended, and the step from which the longer run continues."""

    path: Path
    step: int


def extended(config: RunConfig) -> RunConfig:
    """A configuration with `train.extend` as it is run.

    With a schedule that does not depend on the end the longer run is that from scratch: it takes
    the shorter one's warm-up in tokens. With cosine it is another run, which the shorter one's
    last checkpoint is part of: `train.parent` names that. Raises ConfigError for a run that this
    one does not continue.
    """
    word = config.train.extend
    if word is None or config.train.parent is not None:
        return config
    path = find_run(word, config.run.root, lambda text: None)
    shorter = RunDir(path).read_config()
    _check_alike(config, shorter, path)
    train = config.train.model_copy(update={"extend": str(path)})
    if config.schedule.kind not in _EXACT:
        step = _newest_step(path, token_budget(shorter) // tokens_per_step(shorter))
        parent = {"parent": f"{shorter.semantic_hash[:16]}@{step}"}
        longer = config.model_copy(update={"train": train.model_copy(update=parent)})
        _check_warmup(longer)
        return longer
    warmup, _ = schedule_tokens(shorter)
    schedule = config.schedule.model_copy(update={"warmup_tokens": warmup})
    return config.model_copy(update={"train": train, "schedule": schedule})


def trunk_of(config: RunConfig) -> Trunk | None:
    """Where a run with `train.extend` begins; None for one without. Raises ConfigError when the
    checkpoint is gone."""
    if config.train.extend is None:
        return None
    path = Path(config.train.extend)
    shorter = RunDir(path).read_config()
    n_tokens, (_, decay) = token_budget(shorter), schedule_tokens(shorter)
    # behind the start of its decay the shorter run is no part of the longer one
    last = (n_tokens - decay) // tokens_per_step(shorter)
    return Trunk(path, _newest_step(path, last))


def shorter_runs(config: RunConfig) -> Iterator[tuple[Path, int]]:
    """Finished runs under run.root that are this one but for fewer tokens: path and tokens."""
    if config.train.extend is not None:
        return
    for path in find_runs(RunDir(config.run.root).path):
        if not path.name.startswith(f"{config.name}-"):
            continue
        try:
            run_dir = RunDir(path)
            found = run_dir.read_config()
            is_shorter = token_budget(found) < token_budget(config)
            if is_shorter and not _differences(config, found) and run_dir.state() == "finished":
                yield path, token_budget(found)
        except (ScalingError, OSError):  # a damaged directory is no news here
            continue


def rewarmed_from(config: RunConfig) -> int:
    """Tokens behind the checkpoint at which a cosine schedule begins again; 0 for all other
    runs."""
    train = config.train
    if train.extend is None or train.parent is None:
        return 0
    return int(train.parent.rpartition("@")[2]) * tokens_per_step(config)


def _check_alike(config: RunConfig, shorter: RunConfig, path: Path) -> None:
    differing = _differences(config, shorter)
    if differing:
        shown = "; ".join(f"{key}={ours}, not {theirs}" for key, ours, theirs in differing[:4])
        raise ConfigError(
            f"train.extend={path.name} is another run than this one: {shown}",
            "from the command line",
            "Repeat its words with a larger train.n_tokens. To begin another run with its weights, "
            f"use init_from={path.name}.",
        )
    if token_budget(config) <= token_budget(shorter):
        raise ConfigError(
            f"train.n_tokens={token_budget(config)}, and {path.name} has "
            f"{token_budget(shorter)} already",
            "train.extend",
            f"Use train.n_tokens of more than {token_budget(shorter)}.",
        )


def _check_warmup(config: RunConfig) -> None:
    warmup, _ = schedule_tokens(config)
    room = token_budget(config) - rewarmed_from(config)
    if warmup >= room:
        raise ConfigError(
            f"schedule.warmup_tokens is {warmup} tokens, and {room} are left to train",
            "train.extend",
            "Use a shorter warm-up, or a larger train.n_tokens.",
        )


def _differences(config: RunConfig, other: RunConfig) -> list[tuple[str, Any, Any]]:
    """Keys of the identity that differ, but for those that make a run longer."""
    ours, theirs = dict(_flat(config.semantic())), dict(_flat(other.semantic()))
    keys = [key for key in {**ours, **theirs} if key not in _LONGER]
    found = [
        (key, ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)
    ]
    warmups = (config.schedule.warmup_tokens, other.schedule.warmup_tokens)
    if warmups[0] not in (warmups[1], schedule_tokens(other)[0]):
        found.append(("schedule.warmup_tokens", *warmups))
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _newest_step(path: Path, last: int) -> int:
    """The newest checkpoint up to step `last`."""
    steps = [step for step, _ in committed(RunDir(path).checkpoints)]
    fitting = [step for step in steps if 0 < step <= last]
    if not fitting:
        raise ConfigError(
            f"{path.name} has no checkpoint up to step {last}, from which a longer run continues",
            "train.extend",
            f"There are: {', '.join(map(str, steps)) or 'none'}. "
            "With schedule=wsd the decay begins "
            f"there, and checkpoint.keep_steps=[{last}] keeps that checkpoint.",
        )
    return max(fitting)
