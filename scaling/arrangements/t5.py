"""T5: encoder and decoder with relative position biases, RMSNorm and no biases; version 1.1 has a
gated feed-forward layer and an untied head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs, unlike
from scaling.config.run_config import RunConfig

_ACTIVATIONS = {
    "gated-gelu": "geglu",
    "gated-silu": "swiglu",
    "relu": "relu",
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "silu": "silu",
}
"""Theirs -> ours; their gated-gelu is in the tanh form."""
_SIDES = {"encoder": ("SelfAttention",), "decoder": ("SelfAttention", "EncDecAttention")}


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "t5")
    n_layers = theirs.take("num_layers")
    # since version 5 of the library this tells an untied head from a tied one
    tied = theirs.take("scale_decoder_outputs", "tie_word_embeddings", default=True)
    model = {
        "family": "t5",
        "n_layers": n_layers,
        "d_model": theirs.take("d_model"),
        "n_heads": theirs.take("num_heads"),
        "d_head": theirs.take("d_kv"),
        "d_ff": theirs.take("d_ff"),
        "norm_eps": theirs.take("layer_norm_epsilon", default=1e-6),
        "activation": theirs.choose("feed_forward_proj", _ACTIVATIONS, default="relu"),
        "tie_embeddings": tied,
        "norm": "rmsnorm",
        "norm_position": "pre",
        "bias": False,
    }
    theirs.expect("num_decoder_layers", n_layers)
    theirs.changes_nothing(
        "dropout_rate", "n_positions", "is_gated_act", "dense_act_fn", "is_decoder"
    )
    position = {
        "kind": "relative_bias",
        "n_buckets": theirs.take("relative_attention_num_buckets", default=32),
        "max_distance": theirs.take("relative_attention_max_distance", default=128),
    }
    theirs.finish()
    return {
        "model": model,
        "attention": {"kind": "full"},
        "position": position,
        "objective": {"kind": "span_corruption"},
        "train": {},
    }


def config_for(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "num_layers": model.n_layers,
        "num_decoder_layers": model.n_layers,
        "d_model": model.d_model,
        "num_heads": model.n_heads,
        "d_kv": model.head_width,
        "d_ff": model.ff_width,
        "relative_attention_num_buckets": config.position.n_buckets,
        "relative_attention_max_distance": config.position.max_distance,
        "feed_forward_proj": next(k for k, v in _ACTIVATIONS.items() if v == model.activation),
        "layer_norm_epsilon": model.norm_eps,
        "dropout_rate": model.dropout,
    }


def obstacles(config: RunConfig) -> list[str]:
    return unlike(
        config,
        {
            "family": ("t5",),
            "norm": ("rmsnorm",),
            "norm_position": ("pre",),
            "bias": (False,),
            "position": ("relative_bias",),
            "activation": tuple(_ACTIVATIONS.values()),
            "n_kv_heads": (None, config.model.n_heads),
        },
    )


def places(config: RunConfig) -> Iterator[Place]:
    model = config.model
    yield Place("embedding.weight", "shared.weight")
    if not model.tie_embeddings:
        yield Place("head.weight", "lm_head.weight")
    wide = (
        {"gate": "wi_0", "up": "wi_1", "down": "wo"} if model.gated else {"up": "wi", "down": "wo"}
    )
    for side, attentions in _SIDES.items():
        first = f"{side}.block.0.layer.0.SelfAttention"
        yield Place(f"{side}.position.table.weight", f"{first}.relative_attention_bias.weight")
        yield Place(f"{side}.final_norm.weight", f"{side}.final_layer_norm.weight")
        for layer in range(model.n_layers):
            ours, theirs = f"{side}.blocks.{layer}", f"{side}.block.{layer}.layer"
            for index, kind in enumerate(attentions):
                name = "attention" if kind == "SelfAttention" else "cross_attention"
                yield Place(f"{ours}.{name}_norm.weight", f"{theirs}.{index}.layer_norm.weight")
                for matrix in "qkvo":
                    yield Place(
                        f"{ours}.{name}.{matrix}.weight",
                        f"{theirs}.{index}.{kind}.{matrix}.weight",
                    )
            last = f"{theirs}.{len(attentions)}"
            yield Place(f"{ours}.feed_forward_norm.weight", f"{last}.layer_norm.weight")
            for matrix, name in wide.items():
                yield Place(
                    f"{ours}.feed_forward.{matrix}.weight", f"{last}.DenseReluDense.{name}.weight"
                )


def repeated(config: RunConfig) -> set[str]:
    tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    return tied | ({"lm_head.weight"} if config.model.tie_embeddings else set())


T5 = Arrangement(
    "t5", ("T5ForConditionalGeneration",), shape_from, config_for, obstacles, places, repeated
)
