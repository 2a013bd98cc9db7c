"""Mixtral and Qwen 3 MoE: layers whose feed-forward part is a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs
from scaling.arrangements.decoder import (
    obstacles_of,
    places_of,
    repeated,
    shape_of,
    swiglu_for,
    swiglu_from,
)
from scaling.arrangements.mistral import ATTENTIONS, window_for, window_from
from scaling.arrangements.rope import SCALINGS
from scaling.config.run_config import RunConfig


def mixtral_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "mixtral")
    model = shape_of(theirs, eps=1e-5) | {
        "n_experts": theirs.take("num_local_experts", "num_experts", default=8),
        "experts_per_token": theirs.take("num_experts_per_tok", default=2),
        "expert_weights": "sum_to_one",
    }
    theirs.expect("router_jitter_noise", 0.0)
    theirs.changes_nothing("output_router_logits", "router_aux_loss_coef")
    attention = window_from(theirs)
    return swiglu_from(theirs, model, attention, longest=131072, theta=1e6)


def mixtral_for(config: RunConfig) -> dict[str, Any]:
    return {
        "architectures": ["MixtralForCausalLM"],
        **swiglu_for(config),
        "sliding_window": window_for(config),
        "num_local_experts": config.model.n_experts,
        "num_experts_per_tok": config.model.experts_per_token,
    }


def mixtral_obstacles(config: RunConfig) -> list[str]:
    return obstacles_of(
        config,
        attention=ATTENTIONS,
        rope_scaling=SCALINGS,
        n_experts=_several(config),
        expert_weights=("sum_to_one",),
    )


def mixtral_places(config: RunConfig) -> Iterator[Place]:
    names = {"gate": "w1", "up": "w3", "down": "w2"}
    router = {"feed_forward.router": "block_sparse_moe.gate"}
    experts = {
        f"feed_forward.experts.{number}.{ours}": f"block_sparse_moe.experts.{number}.{theirs}"
        for number in range(config.model.n_experts)
        for ours, theirs in names.items()
    }
    return places_of(config, feed_forward=router | experts)


def qwen3_moe_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "qwen3_moe")
    model = shape_of(theirs, eps=1e-6) | {
        "qk_norm": "head",
        "n_experts": theirs.take("num_experts", "num_local_experts", default=128),
        "experts_per_token": theirs.take("num_experts_per_tok", default=8),
        "d_ff": theirs.take("moe_intermediate_size", default=768),
    }
    normed = theirs.expect("norm_topk_prob", False, True)
    model["expert_weights"] = "sum_to_one" if normed else "softmax"
    if theirs.expect("attention_bias", False, True):
        model["attention_bias"] = "all"
    theirs.expect("decoder_sparse_step", 1)
    theirs.expect("mlp_only_layers", [])
    theirs.expect("use_sliding_window", False)
    theirs.changes_nothing("sliding_window", "max_window_layers")
    theirs.changes_nothing("output_router_logits", "router_aux_loss_coef")
    return swiglu_from(theirs, model, {"kind": "full"}, longest=32768)


def qwen3_moe_for(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        **swiglu_for(config),
        "attention_bias": model.qkv_biased,
        "moe_intermediate_size": model.ff_width,
        "num_experts": model.n_experts,
        "num_experts_per_tok": model.experts_per_token,
        "norm_topk_prob": model.sum_to_one,
    }


def qwen3_moe_obstacles(config: RunConfig) -> list[str]:
    return obstacles_of(
        config,
        qk_norm=("head",),
        attention_bias=("all", "none"),
        rope_scaling=SCALINGS,
        n_experts=_several(config),
        expert_weights=("sum_to_one", "softmax"),
    )


def qwen3_moe_places(config: RunConfig) -> Iterator[Place]:
    experts = {
        f"feed_forward.experts.{number}.{name}": f"mlp.experts.{number}.{name}_proj"
        for number in range(config.model.n_experts)
        for name in ("gate", "up", "down")
    }
    return places_of(config, feed_forward={"feed_forward.router": "mlp.gate"} | experts)


def _several(config: RunConfig) -> tuple[object, ...]:
    return (config.model.n_experts if config.model.n_experts > 1 else "2 or more",)


MIXTRAL = Arrangement(
    "mixtral",
    ("MixtralForCausalLM", "MixtralModel"),
    mixtral_from,
    mixtral_for,
    mixtral_obstacles,
    mixtral_places,
    repeated,
    prefix="model.",
)
QWEN3_MOE = Arrangement(
    "qwen3_moe",
    ("Qwen3MoeForCausalLM", "Qwen3MoeModel"),
    qwen3_moe_from,
    qwen3_moe_for,
    qwen3_moe_obstacles,
    qwen3_moe_places,
    repeated,
    prefix="model.",
)
