"""BERT: a bidirectional encoder with post-norm, learned positions, segments and a masked head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs
from scaling.arrangements.encoder import (
    SELF_ATTENTION,
    layers_of,
    obstacles_of,
    places_of,
    settings,
    shape_for,
    shape_of,
)
from scaling.arrangements.gpt2 import ACTIVATIONS, their_activation
from scaling.config.run_config import RunConfig

CLASSES = ("BertForMaskedLM", "BertForPreTraining", "BertModel")


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "bert")
    model = shape_of(theirs, theirs.choose("hidden_act", ACTIVATIONS, default="gelu"))
    seq_len = theirs.take("max_position_embeddings", default=512)
    theirs.finish()
    classes = values.get("architectures") or [""]
    return settings(model, seq_len, sentence_order=classes[0] == CLASSES[1])


def config_for(config: RunConfig) -> dict[str, Any]:
    return {
        "architectures": [CLASSES[1] if config.objective.sentence_order else CLASSES[0]],
        **shape_for(config),
        "hidden_act": their_activation(config.model.activation),
    }


def obstacles(config: RunConfig) -> list[str]:
    return obstacles_of(
        config,
        activation=("gelu", "gelu_exact", "relu"),
        sentence_order=(True, False),
        d_head=(None,),
    )


def places(config: RunConfig) -> Iterator[Place]:
    others = {
        "masked_head.dense": "cls.predictions.transform.dense",
        "masked_head.norm": "cls.predictions.transform.LayerNorm",
    }
    if config.objective.sentence_order:
        others |= {"pooler": "bert.pooler.dense", "order_head": "cls.seq_relationship"}
    layers = layers_of(config, "bert.encoder.layer")
    return places_of(config, "bert", layers, SELF_ATTENTION, others, "cls.predictions.bias")


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
