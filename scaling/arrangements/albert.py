"""ALBERT: BERT with one layer for all, and a narrow input that is normed, then projected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs
from scaling.arrangements.encoder import obstacles_of, places_of, settings, shape_for
from scaling.arrangements.gpt2 import ACTIVATIONS, their_activation
from scaling.config.run_config import RunConfig

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
    return settings(model, seq_len)


def config_for(config: RunConfig) -> dict[str, Any]:
    return {
        "architectures": ["AlbertForMaskedLM"],
        **shape_for(config),
        "embedding_size": config.model.embedding_width,
        "hidden_act": their_activation(config.model.activation),
    }


def obstacles(config: RunConfig) -> list[str]:
    model = config.model
    return obstacles_of(
        config,
        share_layers=(True,),
        factorised=("input",),
        d_embedding=(
            "another than d_model" if model.d_embedding == model.d_model else model.d_embedding,
        ),
        sentence_order=(False,),
        activation=("gelu", "gelu_exact", "relu", "silu"),
    )


def places(config: RunConfig) -> Iterator[Place]:
    others = {
        "input_projection": "albert.encoder.embedding_hidden_mapping_in",
        "masked_head.dense": "predictions.dense",
        "masked_head.norm": "predictions.LayerNorm",
    }
    layers = {"blocks.0": _LAYER}  # one for all
    return places_of(config, "albert", layers, _BLOCK, others, "predictions.bias")


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
