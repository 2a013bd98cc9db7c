"""Weights of a source under our names, a part of a parameter at a time.

A rank reads what it holds and nothing else, whatever library wrote the source.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from scaling.arrangements.base import Arrangement, Place
from scaling.checkpoint.fragments import FragmentReader
from scaling.config.run_config import RunConfig
from scaling.errors import CheckpointError, ConfigError
from scaling.model import build_model
from scaling.model.export.moves import taken, their_shape
from scaling.parallel.part import Part
from scaling.weights.safetensors_files import SafetensorsFiles
from scaling.weights.source import Source

Shapes = dict[str, tuple[int, ...]]


class Weights(Protocol):
    """What weight files offer: shapes by name, and rectangles of a weight in fp32 on the CPU."""

    @property
    def shapes(self) -> Shapes: ...

    def read(self, name: str, slices: tuple[Any, ...]) -> Tensor: ...


class Reader(Protocol):
    """Parameters of ours out of a source.

    missing: our parameters that the source lacks. extra: weights of the source that no parameter
    takes.
    """

    missing: list[str]
    extra: list[str]

    def read(self, name: str, part: Part) -> Tensor:
        """A part of our parameter, as a tensor of its shape, in fp32 on the CPU."""


def shapes_of(config: RunConfig) -> Shapes:
    """Shapes of every parameter of our model."""
    model = build_model(config, "meta")
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def open_reader(source: Source, config: RunConfig, *, missing: str = "refuse") -> Reader:
    """The weights of a source for the model of `config`.

    missing: "allow" passes weights that the source lacks, and those that no parameter takes.
    Raises ConfigError for weights that do not match, with their names and shapes.
    """
    shapes = shapes_of(config)
    reader: Reader
    if source.kind == "run":
        assert source.checkpoint is not None
        reader = _Checkpoint(FragmentReader(source.checkpoint), shapes)
    elif source.arrangement is None:
        reader = _Own(SafetensorsFiles(source.path), shapes)
    elif source.kind == "gguf":
        from scaling.weights.gguf_source import GGUFWeights

        reader = _Arranged(source.arrangement, GGUFWeights(source.path), config, shapes)
    else:
        reader = _Arranged(source.arrangement, SafetensorsFiles(source.path), config, shapes)
    if missing == "refuse" and (reader.missing or reader.extra):
        raise _unmatched(source, reader)
    return reader


def _unmatched(source: Source, reader: Reader) -> ConfigError:
    found = [
        f"{word} {_listed(names)}"
        for word, names in (("it lacks", reader.missing), ("nothing reads", reader.extra))
        if names
    ]
    return ConfigError(
        f"the weights of {source.name} are not those of its settings: {'; '.join(found)}",
        f"from {source.word}",
        "To begin a run, init_from.missing=allow initialises what is missing and leaves out the "
        "rest.",
    )


def _listed(names: Collection[str]) -> str:
    first = sorted(names)[:8]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _compare(found: Mapping[str, tuple[int, ...]], wanted: Shapes, source: str) -> None:
    """Raise CheckpointError for a weight of another shape."""
    wrong = [name for name in sorted(found.keys() & wanted.keys()) if found[name] != wanted[name]]
    if wrong:
        first = wrong[0]
        raise CheckpointError(
            f"{first} has the shape {found[first]}, and the settings make it {wanted[first]}"
            + (f"; {len(wrong) - 1} more differ" if len(wrong) > 1 else ""),
            source,
            "Settings and weights are of different models: copy both again from one place.",
        )


@dataclass
class _Checkpoint:
    """A checkpoint of a run of ours, whatever layout wrote it."""

    fragments: FragmentReader
    shapes: Shapes

    def __post_init__(self) -> None:
        _compare(self.fragments.shapes, self.shapes, "the checkpoint")
        self.missing = sorted(self.shapes.keys() - self.fragments.shapes.keys())
        self.extra = sorted(self.fragments.shapes.keys() - self.shapes.keys())

    def read(self, name: str, part: Part) -> Tensor:
        return self.fragments.read("param", name, part, 0, part.numel).view(part.local_shape)


@dataclass
class _Own:
    """An export of ours under our names."""

    files: Weights
    shapes: Shapes

    def __post_init__(self) -> None:
        found = self.files.shapes
        _compare(found, self.shapes, "the export")
        self.missing = sorted(self.shapes.keys() - found.keys())
        self.extra = sorted(found.keys() - self.shapes.keys())

    def read(self, name: str, part: Part) -> Tensor:
        place = Place(name, name)
        return taken(place, len(part.shape), lambda slices: self.files.read(name, slices), part)


@dataclass
class _Arranged:
    """Weights under the names of another library."""

    arrangement: Arrangement
    files: Weights
    config: RunConfig
    shapes: Shapes

    def __post_init__(self) -> None:
        places = list(self.arrangement.places(self.config))
        self._places = {place.ours: place for place in places}
        found, prefix = self.files.shapes, self.arrangement.prefix
        # of a body that was saved alone, names lack what stands before them
        self._bare = not any(name.startswith(prefix) for name in found)
        held = {prefix + name if self._bare else name: shape for name, shape in found.items()}
        by_theirs: dict[str, list[Place]] = {}
        for place in places:
            by_theirs.setdefault(place.theirs, []).append(place)
        wanted = {name: their_shape(parts, self.shapes) for name, parts in by_theirs.items()}
        _compare(held, wanted, self.arrangement.name)
        repeated = self.arrangement.repeated(self.config)
        self.missing = sorted(place.ours for place in places if place.theirs not in held)
        self.extra = sorted(held.keys() - wanted.keys() - repeated)

    def read(self, name: str, part: Part) -> Tensor:
        place = self._places[name]
        theirs = place.theirs.removeprefix(self.arrangement.prefix if self._bare else "")
        return taken(place, len(part.shape), lambda slices: self.files.read(theirs, slices), part)
