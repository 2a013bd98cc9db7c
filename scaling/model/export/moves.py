"""Weights from our names to those of another library and back, one at a time or a part of one.

Only names, transposes, fused matrices and the order of rows differ: every number is the same on
both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scaling.arrangements.base import Arrangement, Place
from scaling.arrangements.table import arrangement_of
from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError
from scaling.parallel.part import Part

Slices = tuple[Any, ...]
"""What stands in the brackets of an indexed tensor: slices, behind the index of a stack."""


def to_transformers(config: RunConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights, as in named_parameters, under their names; contiguous copies. Tied matrices are
    given once."""
    return {
        theirs: joined(places, [weights[place.ours].detach() for place in places])
        for theirs, places in by_their_name(config).items()
    }


def from_transformers(config: RunConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their weights under our names. Raises ConfigError for one that is missing, and for one that
    would be left over."""
    arrangement = arrangement_of(config)
    places = list(arrangement.places(config))
    missing, extra = unmatched(arrangement, config, weights.keys())
    if missing or extra:
        raise ConfigError(
            f"the weights are not of this {arrangement.name} model: {_listed(missing, extra)}",
            where=f"model={config.model.name}",
        )
    return {place.ours: _whole(place, weights[place.theirs]) for place in places}


def _whole(place: Place, theirs: Tensor) -> Tensor:
    return taken(place, theirs.ndim - (place.index is not None), theirs.__getitem__)


def unmatched(
    arrangement: Arrangement, config: RunConfig, names: Any
) -> tuple[list[str], list[str]]:
    """Their weights that are missing among `names`, and those that would be left over."""
    used = {place.theirs for place in arrangement.places(config)}
    return sorted(used - set(names)), sorted(set(names) - used - arrangement.repeated(config))


def _listed(missing: Sequence[str], extra: Sequence[str]) -> str:
    first = f"it lacks {missing[0]}" if missing else f"it has {extra[0]}"
    n_more = len(missing) + len(extra) - 1
    return first + (f" and {n_more} more do not fit" if n_more else "")


def by_their_name(config: RunConfig) -> dict[str, list[Place]]:
    """The places in each of their weights, in the order of `Arrangement.places`."""
    found: dict[str, list[Place]] = {}
    for place in arrangement_of(config).places(config):
        found.setdefault(place.theirs, []).append(place)
    return found


def their_shape(places: Sequence[Place], shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """The shape of one of their weights, from the shapes of ours."""
    n_rows, rest = 0, tuple(shapes[places[0].ours][1:])
    for place in places:
        n_rows = max(n_rows, _end(place, shapes[place.ours][0]))
    whole = (n_rows, *rest)
    whole = whole[::-1] if places[0].transposed and len(whole) == 2 else whole
    stacked = [place.index for place in places if place.index is not None]
    return (max(stacked) + 1, *whole) if stacked else whole


def joined(places: Sequence[Place], values: Sequence[Tensor]) -> Tensor:
    """One of their weights, made of the `values` of its places; a contiguous copy."""
    shapes = {place.ours: tuple(value.shape) for place, value in zip(places, values, strict=True)}
    out = torch.zeros(their_shape(places, shapes), dtype=values[0].dtype, device=values[0].device)
    for place, value in zip(places, values, strict=True):
        target = out if place.index is None else out[place.index]
        if place.transposed and target.ndim == 2:
            target = target.t()
        if place.rows is None:
            target[: len(value)] = value
        else:
            target[torch.tensor(place.rows)] = value
    return out


def taken(
    place: Place, ndim: int, read: Callable[[Slices], Tensor], part: Part | None = None
) -> Tensor:
    """Our parameter, or the `part` of it, out of one of their weights; a contiguous copy.

    ndim: dims of our parameter. read: gives the rectangle of their weight that these slices cut
    out, so that no more is in memory than is asked for.
    """
    rows, columns = place.rows, slice(None)
    if part is not None and not part.is_whole:
        if part.dim == 0:
            rows = (range(part.shape[0]) if rows is None else rows)[part.first :][: part.length]
        else:
            columns = slice(part.first, part.first + part.length)
    low, high = (0, None) if rows is None else (min(rows, default=0), max(rows, default=-1) + 1)
    slices: Slices = (slice(low, high), columns)[:ndim]
    slices = slices[::-1] if place.transposed else slices
    value = read(slices if place.index is None else (place.index, *slices))
    value = value.t() if place.transposed and ndim == 2 else value
    if rows is not None and list(rows) != list(range(low, high or 0)):
        value = value[torch.tensor(rows) - low]
    return value.contiguous()


def _end(place: Place, n_rows: int) -> int:
    return n_rows if place.rows is None else max(place.rows) + 1
