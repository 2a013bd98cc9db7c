"""Llama: rotary positions, RMSNorm, no biases, SwiGLU, grouped queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs, unlike
from scaling.config.run_config import RunConfig


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "llama")
    n_heads = theirs.take("num_attention_heads")
    model = {
        "family": "gpt",
        "n_layers": theirs.take("num_hidden_layers"),
        "d_model": theirs.take("hidden_size"),
        "n_heads": n_heads,
        "n_kv_heads": theirs.take("num_key_value_heads", default=n_heads),
        "d_head": theirs.take("head_dim", default=None),
        "d_ff": theirs.take("intermediate_size"),
        "norm_eps": theirs.take("rms_norm_eps", default=1e-6),
        "activation": theirs.choose("hidden_act", {"silu": "swiglu"}),
        "tie_embeddings": theirs.take("tie_word_embeddings", default=False),
        "norm": "rmsnorm",
        "norm_position": "pre",
        "bias": False,
    }
    theirs.expect("attention_bias", False)
    theirs.expect("mlp_bias", False)
    position = {"kind": "rope", "theta": rope_theta(theirs)}
    theirs.changes_nothing("attention_dropout", "rope_interleaved")
    seq_len = theirs.take("max_position_embeddings", default=2048)
    theirs.finish()
    return {
        "model": model,
        "attention": {"kind": "full"},
        "position": position,
        "objective": {"kind": "causal_lm"},
        "train": {"seq_len": seq_len},
    }


def rope_theta(theirs: Theirs) -> float:
    """The base of the wavelengths, which version 5 of the library writes into rope_parameters."""
    rope = theirs.take("rope_parameters", "rope_scaling", default={})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise theirs.refused("rope_scaling", kind, (None, "default"))
    return float(theirs.take("rope_theta", default=rope.get("rope_theta", 10000.0)))


def config_for(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_width,
        "intermediate_size": model.ff_width,
        "max_position_embeddings": config.train.seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "rope_theta": config.position.theta,
    }


def obstacles(config: RunConfig) -> list[str]:
    return unlike(
        config,
        {
            "family": ("gpt",),
            "norm": ("rmsnorm",),
            "norm_position": ("pre",),
            "bias": (False,),
            "position": ("rope",),
            "activation": ("swiglu",),
        },
    )


def places(config: RunConfig) -> Iterator[Place]:
    yield Place("embedding.weight", "model.embed_tokens.weight")
    yield Place("final_norm.weight", "model.norm.weight")
    if not config.model.tie_embeddings:
        yield Place("head.weight", "lm_head.weight")
    pairs = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}
    pairs |= {f"attention.{name}": f"self_attn.{name}_proj" for name in "qkvo"}
    pairs |= {f"feed_forward.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    for layer in range(config.model.n_layers):
        for ours, theirs in pairs.items():
            yield Place(f"blocks.{layer}.{ours}.weight", f"model.layers.{layer}.{theirs}.weight")


def repeated(config: RunConfig) -> set[str]:
    buffers = {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        for layer in range(config.model.n_layers)
    }
    return buffers | ({"lm_head.weight"} if config.model.tie_embeddings else set())


LLAMA = Arrangement(
    "llama",
    ("LlamaForCausalLM", "LlamaModel"),
    shape_from,
    config_for,
    obstacles,
    places,
    repeated,
    prefix="model.",
)
