"""Llama: rotary positions and their scalings, RMSNorm, SwiGLU, grouped queries, biases by
choice."""

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


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "llama")
    model = shape_of(theirs, eps=1e-6)
    model["activation"] = theirs.choose("hidden_act", {"silu": "swiglu"}, default="silu")
    model["bias"] = theirs.expect("mlp_bias", False, True)
    if (biased := theirs.expect("attention_bias", False, True)) != model["bias"]:
        model["attention_bias"] = "all" if biased else "none"
    seq_len = theirs.take("max_position_embeddings", default=2048)
    position = rope_from(theirs, seq_len=seq_len)
    theirs.finish()
    return settings(model, {"kind": "full"}, position, seq_len)


def config_for(config: RunConfig) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        **shape_for(config),
        **rope_for(config),
        "hidden_act": gate_for(config),
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
