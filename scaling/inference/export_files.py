"""Weights written to safetensors files, one file's worth of them in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from scaling.arrangements.base import Place
from scaling.config.run_config import RunConfig
from scaling.model.export.moves import by_their_name, joined, their_shape
from scaling.parallel.part import Part
from scaling.runs.files import write_json
from scaling.weights.reader import Reader, shapes_of
from scaling.weights.safetensors_files import INDEX_FILE, WEIGHTS_FILE


@dataclass(frozen=True)
class Weight:
    """A weight of the whole model that is not in memory until it is asked for, as fp32."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def our_weights(config: RunConfig, reader: Reader) -> Iterator[Weight]:
    """The weights under our names."""
    for name, shape in shapes_of(config).items():

        def read(name: str = name, shape: tuple[int, ...] = shape) -> Tensor:
            return reader.read(name, Part.whole(shape))

        yield Weight(name, shape, read)


def their_weights(config: RunConfig, reader: Reader) -> Iterator[Weight]:
    """The weights under the names of the transformers library."""
    shapes = shapes_of(config)
    for name, places in by_their_name(config).items():

        def read(places: Sequence[Place] = places) -> Tensor:
            return joined(
                places, [reader.read(each.ours, Part.whole(shapes[each.ours])) for each in places]
            )

        yield Weight(name, their_shape(places, shapes), read)


def write_weights(
    directory: Path, weights: Sequence[Weight], dtype: torch.dtype, max_shard_bytes: int
) -> tuple[int, int]:
    """Write model.safetensors, or numbered files and their index as Hugging Face does; returns
    (bytes of weights, files).

    One file's worth of weights is in memory at a time, and of one weight what it is made of.
    """
    shards = list(_shards(weights, dtype.itemsize, max_shard_bytes))
    place: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = (
            WEIGHTS_FILE
            if len(shards) == 1
            else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        )
        save_file(
            {weight.name: weight.read().to(dtype) for weight in shard},
            directory / name,
            metadata={"format": "pt"},
        )
        place |= {weight.name: name for weight in shard}
    total_bytes = sum(prod(weight.shape) for weight in weights) * dtype.itemsize
    if len(shards) > 1:
        write_json(
            directory / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": place}
        )
    return total_bytes, len(shards)


def _shards(weights: Sequence[Weight], itemsize: int, limit: int) -> Iterator[list[Weight]]:
    """Group weights into files in order, as many as fit; one that is larger than the limit is
    alone."""
    shard: list[Weight] = []
    size = 0
    for weight in weights:
        weight_bytes = prod(weight.shape) * itemsize
        if shard and size + weight_bytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(weight)
        size += weight_bytes
    yield shard
