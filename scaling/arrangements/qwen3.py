"""Qwen 3: Llama's layers with norms of queries and keys."""

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
from scaling.arrangements.layer_types import with_pattern
from scaling.arrangements.qwen2 import windows_for, windows_from
from scaling.arrangements.rope import SCALINGS
from scaling.config.run_config import RunConfig


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "qwen3")
    model = shape_of(theirs, eps=1e-6, d_head=128) | {"qk_norm": "head"}
    if theirs.expect("attention_bias", False, True):
        model["attention_bias"] = "all"
    attention = windows_from(theirs, model["n_layers"])
    return swiglu_from(theirs, model, attention, longest=32768)


def config_for(config: RunConfig) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        **swiglu_for(config),
        **windows_for(config),
        "attention_bias": config.model.qkv_biased,
    }


def obstacles(config: RunConfig) -> list[str]:
    return obstacles_of(
        config,
        qk_norm=("head",),
        attention_bias=("all", "none"),
        pattern=with_pattern(config),
        rope_scaling=SCALINGS,
    )


QWEN3 = Arrangement(
    "qwen3",
    ("Qwen3ForCausalLM", "Qwen3Model"),
    shape_from,
    config_for,
    obstacles,
    places_of,
    repeated,
    prefix="model.",
)
