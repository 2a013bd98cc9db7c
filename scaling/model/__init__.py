"""Transformers: families, each a page, on shared blocks."""

from __future__ import annotations

import torch

from scaling.config import RunConfig
from scaling.model.base import GenerativeModel, LanguageModel
from scaling.model.bert import BERT
from scaling.model.distribute import cut, drop, mark
from scaling.model.gpt import GPT
from scaling.model.initialise import initialise
from scaling.model.split import WHOLE, Split
from scaling.model.t5 import T5
from scaling.model.transformer import Transformer

__all__ = ["BERT", "FAMILIES", "GenerativeModel", "LanguageModel", "build_model", "initialise"]

FAMILIES: dict[str, type[LanguageModel]] = {"gpt": GPT, "bert": BERT, "t5": T5, "transformer": Transformer}


def build_model(
    config: RunConfig,
    device: torch.device | str | None = None,
    *,
    split: Split = WHOLE,
    blocks: tuple[int, int] | None = None,
) -> LanguageModel:
    """The model of `config` in fp32 on `device` (null: CPU), its weights not yet given: `initialise` or load them.

    Until then they are NaN, so that a forgotten weight is heard of. On "meta" no memory is taken at all.
    split: how its parameters are cut among ranks. blocks: the half-open range that a pipeline stage has; null: all.
    """
    with torch.device("meta"):
        model = FAMILIES[config.model.family](config)
    if blocks is not None:
        drop(model, model.stage(*blocks))
    parts = cut(model, split)
    target = torch.device(device or "cpu")
    if target.type != "meta":
        model.to_empty(device=target)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(torch.nan)
    mark(model, split, parts)
    return model
