"""Hydra's composition -> a validated RunConfig; `explain.py` makes a ConfigError of every
mistake."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from scaling.composition.code_refusal import inert_configurations
from scaling.composition.explain import COMPOSITION_ERRORS, explain
from scaling.composition.extension import extended
from scaling.composition.from_source import with_source
from scaling.composition.hydra_parts import GlobalHydra
from scaling.composition.jobs import Composed
from scaling.composition.shorthand import in_full, quoted
from scaling.composition.unread import refuse_unread
from scaling.config.data_path import with_chosen_kind
from scaling.config.run_config import RunConfig, conf_dir
from scaling.planner.budget import token_budget
from scaling.planner.cost.lengths import lengths


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that these Hydra overrides make. Raises ConfigError."""
    overrides = in_full(overrides)
    try:
        return validate(composed_of(overrides), overrides)
    except (*COMPOSITION_ERRORS, ValueError) as error:  # Hydra raises ValueError for optim=3
        raise explain(error, overrides) from error


def validate(composed: Composed, overrides: Sequence[str]) -> RunConfig:
    """Check a composed configuration and resolve its token budget. Raises ConfigError."""
    try:
        values: Any = composed
        if isinstance(composed, DictConfig):
            values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
            values.pop("hydra", None)
        chosen = with_chosen_kind({str(name): value for name, value in values.items()}, overrides)
        chosen = with_source(chosen, overrides)
        config = RunConfig.model_validate(chosen)
    except COMPOSITION_ERRORS as error:
        raise explain(error, overrides) from error
    refuse_unread(config, overrides)
    lengths(config)  # refuses a length for which the objective or the tokenizer has no room
    train = config.train.model_copy(update={"n_tokens": token_budget(config)})
    return extended(config.model_copy(update={"train": train}))


_NOT_WORDS = ("cluster", "layout", "plan", "scaling", "study", "dry_run", "logger")
"""Sections of the place and manner of a run, which a command chooses again."""


def words_for(config: RunConfig, *start: str) -> tuple[str, ...]:
    """Words that compose to `config`, but for its cluster, layout, logger and study: `start`, and
    what differs from it."""
    base = validate(composed_of(start), start)
    ours, theirs = (dict(_leaves(c.model_dump(mode="json"))) for c in (config, base))
    known = dict(_leaves(OmegaConf.to_container(composed_of(start), resolve=False)))
    changed = [
        key for key in ours if key.split(".")[0] not in _NOT_WORDS and ours[key] != theirs[key]
    ]
    return (
        *start,
        *(f"{'' if key in known else '++'}{key}={_as_word(ours[key])}" for key in changed),
    )


def composed_of(words: Sequence[str]) -> DictConfig:
    with (
        inert_configurations(),
        _own_hydra(),
        initialize_config_dir(str(conf_dir()), version_base="1.3"),
    ):
        return hydra_compose("config", overrides=list(words))


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Set aside the Hydra of the command that is at work: there is one a process, and a study
    composes within it."""
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = theirs  # not that of before: Hydra puts another in its place


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, inner in tree.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree


def _as_word(value: Any) -> str:
    """The value in Hydra's grammar: null, true, numbers and lists as they are, text in quotes where
    it needs them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(_as_word(item) for item in value)}]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][\w./-]*", value):
        return quoted(value)
    return str(value)
