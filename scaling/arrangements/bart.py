"""BART and Marian: post-norm encoder and decoder with one embedding, and a bias for each logit.

BART has learned positions and a norm of the embedded input, Marian sinusoids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scaling.arrangements.base import Arrangement, Place, Settings, Theirs, unlike
from scaling.arrangements.gpt2 import ACTIVATIONS, their_activation
from scaling.config.run_config import RunConfig

FIRST_ROW = 2
"""Rows of BART's table before the first position's, in their code."""
_SILU = {"swish": "silu", **ACTIVATIONS}
_GENERATION = (
    *("bad_words_ids", "early_stopping", "forced_bos_token_id", "forced_eos_token_id"),
    *("length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beams"),
)
"""Keys of generation, which earlier versions of the library kept here."""
_DROPOUTS = (
    *("activation_dropout", "attention_dropout", "classif_dropout", "dropout", "init_std"),
    *("decoder_layerdrop", "encoder_layerdrop"),
)


def _model(theirs: Theirs) -> dict[str, Any]:
    n_layers, n_heads, d_ff = (
        theirs.take("encoder_layers", default=12),
        theirs.take("encoder_attention_heads", default=16),
        theirs.take("encoder_ffn_dim", default=4096),
    )
    model = {
        "family": "transformer",
        "n_layers": theirs.expect("decoder_layers", n_layers, default=12),
        "n_heads": theirs.expect("decoder_attention_heads", n_heads, default=16),
        "d_ff": theirs.expect("decoder_ffn_dim", d_ff, default=4096),
        "d_model": theirs.take("d_model", default=1024),
        "activation": theirs.choose("activation_function", _SILU, default="gelu"),
        "scale_embedding": theirs.expect("scale_embedding", False, True),
        "tie_embeddings": theirs.expect("tie_word_embeddings", True),
        "norm": "layernorm",
        "norm_position": "post",
        "norm_eps": 1e-5,
        "bias": True,
        "head_bias": True,
    }
    theirs.expect("normalize_before", False)
    theirs.expect("add_final_layer_norm", False)
    # num_hidden_layers repeats encoder_layers; the bias of logits is there and may be zero; their
    # code does not read extra_pos_embeddings
    theirs.changes_nothing("num_hidden_layers", "add_bias_logits", "num_labels", "is_decoder")
    theirs.changes_nothing("extra_pos_embeddings")
    theirs.changes_nothing(*_GENERATION, *_DROPOUTS)
    return model


def _settings(model: dict[str, Any], position: dict[str, Any], seq_len: int) -> Settings:
    return {
        "model": model,
        "attention": {"kind": "full"},
        "position": position,
        "objective": {"kind": "seq2seq"},
        "train": {"seq_len": seq_len},
    }


def bart_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "bart")
    model = _model(theirs) | {"embedding_norm": True}
    theirs.expect("normalize_embedding", True)
    seq_len = theirs.take("max_position_embeddings", default=1024)
    theirs.finish()
    return _settings(model, {"kind": "learned", "first_row": FIRST_ROW}, seq_len)


def marian_from(values: Mapping[str, Any]) -> Settings:
    theirs = Theirs(values, "marian")
    model = _model(theirs)
    theirs.expect("normalize_embedding", False)
    theirs.expect("static_position_embeddings", True)
    theirs.expect("share_encoder_decoder_embeddings", True)
    theirs.expect("decoder_vocab_size", theirs.take("vocab_size"))
    seq_len = theirs.take("max_position_embeddings", default=1024)
    theirs.finish()
    return _settings(model, {"kind": "sinusoidal", "halves": True}, seq_len)


def _config_for(config: RunConfig) -> dict[str, Any]:
    model = config.model
    sides = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (
            ("layers", model.n_layers),
            ("attention_heads", model.n_heads),
            ("ffn_dim", model.ff_width),
        )
    }
    silu = model.activation == "silu"
    return {
        **sides,
        "d_model": model.d_model,
        "max_position_embeddings": config.train.seq_len,
        "activation_function": "swish" if silu else their_activation(model.activation),
        "scale_embedding": config.scales_embedding,
        "dropout": model.dropout,
        "attention_dropout": config.attention.dropout,
    }


def bart_for(config: RunConfig) -> dict[str, Any]:
    return {"architectures": ["BartForConditionalGeneration"], **_config_for(config)}


def marian_for(config: RunConfig) -> dict[str, Any]:
    return {"architectures": ["MarianMTModel"], **_config_for(config)}


def _obstacles(config: RunConfig, wanted: Mapping[str, tuple[object, ...]]) -> list[str]:
    model = config.model
    usual: dict[str, tuple[object, ...]] = {
        "family": ("transformer",),
        "norm": ("layernorm",),
        "norm_position": ("post",),
        "norm_eps": (1e-5,),
        "bias": (True,),
        "head_bias": (True,),
        "scale_embedding": (True, False),
        "activation": ("gelu", "gelu_exact", "relu", "silu"),
        "tie_embeddings": (True,),
        "d_head": (None, model.d_model // model.n_heads),
        "n_kv_heads": (None, model.n_heads),
    }
    return unlike(config, usual | dict(wanted))


def bart_obstacles(config: RunConfig) -> list[str]:
    return _obstacles(
        config,
        {"position": ("learned",), "first_row": (FIRST_ROW,), "embedding_norm": (True,)},
    )


def marian_obstacles(config: RunConfig) -> list[str]:
    return _obstacles(config, {"position": ("sinusoidal",), "halves": (True,), "theta": (10000.0,)})


def places(config: RunConfig) -> Iterator[Place]:
    yield Place("embedding.weight", "model.shared.weight")
    # theirs is a row of a matrix
    yield Place("head_bias", "final_logits_bias", index=0)
    pairs: dict[str, str] = {}
    for side, attentions in (
        ("encoder", {"attention": "self_attn"}),
        ("decoder", {"attention": "self_attn", "cross_attention": "encoder_attn"}),
    ):
        if config.position.kind == "learned":
            table = f"model.{side}.embed_positions.weight"
            yield Place(f"{side}.position.table.weight", table)
        if config.model.input_normed:
            pairs[f"{side}.embedding_norm"] = f"model.{side}.layernorm_embedding"
        for layer in range(config.model.n_layers):
            ours, theirs = f"{side}.blocks.{layer}", f"model.{side}.layers.{layer}"
            for mine, yours in attentions.items():
                pairs[f"{ours}.{mine}_norm"] = f"{theirs}.{yours}_layer_norm"
                for name, other in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out")):
                    pairs[f"{ours}.{mine}.{name}"] = f"{theirs}.{yours}.{other}_proj"
            pairs[f"{ours}.feed_forward.up"] = f"{theirs}.fc1"
            pairs[f"{ours}.feed_forward.down"] = f"{theirs}.fc2"
            pairs[f"{ours}.feed_forward_norm"] = f"{theirs}.final_layer_norm"
    for ours, theirs in pairs.items():
        for kind in ("weight", "bias"):
            yield Place(f"{ours}.{kind}", f"{theirs}.{kind}")


def repeated(config: RunConfig) -> set[str]:
    sides = {f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")}
    if config.position.kind == "sinusoidal":
        sides |= {f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder")}
    return sides | {"lm_head.weight"}


BART = Arrangement(
    "bart",
    ("BartForConditionalGeneration", "BartModel"),
    bart_from,
    bart_for,
    bart_obstacles,
    places,
    repeated,
    prefix="model.",
)
MARIAN = Arrangement(
    "marian",
    ("MarianMTModel", "MarianModel"),
    marian_from,
    marian_for,
    marian_obstacles,
    places,
    repeated,
    prefix="model.",
)
