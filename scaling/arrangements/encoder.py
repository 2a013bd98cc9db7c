"""What BERT and the encoders after it share: settings by the same keys, places of the same kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Place, Settings, Theirs, unlike
from scaling.config.run_config import RunConfig
from scaling.planner.cost.lengths import lengths

SELF_ATTENTION = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
"""A layer of BERT and RoBERTa: our names -> theirs."""


def shape_of(theirs: Theirs, activation: str) -> dict[str, Any]:
    """Our model group, for BERT and RoBERTa."""
    for key, value in (
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
        ("add_cross_attention", False),
    ):
        theirs.expect(key, value)
    theirs.changes_nothing("hidden_dropout_prob", "attention_probs_dropout_prob")
    return {
        "family": "bert",
        "n_layers": theirs.take("num_hidden_layers", default=12),
        "d_model": theirs.take("hidden_size", default=768),
        "n_heads": theirs.take("num_attention_heads", default=12),
        "d_ff": theirs.take("intermediate_size", default=3072),
        "norm_eps": theirs.take("layer_norm_eps", default=1e-12),
        "n_segments": theirs.take("type_vocab_size", default=2),
        "activation": activation,
        "tie_embeddings": theirs.expect("tie_word_embeddings", True),
        "norm": "layernorm",
        "norm_position": "post",
        "bias": True,
    }


def settings(
    model: Mapping[str, Any], seq_len: int, *, sentence_order: bool = False, **position: Any
) -> Settings:
    """All groups of an encoder with full attention and a table of seq_len positions."""
    return {
        "model": dict(model),
        "attention": {"kind": "full"},
        "position": {"kind": "learned", **position},
        "objective": {"kind": "masked_lm", "sentence_order": sentence_order},
        "train": {"seq_len": seq_len},
    }


def shape_for(config: RunConfig) -> dict[str, Any]:
    """Their keys for our model group."""
    model = config.model
    return {
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.n_heads,
        "intermediate_size": model.ff_width,
        "max_position_embeddings": lengths(config).inputs,
        "type_vocab_size": model.segments,
        "layer_norm_eps": model.norm_eps,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": config.attention.dropout,
    }


def obstacles_of(config: RunConfig, **wanted: tuple[object, ...]) -> list[str]:
    """Settings of ours that are none of these, of a post-norm encoder with learned positions and
    segments where nothing else is wanted."""
    model = config.model
    usual: dict[str, tuple[object, ...]] = {
        "family": ("bert",),
        "norm": ("layernorm",),
        "norm_position": ("post",),
        "bias": (True,),
        "position": ("learned",),
        "n_segments": (model.segments or "1 or more",),
        "tie_embeddings": (True,),
        "d_head": (None, model.d_model // model.n_heads),
        "n_kv_heads": (None, model.n_heads),
    }
    return unlike(config, usual | wanted)


def places_of(
    config: RunConfig,
    body: str,
    layers: Mapping[str, str],
    block: Mapping[str, str],
    others: Mapping[str, str],
    head_bias: str,
) -> Iterator[Place]:
    """Every parameter of an encoder.

    body: what begins their names of it. layers: our name of each layer -> theirs. block, others:
    our names within a layer, and outside of any, -> theirs. head_bias: theirs, of the logits.
    """
    tables = {"embedding": "word", "position.table": "position"}
    if config.model.segments:
        tables["segments"] = "token_type"
    for ours, theirs in tables.items():
        yield Place(f"{ours}.weight", f"{body}.embeddings.{theirs}_embeddings.weight")
    pairs = {"embedding_norm": f"{body}.embeddings.LayerNorm", **others}
    for our_layer, their_layer in layers.items():
        pairs |= {f"{our_layer}.{ours}": f"{their_layer}.{block[ours]}" for ours in block}
    for ours, theirs in pairs.items():
        for kind in ("weight", "bias"):
            yield Place(f"{ours}.{kind}", f"{theirs}.{kind}")
    yield Place("masked_head.bias", head_bias)


def layers_of(config: RunConfig, prefix: str) -> dict[str, str]:
    """Our name of each layer -> theirs, numbered alike."""
    return {f"blocks.{n}": f"{prefix}.{n}" for n in range(config.model.n_layers)}
