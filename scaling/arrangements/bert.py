"""BERT: a bidirectional encoder with post-norm, learned positions, segments and a masked head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs, unlike
from scaling.arrangements.gpt2 import ACTIVATIONS, their_activation
from scaling.config.run_config import RunConfig
from scaling.planner.cost.lengths import lengths

CLASSES = ("BertForMaskedLM", "BertForPreTraining", "BertModel")


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "bert")
    model = {
        "family": "bert",
        "n_layers": theirs.take("num_hidden_layers", default=12),
        "d_model": theirs.take("hidden_size", default=768),
        "n_heads": theirs.take("num_attention_heads", default=12),
        "d_ff": theirs.take("intermediate_size", default=3072),
        "norm_eps": theirs.take("layer_norm_eps", default=1e-12),
        "activation": theirs.choose("hidden_act", ACTIVATIONS, default="gelu"),
        "tie_embeddings": theirs.expect("tie_word_embeddings", True),
        "n_segments": theirs.take("type_vocab_size", default=2),
        "norm": "layernorm",
        "norm_position": "post",
        "bias": True,
    }
    theirs.expect("position_embedding_type", "absolute")
    theirs.expect("is_decoder", False)
    theirs.expect("add_cross_attention", False)
    theirs.changes_nothing("hidden_dropout_prob", "attention_probs_dropout_prob")
    seq_len = theirs.take("max_position_embeddings", default=512)
    theirs.finish()
    classes = values.get("architectures") or [""]
    return {
        "model": model,
        "attention": {"kind": "full"},
        "position": {"kind": "learned"},
        "objective": {"kind": "masked_lm", "sentence_order": classes[0] == CLASSES[1]},
        "train": {"seq_len": seq_len},
    }


def config_for(config: RunConfig) -> dict[str, Any]:
    model, order = config.model, config.objective.sentence_order
    return {
        "architectures": [CLASSES[1] if order else CLASSES[0]],
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
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
    return unlike(
        config,
        {
            "family": ("bert",),
            "norm": ("layernorm",),
            "norm_position": ("post",),
            "bias": (True,),
            "position": ("learned",),
            "activation": ("gelu", "gelu_exact", "relu"),
            "tie_embeddings": (True,),
            "n_segments": (config.model.segments or "1 or more",),
            "sentence_order": (True, False),
            "d_head": (None,),
            "n_kv_heads": (None, config.model.n_heads),
        },
    )


def places(config: RunConfig) -> Iterator[Place]:
    for ours, theirs in (
        ("embedding", "word"),
        ("segments", "token_type"),
        ("position.table", "position"),
    ):
        yield Place(f"{ours}.weight", f"bert.embeddings.{theirs}_embeddings.weight")
    pairs = {"embedding_norm": "bert.embeddings.LayerNorm"}
    pairs |= {
        f"blocks.{layer}.{ours}": f"bert.encoder.layer.{layer}.{theirs}"
        for layer in range(config.model.n_layers)
        for ours, theirs in BLOCK.items()
    }
    pairs["masked_head.dense"] = "cls.predictions.transform.dense"
    pairs["masked_head.norm"] = "cls.predictions.transform.LayerNorm"
    if config.objective.sentence_order:
        pairs |= {"pooler": "bert.pooler.dense", "order_head": "cls.seq_relationship"}
    for ours, theirs in pairs.items():
        for kind in ("weight", "bias"):
            yield Place(f"{ours}.{kind}", f"{theirs}.{kind}")
    yield Place("masked_head.bias", "cls.predictions.bias")


BLOCK = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


def repeated(config: RunConfig) -> set[str]:
    """The pooler of a model whose run does not tell sentence order is read by nothing."""
    unread = (
        set()
        if config.objective.sentence_order
        else {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    )
    return unread | {
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
        "bert.embeddings.position_ids",
    }


BERT = Arrangement(
    "bert", CLASSES, shape_from, config_for, obstacles, places, repeated, prefix="bert."
)
