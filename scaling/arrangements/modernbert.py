"""ModernBERT: a pre-norm encoder without biases, with gated GELU, rotary positions and layers in a
sliding window between others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs, unlike
from scaling.arrangements.gemma import two_bases
from scaling.arrangements.layer_types import attention_from, layer_types_for, with_pattern
from scaling.arrangements.rope import SCALINGS, scaling_for
from scaling.config.run_config import RunConfig
from scaling.planner.cost.lengths import lengths

_LOCAL, _FULL = "sliding_attention", "full_attention"


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "modernbert")
    n = theirs.take("num_hidden_layers", default=22)
    model = {
        "family": "bert",
        "n_layers": n,
        "d_model": theirs.take("hidden_size", default=768),
        "n_heads": theirs.take("num_attention_heads", default=12),
        "d_ff": theirs.take("intermediate_size", default=1152),
        "norm_eps": theirs.take("norm_eps", default=1e-5),
        "activation": theirs.choose("hidden_activation", {"gelu": "geglu_exact"}, default="gelu"),
        "tie_embeddings": theirs.expect("tie_word_embeddings", True),
        "norm": "layernorm",
        "norm_position": "pre",
        "first_norm": False,
        "n_segments": 0,
        "bias": False,
    }
    for key in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"):
        theirs.expect(key, False)
    theirs.expect("decoder_bias", True)
    theirs.expect("classifier_activation", "gelu")
    theirs.expect("position_embedding_type", "absolute")  # left from BERT, and not read
    theirs.changes_nothing("attention_dropout", "embedding_dropout", "mlp_dropout")
    theirs.changes_nothing("classifier_dropout", "classifier_pooling", "cls_token_id")
    theirs.changes_nothing("initializer_cutoff_factor", "deterministic_flash_attn")
    theirs.changes_nothing("sparse_prediction", "sparse_pred_ignore_index", "reference_compile")
    theirs.changes_nothing("repad_logits_with_grad", "layer_norm_eps", "sliding_window")
    every = theirs.take("global_attn_every_n_layers", default=3)
    usual = [_LOCAL if layer % every else _FULL for layer in range(n)]
    # positions to both sides, without the own one, which our window counts
    window = theirs.take("local_attention", default=128) // 2 + 1
    attention = attention_from(theirs, n, usual, window)
    seq_len = theirs.take("max_position_embeddings", default=8192)
    position = two_bases(theirs, seq_len, "global_rope_theta", 160000.0, "local_rope_theta")
    if "pattern" not in attention:
        position.pop("local_theta")
    theirs.finish()
    return {
        "model": model,
        "attention": attention,
        "position": position,
        "objective": {"kind": "masked_lm", "sentence_order": False},
        "train": {"seq_len": seq_len},
    }


def config_for(config: RunConfig) -> dict[str, Any]:
    model, attention, position = config.model, config.attention, config.position
    scaling = scaling_for(config) or {"rope_type": "default"}
    local_theta = position.local_theta or position.theta
    window = {} if attention.window is None else {"local_attention": 2 * (attention.window - 1)}
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.n_heads,
        "intermediate_size": model.ff_width,
        "max_position_embeddings": lengths(config).inputs,
        "hidden_activation": "gelu",
        "norm_eps": model.norm_eps,
        "attention_dropout": attention.dropout,
        "layer_types": layer_types_for(config),
        "rope_parameters": {
            _FULL: {"rope_theta": position.theta, **scaling},
            _LOCAL: {"rope_theta": local_theta, "rope_type": "default"},
        },
        **window,
    }


def obstacles(config: RunConfig) -> list[str]:
    return unlike(
        config,
        {
            "family": ("bert",),
            "norm": ("layernorm",),
            "norm_position": ("pre",),
            "first_norm": (False,),
            "bias": (False,),
            "position": ("rope",),
            "rope_scaling": SCALINGS,
            "local_theta": (config.position.local_theta,),
            "pattern": with_pattern(config),
            "n_segments": (0,),
            "activation": ("geglu_exact",),
            "tie_embeddings": (True,),
            "d_head": (None, config.model.d_model // config.model.n_heads),
            "n_kv_heads": (None, config.model.n_heads),
        },
    )


def places(config: RunConfig) -> Iterator[Place]:
    model = config.model
    q_width, ff_width = model.n_heads * model.head_width, model.ff_width
    yield Place("embedding.weight", "model.embeddings.tok_embeddings.weight")
    yield Place("embedding_norm.weight", "model.embeddings.norm.weight")
    for layer in range(model.n_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        if layer > 0:
            yield Place(f"{ours}.attention_norm.weight", f"{theirs}.attn_norm.weight")
        for part, name in enumerate("qkv"):
            rows = range(part * q_width, (part + 1) * q_width)
            fused = f"{theirs}.attn.Wqkv.weight"
            yield Place(f"{ours}.attention.{name}.weight", fused, rows=rows)
        yield Place(f"{ours}.attention.o.weight", f"{theirs}.attn.Wo.weight")
        yield Place(f"{ours}.feed_forward_norm.weight", f"{theirs}.mlp_norm.weight")
        for part, name in enumerate(("gate", "up")):
            rows = range(part * ff_width, (part + 1) * ff_width)
            yield Place(f"{ours}.feed_forward.{name}.weight", f"{theirs}.mlp.Wi.weight", rows=rows)
        yield Place(f"{ours}.feed_forward.down.weight", f"{theirs}.mlp.Wo.weight")
    yield Place("final_norm.weight", "model.final_norm.weight")
    yield Place("masked_head.dense.weight", "head.dense.weight")
    yield Place("masked_head.norm.weight", "head.norm.weight")
    yield Place("masked_head.bias", "decoder.bias")


def repeated(config: RunConfig) -> set[str]:
    return {"decoder.weight"}


MODERNBERT = Arrangement(
    "modernbert",
    ("ModernBertForMaskedLM", "ModernBertModel"),
    shape_from,
    config_for,
    obstacles,
    places,
    repeated,
    prefix="model.",
)
