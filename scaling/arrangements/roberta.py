"""RoBERTa: BERT whose table of positions begins with rows for padding, with few or no segments to
tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs, unlike
from scaling.arrangements.bert import BLOCK
from scaling.arrangements.gpt2 import ACTIVATIONS
from scaling.config.run_config import RunConfig
from scaling.planner.cost.lengths import lengths


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "roberta")
    model = {
        "family": "bert",
        "n_layers": theirs.take("num_hidden_layers", default=12),
        "d_model": theirs.take("hidden_size", default=768),
        "n_heads": theirs.take("num_attention_heads", default=12),
        "d_ff": theirs.take("intermediate_size", default=3072),
        "norm_eps": theirs.take("layer_norm_eps", default=1e-12),
        "n_segments": theirs.take("type_vocab_size", default=2),
        # their head has the exact GELU whatever the layers have
        "activation": ACTIVATIONS[theirs.expect("hidden_act", "gelu")],
        "tie_embeddings": theirs.expect("tie_word_embeddings", True),
        "norm": "layernorm",
        "norm_position": "post",
        "bias": True,
    }
    theirs.expect("position_embedding_type", "absolute")
    theirs.expect("is_decoder", False)
    theirs.expect("add_cross_attention", False)
    theirs.changes_nothing("hidden_dropout_prob", "attention_probs_dropout_prob")
    first_row = theirs.take("pad_token_id", default=1) + 1
    seq_len = theirs.take("max_position_embeddings", default=512) - first_row
    theirs.finish()
    return {
        "model": model,
        "attention": {"kind": "full"},
        "position": {"kind": "learned", "first_row": first_row},
        "objective": {"kind": "masked_lm", "sentence_order": False},
        "train": {"seq_len": seq_len},
    }


def config_for(config: RunConfig) -> dict[str, Any]:
    model, first_row = config.model, config.position.first_row or 0
    return {
        "architectures": ["RobertaForMaskedLM"],
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.n_heads,
        "intermediate_size": model.ff_width,
        "max_position_embeddings": lengths(config).inputs + first_row,
        "pad_token_id": first_row - 1,  # their positions begin one row after it
        "type_vocab_size": model.segments,
        "hidden_act": "gelu",
        "layer_norm_eps": model.norm_eps,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": config.attention.dropout,
    }


def obstacles(config: RunConfig) -> list[str]:
    first_row = config.position.first_row
    return unlike(
        config,
        {
            "family": ("bert",),
            "norm": ("layernorm",),
            "norm_position": ("post",),
            "bias": (True,),
            "position": ("learned",),
            "first_row": (first_row if first_row else "1 or more",),
            "n_segments": (config.model.segments if config.model.segments else "1 or more",),
            "sentence_order": (False,),
            "activation": ("gelu_exact",),
            "tie_embeddings": (True,),
            "d_head": (None, config.model.d_model // config.model.n_heads),
            "n_kv_heads": (None, config.model.n_heads),
        },
    )


def places(config: RunConfig) -> Iterator[Place]:
    for ours, theirs in (
        ("embedding", "word"),
        ("segments", "token_type"),
        ("position.table", "position"),
    ):
        yield Place(f"{ours}.weight", f"roberta.embeddings.{theirs}_embeddings.weight")
    pairs = {"embedding_norm": "roberta.embeddings.LayerNorm"}
    pairs |= {
        f"blocks.{layer}.{ours}": f"roberta.encoder.layer.{layer}.{theirs}"
        for layer in range(config.model.n_layers)
        for ours, theirs in BLOCK.items()
    }
    pairs |= {"masked_head.dense": "lm_head.dense", "masked_head.norm": "lm_head.layer_norm"}
    for ours, theirs in pairs.items():
        for kind in ("weight", "bias"):
            yield Place(f"{ours}.{kind}", f"{theirs}.{kind}")
    yield Place("masked_head.bias", "lm_head.bias")


def repeated(config: RunConfig) -> set[str]:
    """The pooler is of other tasks, and read by nothing here."""
    return {
        "lm_head.decoder.weight",
        "lm_head.decoder.bias",
        "roberta.embeddings.position_ids",
        "roberta.embeddings.token_type_ids",
        "roberta.pooler.dense.weight",
        "roberta.pooler.dense.bias",
    }


ROBERTA = Arrangement(
    "roberta",
    ("RobertaForMaskedLM", "RobertaModel"),
    shape_from,
    config_for,
    obstacles,
    places,
    repeated,
    prefix="roberta.",
)
