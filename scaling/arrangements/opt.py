"""OPT: GPT-2's layers with ReLU, and a table of positions that begins with two unread rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs, unlike
from scaling.arrangements.decoder import settings
from scaling.arrangements.gpt2 import ACTIVATIONS, their_activation
from scaling.config.run_config import RunConfig

FIRST_ROW = 2
"""Rows before the first position's, in their code (OPTLearnedPositionalEmbedding)."""

_BLOCK = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "feed_forward.up": "fc1",
    "feed_forward.down": "fc2",
    "feed_forward_norm": "final_layer_norm",
}


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "opt")
    width = theirs.take("hidden_size", default=768)
    pre_norm = theirs.expect("do_layer_norm_before", True, False)
    model = {
        "family": "gpt",
        "n_layers": theirs.take("num_hidden_layers", default=12),
        "d_model": width,
        "n_heads": theirs.take("num_attention_heads", default=12),
        "d_ff": theirs.take("ffn_dim", default=3072),
        "activation": theirs.choose("activation_function", ACTIVATIONS, default="relu"),
        "tie_embeddings": theirs.take("tie_word_embeddings", default=True),
        "norm": "layernorm",
        "norm_position": "pre" if pre_norm else "post",
        "norm_eps": 1e-5,
        "bias": True,
    }
    theirs.expect("word_embed_proj_dim", width)
    theirs.expect("enable_bias", True)
    theirs.expect("layer_norm_elementwise_affine", True)
    theirs.expect("_remove_final_layer_norm", False)
    theirs.changes_nothing("dropout", "attention_dropout", "layerdrop", "init_std", "prefix")
    theirs.changes_nothing("activation_dropout")
    seq_len = theirs.take("max_position_embeddings", default=2048)
    theirs.finish()
    position = {"kind": "learned", "first_row": FIRST_ROW}
    return settings(model, {"kind": "full"}, position, seq_len)


def config_for(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "architectures": ["OPTForCausalLM"],
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
        "word_embed_proj_dim": model.d_model,
        "num_attention_heads": model.n_heads,
        "ffn_dim": model.ff_width,
        "max_position_embeddings": config.train.seq_len,
        "activation_function": their_activation(model.activation),
        "do_layer_norm_before": model.norm_position == "pre",
    }


def obstacles(config: RunConfig) -> list[str]:
    return unlike(
        config,
        {
            "family": ("gpt",),
            "norm": ("layernorm",),
            "norm_position": ("pre", "post"),
            "norm_eps": (1e-5,),
            "bias": (True,),
            "position": ("learned",),
            "first_row": (FIRST_ROW,),
            "activation": ("gelu", "gelu_exact", "relu", "silu"),
            "d_head": (None, config.model.d_model // config.model.n_heads),
            "n_kv_heads": (None, config.model.n_heads),
        },
    )


def places(config: RunConfig) -> Iterator[Place]:
    yield Place("embedding.weight", "model.decoder.embed_tokens.weight")
    yield Place("position.table.weight", "model.decoder.embed_positions.weight")
    if not config.model.tie_embeddings:
        yield Place("head.weight", "lm_head.weight")
    pairs = {
        f"blocks.{layer}.{ours}": f"model.decoder.layers.{layer}.{theirs}"
        for layer in range(config.model.n_layers)
        for ours, theirs in _BLOCK.items()
    }
    if config.model.norm_position == "pre":
        pairs["final_norm"] = "model.decoder.final_layer_norm"
    for ours, theirs in pairs.items():
        for kind in ("weight", "bias"):
            yield Place(f"{ours}.{kind}", f"{theirs}.{kind}")


def repeated(config: RunConfig) -> set[str]:
    return {"lm_head.weight"} if config.model.tie_embeddings else set()


OPT = Arrangement(
    "opt",
    ("OPTForCausalLM", "OPTModel"),
    shape_from,
    config_for,
    obstacles,
    places,
    repeated,
    prefix="model.",
)
