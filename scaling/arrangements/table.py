"""The table of all arrangements, and which of them a model of ours or of theirs has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaling.arrangements.albert import ALBERT
from scaling.arrangements.bart import BART, MARIAN
from scaling.arrangements.base import Arrangement
from scaling.arrangements.bert import BERT
from scaling.arrangements.distilbert import DISTILBERT
from scaling.arrangements.experts import MIXTRAL, QWEN3_MOE
from scaling.arrangements.gemma import GEMMA2, GEMMA3
from scaling.arrangements.gpt2 import GPT2
from scaling.arrangements.gpt_neox import GPT_NEOX
from scaling.arrangements.llama import LLAMA
from scaling.arrangements.mistral import MISTRAL
from scaling.arrangements.modernbert import MODERNBERT
from scaling.arrangements.opt import OPT
from scaling.arrangements.phi import PHI
from scaling.arrangements.qwen2 import QWEN2
from scaling.arrangements.qwen3 import QWEN3
from scaling.arrangements.roberta import ROBERTA
from scaling.arrangements.t5 import T5
from scaling.config.run_config import RunConfig
from scaling.errors import ConfigError

ARRANGEMENTS: dict[str, Arrangement] = {
    each.name: each
    for each in (
        *(GPT2, OPT, GPT_NEOX, PHI),
        *(LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, MIXTRAL, QWEN3_MOE),
        *(BERT, ROBERTA, DISTILBERT, MODERNBERT, ALBERT),
        *(T5, BART, MARIAN),
    )
}
"""Arrangements by model_type. The first that has all settings of our model is the one that export
writes."""


def arrangement_named(values: Mapping[str, Any], where: str) -> Arrangement:
    """The arrangement of a config.json. Raises ConfigError for an architecture that is not read."""
    name, classes = values.get("model_type"), values.get("architectures") or []
    known = ", ".join(ARRANGEMENTS)
    if name not in ARRANGEMENTS:
        raise ConfigError(
            f"model_type={name!r} is an architecture that is not read",
            where=where,
            fix=f"Architectures that are read: {known}.",
        )
    found = ARRANGEMENTS[name]
    if classes and classes[0] not in found.architectures:
        raise ConfigError(
            f"architectures={classes[0]!r} is a {name} with another head, which is not read",
            where=where,
            fix=f"Classes of {name} that are read: {', '.join(found.architectures)}.",
        )
    return found


def arrangement_of(config: RunConfig) -> Arrangement:
    """The counterpart of our model. Raises ConfigError with all that keeps it from having one."""
    reasons = []
    for found in ARRANGEMENTS.values():
        obstacles = found.obstacles(config)
        if not obstacles:
            return found
        if not any(reason.startswith("family=") for reason in obstacles):
            reasons.append(f"{found.name} has not {', '.join(obstacles)}")
    raise ConfigError(
        f"the transformers library has no counterpart of model={config.model.name}",
        where="; ".join(reasons) or f"model.family={config.model.family}",
        fix=f"It has one of these arrangements: {', '.join(ARRANGEMENTS)}; "
        "docs/models.md lists their settings.",
    )


def their_config(config: RunConfig, *, eos_id: int, pad_id: int) -> dict[str, Any]:
    """What config.json says of our model. eos_id and pad_id are of the tokenizer; a decoder beside
    an encoder begins with padding, one alone with the end of the document before."""
    found, model = arrangement_of(config), config.model
    common = {
        "model_type": found.name,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": model.tie_embeddings,
    }
    if model.traits.encoder_and_decoder:
        common["decoder_start_token_id"] = pad_id
    elif config.objective.kind == "causal_lm":
        common["bos_token_id"] = eos_id
    ids = {"eos_token_id": eos_id, "pad_token_id": pad_id, "dtype": "float32"}
    return common | ids | found.config_for(config)
