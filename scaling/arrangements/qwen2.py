"""Qwen 2 and 2.5: Llama's layers with biases on queries, keys and values alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Settings, Theirs
from scaling.arrangements.decoder import (
    gate_for,
    obstacles_of,
    places_of,
    repeated,
    settings,
    shape_for,
    shape_of,
)
from scaling.arrangements.layer_types import attention_from, layer_types_for, with_pattern
from scaling.arrangements.rope import SCALINGS, rope_for, rope_from
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
    model["activation"] = theirs.choose("hidden_act", {"silu": "swiglu"}, default="silu")
    attention = windows_from(theirs, model["n_layers"])
    seq_len = theirs.take("max_position_embeddings", default=32768)
    position = rope_from(theirs, seq_len=seq_len)
    theirs.finish()
    return settings(model, attention, position, seq_len)


def config_for(config: RunConfig) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        **shape_for(config),
        **rope_for(config),
        **windows_for(config),
        "hidden_act": gate_for(config),
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
