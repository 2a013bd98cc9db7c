"""RoBERTa: BERT whose table of positions begins with rows for padding, with few or no segments to
tell apart."""

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
from scaling.arrangements.gpt2 import ACTIVATIONS
from scaling.config.run_config import RunConfig


def shape_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "roberta")
    # their head has the exact GELU whatever the layers have
    model = shape_of(theirs, ACTIVATIONS[theirs.expect("hidden_act", "gelu")])
    first_row = theirs.take("pad_token_id", default=1) + 1
    seq_len = theirs.take("max_position_embeddings", default=512) - first_row
    theirs.finish()
    return settings(model, seq_len, first_row=first_row)


def config_for(config: RunConfig) -> dict[str, Any]:
    first_row, shape = config.position.first_row or 0, shape_for(config)
    return {
        "architectures": ["RobertaForMaskedLM"],
        **shape,
        "max_position_embeddings": shape["max_position_embeddings"] + first_row,
        "pad_token_id": first_row - 1,  # their positions begin one row after it
        "hidden_act": "gelu",
    }


def obstacles(config: RunConfig) -> list[str]:
    return obstacles_of(
        config,
        activation=("gelu_exact",),
        sentence_order=(False,),
        first_row=(config.position.first_row or "1 or more",),
    )


def places(config: RunConfig) -> Iterator[Place]:
    others = {"masked_head.dense": "lm_head.dense", "masked_head.norm": "lm_head.layer_norm"}
    layers = layers_of(config, "roberta.encoder.layer")
    return places_of(config, "roberta", layers, SELF_ATTENTION, others, "lm_head.bias")


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
