"""Mistral: Llama's layers, with attention in a sliding window by choice."""

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
from scaling.arrangements.rope import SCALINGS
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
    attention = window_from(theirs)
    return swiglu_from(theirs, model, attention, longest=131072)


def config_for(config: RunConfig) -> dict[str, Any]:
    return {
        "architectures": ["MistralForCausalLM"],
        **swiglu_for(config),
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
