"""ALBERT: BERT with one layer for all, and a narrow input that is normed, then projected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs, unlike
from scaling.arrangements.gpt2 import ACTIVATIONS, their_activation
from scaling.config.run_config import RunConfig
from scaling.planner.cost.lengths import lengths

_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
_BLOCK = {
    "attention.q": "attention.query",
    "attention.k": "attention.key",
    "attention.v": "attention.value",
    "attention.o": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "feed_forward.up": "ffn",
    "feed_forward.down": "ffn_output",
    "feed_forward_norm": "full_layer_layer_norm",
}


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "albert")
    width, narrow = (
        theirs.take("hidden_size", default=4096),
        theirs.take("embedding_size", default=128),
    )
    if narrow == width:
        raise theirs.refused("embedding_size", narrow, (f"a number other than {width}",))
    model = {
        "family": "bert",
        "n_layers": theirs.take("num_hidden_layers", default=12),
        "d_model": width,
        "d_embedding": narrow,
        "factorised": "input",
        "share_layers": True,
        "n_heads": theirs.take("num_attention_heads", default=64),
        "d_ff": theirs.take("intermediate_size", default=16384),
        "norm_eps": theirs.take("layer_norm_eps", default=1e-12),
        "n_segments": theirs.take("type_vocab_size", default=2),
        "activation": theirs.choose("hidden_act", ACTIVATIONS, default="gelu_new"),
        "tie_embeddings": theirs.expect("tie_word_embeddings", True),
        "norm": "layernorm",
        "norm_position": "post",
        "bias": True,
    }
    theirs.expect("num_hidden_groups", 1)
    theirs.expect("inner_group_num", 1)
    theirs.expect("position_embedding_type", "absolute")
    theirs.changes_nothing("hidden_dropout_prob", "attention_probs_dropout_prob")
    theirs.changes_nothing("classifier_dropout_prob", "down_scale_factor", "gap_size")
    theirs.changes_nothing("net_structure_type", "num_memory_blocks", "layers_to_keep")
    seq_len = theirs.take("max_position_embeddings", default=512)
    theirs.finish()
    return {
        "model": model,
        "attention": {"kind": "full"},
        "position": {"kind": "learned"},
        "objective": {"kind": "masked_lm", "sentence_order": False},
        "train": {"seq_len": seq_len},
    }


def config_for(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "architectures": ["AlbertForMaskedLM"],
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
        "embedding_size": model.embedding_width,
        "num_attention_heads": model.n_heads,
        "intermediate_size": model.ff_width,
        "max_position_embeddings": lengths(config).inputs,
        "type_vocab_size": model.segments,
        "hidden_act": their_activation(model.activation),
        "layer_norm_eps": model.norm_eps,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": config.attention.dropout,
    }


def obstacles(config: RunConfig) -> list[str]:
    model = config.model
    return unlike(
        config,
        {
            "family": ("bert",),
            "norm": ("layernorm",),
            "norm_position": ("post",),
            "bias": (True,),
            "position": ("learned",),
            "share_layers": (True,),
            "factorised": ("input",),
            "d_embedding": (
                "another than d_model" if model.d_embedding == model.d_model else model.d_embedding,
            ),
            "n_segments": (model.segments if model.segments else "1 or more",),
            "sentence_order": (False,),
            "activation": ("gelu", "gelu_exact", "relu", "silu"),
            "tie_embeddings": (True,),
            "d_head": (None, model.d_model // model.n_heads),
            "n_kv_heads": (None, model.n_heads),
        },
    )


def places(config: RunConfig) -> Iterator[Place]:
    for ours, theirs in (
        ("embedding", "word"),
        ("segments", "token_type"),
        ("position.table", "position"),
    ):
        yield Place(f"{ours}.weight", f"albert.embeddings.{theirs}_embeddings.weight")
    pairs = {
        "embedding_norm": "albert.embeddings.LayerNorm",
        "input_projection": "albert.encoder.embedding_hidden_mapping_in",
        "masked_head.dense": "predictions.dense",
        "masked_head.norm": "predictions.LayerNorm",
    }
    pairs |= {f"blocks.0.{ours}": f"{_LAYER}.{theirs}" for ours, theirs in _BLOCK.items()}
    for ours, theirs in pairs.items():
        for kind in ("weight", "bias"):
            yield Place(f"{ours}.{kind}", f"{theirs}.{kind}")
    yield Place("masked_head.bias", "predictions.bias")


def repeated(config: RunConfig) -> set[str]:
    """The pooler and the head of sentence order are read by nothing here."""
    return {
        "predictions.decoder.weight",
        "predictions.decoder.bias",
        "albert.embeddings.position_ids",
        "albert.pooler.weight",
        "albert.pooler.bias",
        "sop_classifier.classifier.weight",
        "sop_classifier.classifier.bias",
    }


ALBERT = Arrangement(
    "albert",
    ("AlbertForMaskedLM", "AlbertModel"),
    shape_from,
    config_for,
    obstacles,
    places,
    repeated,
    prefix="albert.",
)
