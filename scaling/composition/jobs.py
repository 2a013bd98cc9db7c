"""The configurations of a study's jobs. Hydra composes what many jobs share once; each job then
sets its own values in plain dictionaries, which costs a hundredth of a composition."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from scaling.composition.hydra_parts import ConfigLoaderImpl, Override, OverridesParser

Composed = DictConfig | dict[str, Any]
"""A configuration before it is validated: Hydra's, or plain values without references."""

_OF_NO_KEY = re.compile(r"\$\{oc\.env:[^${}]*\}")
"""A reference to an environment variable: no word of a job changes what it stands for."""
_MISSING = "???"


class Jobs:
    """Composes jobs of one command. loader, master: of the command."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._groups: dict[str, bool] = {}
        self._bases: dict[tuple[str, ...], _Base] = {}

    def composed(self, words: Sequence[str]) -> Composed:
        """The configuration that Hydra makes of these words. Raises Hydra's errors."""
        overrides = [self._parse(word) for word in words]
        files = [one for one in overrides if self._chooses(one)]
        values = [one for one in overrides if not self._chooses(one)]
        own = [one for one in values if _is_plain(one)]
        shared = [one for one in values if not _is_plain(one)]
        if any(_overlap(a.key_or_group, b.key_or_group) for a in own for b in shared):
            own, shared = [], values  # of words about one key, the order counts
        base = self._base(files, shared)
        plain = base.with_values({one.key_or_group: one.value() for one in own})
        return base.as_hydra_sets(own) if plain is None else plain

    def _parse(self, word: str) -> Override:
        if word not in self._parsed:
            (self._parsed[word],) = self._parser.parse_overrides([word])
        return self._parsed[word]

    def _base(self, files: Sequence[Override], shared: Sequence[Override]) -> _Base:
        key = tuple(one.input_line or "" for one in (*files, *shared))
        if key not in self._bases:
            chosen = [one.input_line or "" for one in files]
            config = self._loader.load_sweep_config(self._master, chosen)
            with read_write(config), open_dict(config):
                del config["hydra"]  # of Hydra's own, which a command does not see
            ConfigLoaderImpl._apply_overrides_to_config(list(shared), config)
            self._bases[key] = _Base(config)
        return self._bases[key]

    def _chooses(self, override: Override) -> bool:
        """Whether it chooses a file, or is of Hydra's own section; else it sets a value."""
        key = override.key_or_group
        if key not in self._groups:
            own = key.partition(".")[0] == "hydra"
            self._groups[key] = own or self._loader.repository.group_exists(key)
        return self._groups[key]


@dataclass(frozen=True)
class _Base:
    """What several jobs share, as Hydra composed it."""

    config: DictConfig

    def with_values(self, values: dict[str, Any]) -> dict[str, Any] | None:
        """The plain configuration with these values; None where only Hydra knows what becomes of
        it: a key that is not there, a value still missing, a reference to another key."""
        if self._tree is None or not self._missing <= values.keys():
            return None
        tree = dict(self._tree)
        for key, value in values.items():
            *sections, last = key.split(".")
            place = tree
            for section in sections:
                inner = place.get(section)
                if not isinstance(inner, dict):
                    return None
                place[section] = place = dict(inner)  # the base keeps its own
            if last not in place or isinstance(place[last], dict | list):
                return None
            place[last] = value
        return tree

    def as_hydra_sets(self, overrides: Sequence[Override]) -> DictConfig:
        """The configuration with these words. Raises Hydra's errors."""
        config: DictConfig = copy.deepcopy(self.config)
        ConfigLoaderImpl._apply_overrides_to_config(list(overrides), config)
        return config

    @cached_property
    def _tree(self) -> dict[str, Any] | None:
        """The values, references resolved; None where one refers to another key."""
        given = OmegaConf.to_container(self.config, resolve=False)
        texts = (value for _, value in _leaves(given) if isinstance(value, str))
        if any("${" in _OF_NO_KEY.sub("", text) for text in texts):
            return None
        tree: Any = OmegaConf.to_container(self.config, resolve=True)
        return {str(name): value for name, value in tree.items()}

    @cached_property
    def _missing(self) -> frozenset[str]:
        return frozenset(key for key, value in _leaves(self._tree) if value == _MISSING)


def _is_plain(override: Override) -> bool:
    """Whether it sets one plain value, which stands for itself."""
    value = override.value()
    sets = not override.is_delete() and not override.is_add() and override.package is None
    if isinstance(value, str):
        return sets and "${" not in value and value != _MISSING
    return sets and (value is None or isinstance(value, bool | int | float))


def _overlap(key: str, other: str) -> bool:
    """Whether one key is the other, or in it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no container, with its dotted key."""
    if isinstance(tree, dict | list):
        pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, inner in pairs:
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree
