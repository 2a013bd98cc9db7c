"""Which choices of `model` go together, and with those of other groups."""

from __future__ import annotations

from scaling.config.attention import AttentionConfig
from scaling.config.model import ModelConfig, ObjectiveConfig


def check_parts(model: ModelConfig, attention: AttentionConfig, objective: ObjectiveConfig) -> None:
    """Raise ValueError, with the reason and what works, for choices that do not go together."""
    for broken in (_norms(model), _embeddings(model), _heads(model, attention, objective)):
        if broken is not None:
            raise ValueError(broken)


def _norms(model: ModelConfig) -> str | None:
    if model.residual != "serial" and model.norm_position != "pre":
        return (
            f"model.residual={model.residual} adds both sublayers to their input, which"
            f" norm_position={model.norm_position} would norm between them; use norm_position=pre"
        )
    if model.residual != "serial" and model.traits.encoder_and_decoder:
        return (
            f"model.residual={model.residual} has no place for the attention of a decoder to its"
            f" encoder, which model.family={model.family} has; use residual=serial"
        )
    if model.first_norm:
        return None
    if not model.input_normed or model.norm_position == "post" or model.share_layers:
        return (
            "model.first_norm=false leaves the first attention to the embedding's norm: it needs"
            " model.embedding_norm=true, norm_position=pre or sandwich, and share_layers=false"
        )
    return None


def _embeddings(model: ModelConfig) -> str | None:
    masked = model.traits.masked_head
    if model.factorised == "input" and not (masked and model.d_embedding):
        return (
            "model.factorised=input is of a masked model (family=bert) with model.d_embedding;"
            " use factorised=tokens"
        )
    if masked and model.embedding_norm is False:
        return f"model.embedding_norm=false, but model.family={model.family} always has that norm"
    if model.n_segments and not masked:
        return f"model.n_segments={model.n_segments}, but model.family={model.family} has none"
    return None


def _heads(
    model: ModelConfig, attention: AttentionConfig, objective: ObjectiveConfig
) -> str | None:
    if model.head_bias and model.traits.masked_head:
        return f"model.head_bias=true, but the head of model.family={model.family} has its own"
    if objective.sentence_order and model.segments < 2:
        return (
            f"objective.sentence_order=true tells two segments apart, and model.n_segments="
            f"{model.segments}; use 2"
        )
    if attention.score_width is not None and model.traits.unscaled_scores:
        return (
            f"attention.score_width={attention.score_width:g}, but model.family={model.family} does"
            " not divide its scores"
        )
    if attention.pattern is not None and model.share_layers:
        return (
            "attention.pattern has layers of two kinds, and model.share_layers=true has one layer"
        )
    return None
