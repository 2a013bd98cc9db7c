"""Llama: rotary positions and their scalings, RMSNorm, SwiGLU, grouped queries, biases by
choice."""

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


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "llama")
    model = shape_of(theirs, eps=1e-6)
    model["bias"] = theirs.expect("mlp_bias", False, True)
    if (biased := theirs.expect("attention_bias", False, True)) != model["bias"]:
        model["attention_bias"] = "all" if biased else "none"
    return swiglu_from(theirs, model, {"kind": "full"}, longest=2048)


def config_for(config: RunConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        **swiglu_for(config),
        "attention_bias": config.model.qkv_biased,
        "mlp_bias": config.model.bias,
    }


def obstacles(config: RunConfig) -> list[str]:
    return obstacles_of(
        config,
        bias=(False, True),
        attention_bias=("all", "none"),
        rope_scaling=SCALINGS,
    )


LLAMA = Arrangement(
    "llama",
    ("LlamaForCausalLM", "LlamaModel"),
    shape_from,
    config_for,
    obstacles,
    places_of,
    repeated,
    prefix="model.",
)
