"""GPT-2: learned positions, LayerNorm, biases, fused queries, keys and values, tied embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs, unlike
from scaling.config.run_config import RunConfig

ACTIVATIONS = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_exact",
    "relu": "relu",
}
"""Theirs -> ours. Of several words for one of ours, the first is written."""


def their_activation(ours: str) -> str:
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "gpt2")
    model = {
        "family": "gpt",
        "n_layers": theirs.take("n_layer"),
        "d_model": theirs.take("n_embd"),
        "n_heads": theirs.take("n_head"),
        "d_ff": theirs.take("n_inner", default=None),
        "norm_eps": theirs.take("layer_norm_epsilon", default=1e-5),
        "activation": theirs.choose("activation_function", ACTIVATIONS, default="gelu_new"),
        "tie_embeddings": theirs.expect("tie_word_embeddings", True),
        "norm": "layernorm",
        "norm_position": "pre",
        "bias": True,
    }
    theirs.expect("scale_attn_weights", True)
    theirs.expect("scale_attn_by_inverse_layer_idx", False)
    theirs.expect("add_cross_attention", False)
    theirs.changes_nothing("reorder_and_upcast_attn", "embd_pdrop", "attn_pdrop", "resid_pdrop")
    theirs.changes_nothing("summary_activation", "summary_first_dropout", "summary_type")
    theirs.changes_nothing("summary_proj_to_labels", "summary_use_proj", "n_ctx")
    seq_len = theirs.take("n_positions", default=1024)
    theirs.finish()
    return {
        "model": model,
        "attention": {"kind": "full"},
        "position": {"kind": "learned"},
        "objective": {"kind": "causal_lm"},
        "train": {"seq_len": seq_len},
    }


def config_for(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": model.n_layers,
        "n_embd": model.d_model,
        "n_head": model.n_heads,
        "n_inner": model.ff_width,
        "n_positions": config.train.seq_len,
        "activation_function": their_activation(model.activation),
        "layer_norm_epsilon": model.norm_eps,
    }


def obstacles(config: RunConfig) -> list[str]:
    return unlike(
        config,
        {
            "family": ("gpt",),
            "norm": ("layernorm",),
            "norm_position": ("pre",),
            "bias": (True,),
            "position": ("learned",),
            "activation": ("gelu", "gelu_exact", "relu"),
            "tie_embeddings": (True,),
            "d_head": (None,),
            "n_kv_heads": (None, config.model.n_heads),
        },
    )


def places(config: RunConfig) -> Iterator[Place]:
    width = config.model.d_model
    yield Place("embedding.weight", "transformer.wte.weight")
    yield Place("position.table.weight", "transformer.wpe.weight")
    for kind in ("weight", "bias"):
        yield Place(f"final_norm.{kind}", f"transformer.ln_f.{kind}")
        for layer in range(config.model.n_layers):
            ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
            yield Place(f"{ours}.attention_norm.{kind}", f"{theirs}.ln_1.{kind}")
            yield Place(f"{ours}.feed_forward_norm.{kind}", f"{theirs}.ln_2.{kind}")
            for part, name in enumerate("qkv"):
                rows = range(part * width, (part + 1) * width)
                fused = f"{theirs}.attn.c_attn.{kind}"
                yield Place(f"{ours}.attention.{name}.{kind}", fused, transposed=True, rows=rows)
            for mine, yours in (
                ("attention.o", "attn.c_proj"),
                ("feed_forward.up", "mlp.c_fc"),
                ("feed_forward.down", "mlp.c_proj"),
            ):
                yield Place(f"{ours}.{mine}.{kind}", f"{theirs}.{yours}.{kind}", transposed=True)


def repeated(config: RunConfig) -> set[str]:
    masks = {
        f"transformer.h.{layer}.attn.{name}"
        for layer in range(config.model.n_layers)
        for name in ("bias", "masked_bias")
    }
    return masks | {"lm_head.weight"}


GPT2 = Arrangement(
    "gpt2",
    ("GPT2LMHeadModel", "GPT2Model"),
    shape_from,
    config_for,
    obstacles,
    places,
    repeated,
    prefix="transformer.",
)
