"""Models as directories that the transformers library reads and writes: config.json and
model.safetensors.

Needs safetensors and json alone. What the library calls each setting is here; what it calls each
weight, in convert.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from scaling.config.run_config import RunConfig
from scaling.errors import CheckpointError
from scaling.model.export.names import arrangement, from_transformers, to_transformers
from scaling.planner.cost.lengths import lengths

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

_ACTIVATIONS = {
    "gelu": "gelu_new",
    "gelu_exact": "gelu",
    "relu": "relu",
    "swiglu": "silu",
    "geglu": "gated-gelu",
}
"""Ours -> theirs; their gated-gelu is in the tanh form."""


def save_pretrained(
    config: RunConfig, weights: Mapping[str, Tensor], directory: Path, *, eos_id: int, pad_id: int
) -> None:
    """Write a directory for `from_pretrained`. Raises ConfigError when the library has no
    counterpart of the model."""
    theirs = to_transformers(config, weights)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(theirs, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    text = json.dumps(hub_config(config, eos_id=eos_id, pad_id=pad_id), indent=2)
    (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def load_pretrained(config: RunConfig, directory: Path) -> dict[str, Tensor]:
    """Weights under our names. Raises CheckpointError when the shape is another, ConfigError when
    weights do not fit."""
    found = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    wanted = hub_config(config, eos_id=0, pad_id=0)
    # of T5: since version 5 of the library it tells an untied head from a tied one
    if "scale_decoder_outputs" in found:
        found["tie_word_embeddings"] = found["scale_decoder_outputs"]
    for key in wanted.keys() & found.keys() - _ABOUT_TOKENS:
        if found[key] != wanted[key]:
            raise CheckpointError(
                f"{directory} has {key}={found[key]}, and the configuration makes it {wanted[key]}",
                where=str(directory / CONFIG_FILE),
                fix="Change the configuration to the shape of the weights.",
            )
    return from_transformers(config, load_file(directory / WEIGHTS_FILE))


_ABOUT_TOKENS = {
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "dtype",
    "architectures",
}


def hub_config(config: RunConfig, *, eos_id: int, pad_id: int) -> dict[str, Any]:
    """What config.json says. eos_id and pad_id are of the tokenizer; a decoder beside an encoder
    begins with padding."""
    kind = arrangement(config)
    made = {"gpt2": _gpt2, "llama": _llama, "bert": _bert, "t5": _t5}[kind](config)
    common = {
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.model.tie_embeddings,
    }
    if kind == "t5":
        common["decoder_start_token_id"] = pad_id
    elif kind != "bert":
        # the end of a document before stands in front of the first token
        common["bos_token_id"] = eos_id
    return made | common | {"eos_token_id": eos_id, "pad_token_id": pad_id, "dtype": "float32"}


def _gpt2(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": model.n_layers,
        "n_embd": model.d_model,
        "n_head": model.n_heads,
        "n_inner": model.ff_width,
        "n_positions": config.train.seq_len,
        "activation_function": _ACTIVATIONS[model.activation],
        "layer_norm_epsilon": model.norm_eps,
    }


def _llama(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_width,
        "intermediate_size": model.ff_width,
        "max_position_embeddings": config.train.seq_len,
        "hidden_act": _ACTIVATIONS[model.activation],
        "rms_norm_eps": model.norm_eps,
        "rope_theta": config.position.theta,
    }


def _bert(config: RunConfig) -> dict[str, Any]:
    model, order = config.model, config.objective.sentence_order
    return {
        "architectures": ["BertForPreTraining" if order else "BertForMaskedLM"],
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.n_heads,
        "intermediate_size": model.ff_width,
        "max_position_embeddings": lengths(config).inputs,
        "type_vocab_size": 2,
        "hidden_act": _ACTIVATIONS[model.activation],
        "layer_norm_eps": model.norm_eps,
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": config.attention.dropout,
    }


def _t5(config: RunConfig) -> dict[str, Any]:
    model = config.model
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "num_layers": model.n_layers,
        "num_decoder_layers": model.n_layers,
        "d_model": model.d_model,
        "num_heads": model.n_heads,
        "d_kv": model.head_width,
        "d_ff": model.ff_width,
        "relative_attention_num_buckets": config.position.n_buckets,
        "relative_attention_max_distance": config.position.max_distance,
        "feed_forward_proj": _ACTIVATIONS[model.activation],
        "layer_norm_epsilon": model.norm_eps,
        "dropout_rate": model.dropout,
    }
