"""Mistral: Llama's layers, with attention in a sliding window by choice."""

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
from scaling.arrangements.rope import SCALINGS, rope_for, rope_from
from scaling.config.run_config import RunConfig

ATTENTIONS = ("full", "gqa", "mqa", "local")


def window_from(theirs: Theirs) -> dict[str, Any]:
    """Our attention group for a window that all layers share."""
    window = theirs.take("sliding_window", default=None)
    return {"kind": "full"} if window is None else {"kind": "local", "window": window}


def window_for(config: RunConfig) -> int | None:
    return config.attention.window if config.attention.kind == "local" else None


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "mistral")
    model = shape_of(theirs, eps=1e-6)
    model["activation"] = theirs.choose("hidden_act", {"silu": "swiglu"}, default="silu")
    attention = window_from(theirs)
    seq_len = theirs.take("max_position_embeddings", default=131072)
    position = rope_from(theirs, seq_len=seq_len)
    theirs.finish()
    return settings(model, attention, position, seq_len)


def config_for(config: RunConfig) -> dict[str, Any]:
    return {
        "architectures": ["MistralForCausalLM"],
        **shape_for(config),
        **rope_for(config),
        "hidden_act": gate_for(config),
        "sliding_window": window_for(config),
    }


def obstacles(config: RunConfig) -> list[str]:
    return obstacles_of(config, attention=ATTENTIONS, rope_scaling=SCALINGS)


MISTRAL = Arrangement(
    "mistral",
    ("MistralForCausalLM", "MistralModel"),
    shape_from,
    config_for,
    obstacles,
    places_of,
    repeated,
    prefix="model.",
)
