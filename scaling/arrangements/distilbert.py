"""DistilBERT: BERT without segments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs
from scaling.arrangements.encoder import layers_of, obstacles_of, places_of, settings
from scaling.arrangements.gpt2 import ACTIVATIONS, their_activation
from scaling.config.run_config import RunConfig
from scaling.planner.cost.lengths import lengths

_BLOCK = {
    "attention.q": "attention.q_lin",
    "attention.k": "attention.k_lin",
    "attention.v": "attention.v_lin",
    "attention.o": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "feed_forward.up": "ffn.lin1",
    "feed_forward.down": "ffn.lin2",
    "feed_forward_norm": "output_layer_norm",
}
_EPS = 1e-12
"""The epsilon of every norm, fixed in their code."""


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "distilbert")
    model = {
        "family": "bert",
        "n_layers": theirs.take("n_layers", default=6),
        "d_model": theirs.take("dim", default=768),
        "n_heads": theirs.take("n_heads", default=12),
        "d_ff": theirs.take("hidden_dim", default=3072),
        "activation": theirs.choose("activation", ACTIVATIONS, default="gelu"),
        "tie_embeddings": theirs.expect("tie_word_embeddings", True),
        "norm": "layernorm",
        "norm_position": "post",
        "norm_eps": _EPS,
        "n_segments": 0,
        "bias": True,
    }
    # sinusoids are only what the table of positions begins with
    theirs.changes_nothing("sinusoidal_pos_embds", "tie_weights_", "dropout", "attention_dropout")
    theirs.changes_nothing("qa_dropout", "seq_classif_dropout")
    seq_len = theirs.take("max_position_embeddings", default=512)
    theirs.finish()
    return settings(model, seq_len)


def config_for(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "architectures": ["DistilBertForMaskedLM"],
        "n_layers": model.n_layers,
        "dim": model.d_model,
        "n_heads": model.n_heads,
        "hidden_dim": model.ff_width,
        "max_position_embeddings": lengths(config).inputs,
        "activation": their_activation(model.activation),
        "dropout": model.dropout,
        "attention_dropout": config.attention.dropout,
    }


def obstacles(config: RunConfig) -> list[str]:
    return obstacles_of(
        config,
        norm_eps=(_EPS,),
        n_segments=(0,),
        activation=("gelu", "gelu_exact", "relu", "silu"),
    )


def places(config: RunConfig) -> Iterator[Place]:
    others = {"masked_head.dense": "vocab_transform", "masked_head.norm": "vocab_layer_norm"}
    layers = layers_of(config, "distilbert.transformer.layer")
    return places_of(config, "distilbert", layers, _BLOCK, others, "vocab_projector.bias")


def repeated(config: RunConfig) -> set[str]:
    return {"vocab_projector.weight", "distilbert.embeddings.position_ids"}


DISTILBERT = Arrangement(
    "distilbert",
    ("DistilBertForMaskedLM", "DistilBertModel"),
    shape_from,
    config_for,
    obstacles,
    places,
    repeated,
    prefix="distilbert.",
)
