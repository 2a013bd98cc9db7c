"""Qwen 2 and 2.5: Llama's layers with biases on queries, keys and values alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Settings, Theirs
from scaling.arrangements.decoder import (
    obstacles_of,
    places_of,
    repeated,
    shape_of,
    swiglu_for,
    swiglu_from,
)
from scaling.arrangements.layer_types import attention_from, layer_types_for, with_pattern
from scaling.arrangements.rope import SCALINGS
from scaling.config.run_config import RunConfig


def windows_from(theirs: Theirs, n_layers: int) -> dict[str, Any]:
    """Our attention group: layers from max_window_layers on are local, where windows are used."""
    used = theirs.take("use_sliding_window", default=False)
    window = theirs.take("sliding_window", default=None)
    first = theirs.take("max_window_layers", default=28) if used else n_layers
    theirs.changes_nothing("max_window_layers")
    usual = ["full_attention"] * min(first, n_layers)
    usual += ["sliding_attention"] * (n_layers - len(usual))
    return attention_from(theirs, n_layers, usual, window)


def windows_for(config: RunConfig) -> dict[str, Any]:
    return {
        "use_sliding_window": config.attention.pattern is not None,
        "sliding_window": config.attention.window,
        "layer_types": layer_types_for(config),
    }


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "qwen2")
    model = shape_of(theirs, eps=1e-6) | {"attention_bias": "qkv"}
    attention = windows_from(theirs, model["n_layers"])
    return swiglu_from(theirs, model, attention, longest=32768)


def config_for(config: RunConfig) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        **swiglu_for(config),
        **windows_for(config),
    }


def obstacles(config: RunConfig) -> list[str]:
    return obstacles_of(
        config,
        attention_bias=("qkv",),
        pattern=with_pattern(config),
        rope_scaling=SCALINGS,
    )


QWEN2 = Arrangement(
    "qwen2",
    ("Qwen2ForCausalLM", "Qwen2Model"),
    shape_from,
    config_for,
    obstacles,
    places_of,
    repeated,
    prefix="model.",
)
