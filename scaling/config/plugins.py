"""Kinds that other installed packages add: families, attentions, positions, objectives, forms of
laws and devices.

A package declares the entry point `scaling.plugins`, and the entry point leads to a
`Plugin`:

    [project.entry-points."scaling.plugins"]
    toy = "scaling_toy:PLUGIN"

Configurations stay data: nothing that a configuration names is imported. Only the installed
packages that declare the entry point are loaded, once a process, and a name in a configuration is
looked up among what they declare.

The module that the entry point names must load without torch, since the commands that plan do. What
needs torch is a function that imports and returns it (`Loader`); it is called when a run builds the
thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from scaling.errors import ConfigError

GROUP = "scaling.plugins"
"""The entry point that a package declares."""

Loader = Callable[[], Any]
"""Imports what may need torch, and returns it."""


def _nothing(*_: Any, **__: Any) -> int:
    return 0


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One kind of attention. Its costs are functions that get the `RunConfig` first."""

    load: Loader
    """Returns a class like those of `scaling.model.attention`."""
    reads: tuple[str, ...] = ()
    """Keys of the group `attention` that the kind reads, of those that may be null."""
    attended: Callable[..., int]
    """(config, length, causal=) -> positions that a query is multiplied with, not halved for
    causality."""
    params: Callable[..., int] = _nothing
    """(config, causal=) -> parameters of one layer beyond those of full attention."""
    extra_bytes_per_token: Callable[..., int] = _nothing
    """(config, length, width, causal=) -> bytes that a layer keeps for backward beyond full
    attention."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """One way in which a model knows the order of its tokens."""

    load: Loader
    """Returns a class like those of `scaling.model.position`."""
    reads: tuple[str, ...] = ()
    """Keys of the group `position` that the kind reads, of those that may be null."""
    params: Callable[[Any], int] = _nothing
    """(config) -> parameters of one stack of blocks."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One thing to learn from a sequence."""

    load: Loader
    """Returns a function of (config, tokenizer) that returns a function of (sequences, their
    numbers) to a `Batch`."""
    lengths: Callable[[Any], Any]
    """(config) -> the `Lengths` of a sequence."""
    families: tuple[str, ...]
    """Families that can learn it."""
    needs_special_tokens: bool = False
    """Whether it needs tokenizer.special_tokens=all (padding, class, separator, mask)."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of models."""

    load: Loader
    """Returns a subclass of `scaling.model.LanguageModel`, built from a `RunConfig`."""
    like: str
    """The family of this package that has the same stacks and heads: parameters, costs and prompts
    are counted as of it."""
    objectives: tuple[str, ...]
    """What it can learn, its own first."""
    description: str
    """Completes "model.family=NAME, which ..." in errors."""


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What one package adds. The names are those that configurations use."""

    conf: Path | None = None
    """A folder like conf/, with a file for each name: attention/toy.yaml,
    cluster/device/TOY-8GB.yaml."""
    attentions: Mapping[str, Attention] = field(default_factory=dict)
    positions: Mapping[str, Position] = field(default_factory=dict)
    objectives: Mapping[str, Objective] = field(default_factory=dict)
    families: Mapping[str, Family] = field(default_factory=dict)
    forms: Mapping[str, Loader] = field(default_factory=dict)
    """Returns a `scaling.laws.forms.Form` of that name."""
    driver_names: Mapping[str, str] = field(default_factory=dict)
    """What a GPU's driver calls it, without the vendor -> its file in cluster/device."""


@cache
def plugins() -> Mapping[str, Plugin]:
    """Entry point's name -> plugin, of all installed packages. Raises ConfigError for one that
    cannot be used."""
    found: dict[str, Plugin] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        plugin = _loaded(point)
        for name in _clashes(plugin, found):
            raise ConfigError(
                f"two plugins add {name!r}", _where(point), "Uninstall one of the packages."
            )
        found[point.name] = plugin
    return found


def added(concept: str) -> dict[str, Any]:
    """What all plugins add to one of the mappings of `Plugin`."""
    return {
        name: kind
        for plugin in plugins().values()
        for name, kind in getattr(plugin, concept).items()
    }


def conf_dirs() -> tuple[Path, ...]:
    """Folders of groups that plugins add."""
    return tuple(plugin.conf for plugin in plugins().values() if plugin.conf is not None)


def known(concept: str, own: tuple[str, ...]) -> Callable[[str], str]:
    """A validator of pydantic: a name is one of our `own` or one that a plugin adds."""

    def check(name: str) -> str:
        others = added(concept)
        if taken := sorted(set(own) & set(others)):
            raise ConfigError(
                f"a plugin adds {taken[0]!r}, a name that is taken",
                f"from {' or '.join(distributions())}",
                "Rename it there.",
            )
        if name not in own and name not in others:
            raise ValueError(f"there are {', '.join((*own, *others))}")
        return name

    return check


def distributions() -> dict[str, str]:
    """Package -> version, of each installed package that declares a plugin."""
    found = (point.dist for point in entry_points(group=GROUP))
    return {dist.name: dist.version for dist in found if dist is not None}


def _loaded(point: EntryPoint) -> Plugin:
    try:
        plugin = point.load()
    except Exception as error:  # whatever a package of somebody else raises while it is imported
        what = f"the plugin {point.name} cannot be loaded: {type(error).__name__}: {error}"
        raise ConfigError(what, _where(point), "Repair or uninstall the package.") from error
    if not isinstance(plugin, Plugin):
        what = f"the plugin {point.name} is a {type(plugin).__name__}, not a scaling Plugin"
        raise ConfigError(what, _where(point), f"Let {point.value} be a Plugin.")
    return plugin


def _clashes(plugin: Plugin, others: Mapping[str, Plugin]) -> list[str]:
    concepts = [f.name for f in fields(Plugin) if f.name != "conf"]
    return [
        name
        for concept in concepts
        for name in getattr(plugin, concept)
        if any(name in getattr(other, concept) for other in others.values())
    ]


def _where(point: EntryPoint) -> str:
    package = (
        "an installed package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    )
    return f"from {package}, entry point {point.value}"
