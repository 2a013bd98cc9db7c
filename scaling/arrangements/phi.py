"""Phi 1, 1.5 and 2: attention and feed-forward layer behind one norm, rotary positions on a part of
each head, and a head with a bias."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs, unlike
from scaling.arrangements.decoder import settings
from scaling.arrangements.gpt2 import ACTIVATIONS, their_activation
from scaling.arrangements.rope import SCALINGS, rope_for, rope_from
from scaling.config.run_config import RunConfig

_BLOCK = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.dense",
    "attention_norm": "input_layernorm",
    "feed_forward.up": "mlp.fc1",
    "feed_forward.down": "mlp.fc2",
}


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "phi")
    n_heads = theirs.take("num_attention_heads")
    model = {
        "family": "gpt",
        "n_layers": theirs.take("num_hidden_layers"),
        "d_model": theirs.take("hidden_size"),
        "n_heads": n_heads,
        "n_kv_heads": theirs.take("num_key_value_heads", default=n_heads),
        "d_ff": theirs.take("intermediate_size"),
        "norm_eps": theirs.take("layer_norm_eps", default=1e-5),
        "activation": theirs.choose("hidden_act", ACTIVATIONS, default="gelu_new"),
        "tie_embeddings": theirs.take("tie_word_embeddings", default=False),
        "residual": "parallel_one_norm",
        "norm": "layernorm",
        "norm_position": "pre",
        "bias": True,
        "head_bias": True,
    }
    theirs.expect("qk_layernorm", False)
    theirs.changes_nothing("attention_dropout", "resid_pdrop", "embd_pdrop")
    seq_len = theirs.take("max_position_embeddings", default=2048)
    position = rope_from(theirs, seq_len=seq_len, fraction=0.5)
    theirs.finish()
    return settings(model, {"kind": "full"}, position, seq_len)


def config_for(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "architectures": ["PhiForCausalLM"],
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.kv_heads,
        "intermediate_size": model.ff_width,
        "max_position_embeddings": config.train.seq_len,
        "hidden_act": their_activation(model.activation),
        "layer_norm_eps": model.norm_eps,
        "partial_rotary_factor": config.position.rotary_fraction or 1.0,
        **rope_for(config),
    }


def obstacles(config: RunConfig) -> list[str]:
    return unlike(
        config,
        {
            "family": ("gpt",),
            "norm": ("layernorm",),
            "norm_position": ("pre",),
            "residual": ("parallel_one_norm",),
            "bias": (True,),
            "head_bias": (True,),
            "position": ("rope",),
            "rope_scaling": SCALINGS,
            "rotary_fraction": (config.position.rotary_fraction,),
            "activation": ("gelu", "gelu_exact", "relu", "silu"),
            "d_head": (None, config.model.d_model // config.model.n_heads),
        },
    )


def places(config: RunConfig) -> Iterator[Place]:
    yield Place("embedding.weight", "model.embed_tokens.weight")
    yield Place("head_bias", "lm_head.bias")
    if not config.model.tie_embeddings:
        yield Place("head.weight", "lm_head.weight")
    for kind in ("weight", "bias"):
        yield Place(f"final_norm.{kind}", f"model.final_layernorm.{kind}")
        for layer in range(config.model.n_layers):
            for ours, theirs in _BLOCK.items():
                yield Place(
                    f"blocks.{layer}.{ours}.{kind}", f"model.layers.{layer}.{theirs}.{kind}"
                )


def repeated(config: RunConfig) -> set[str]:
    buffers = {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        for layer in range(config.model.n_layers)
    }
    return buffers | ({"lm_head.weight"} if config.model.tie_embeddings else set())


PHI = Arrangement(
    "phi",
    ("PhiForCausalLM", "PhiModel"),
    shape_from,
    config_for,
    obstacles,
    places,
    repeated,
    prefix="model.",
)
