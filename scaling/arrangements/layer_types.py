"""Layers of two kinds in others' config.json: a list with the kind of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scaling.arrangements.base import Theirs
from scaling.config.run_config import RunConfig

_KINDS = {"sliding_attention": "local", "full_attention": "full"}
"""Theirs -> ours."""


def attention_from(
    theirs: Theirs, n_layers: int, usual: Sequence[str], window: int | None
) -> dict[str, Any]:
    """Our attention group for their layer_types, which are `usual` where the key is missing."""
    types = list(theirs.take("layer_types", default=usual))
    for kind in types:
        if kind not in _KINDS:
            raise theirs.refused("layer_types", kind, tuple(_KINDS))
    if len(types) != n_layers:
        raise theirs.refused("layer_types", types, (f"a list of {n_layers}",))
    kinds = [_KINDS[kind] for kind in types]
    if "local" not in kinds:
        return {"kind": "full"}
    if window is None:
        raise theirs.refused("sliding_window", None, ("a number",))
    return {"kind": "full", "pattern": period_of(kinds), "window": window}


def period_of(kinds: Sequence[str]) -> list[str]:
    """The shortest run of kinds that makes the list when it is repeated."""
    for n in range(1, len(kinds)):
        if all(kind == kinds[layer % n] for layer, kind in enumerate(kinds)):
            return list(kinds[:n])
    return list(kinds)


def layer_types_for(config: RunConfig) -> list[str]:
    """Their list for our layers."""
    names = {"local": "sliding_attention"}
    attention = config.attention
    return [
        names.get(attention.kind_at(layer), "full_attention")
        for layer in range(config.model.n_layers)
    ]


def with_pattern(config: RunConfig) -> tuple[object, ...]:
    """Patterns of ours that have a list: all."""
    return (config.attention.pattern,)
