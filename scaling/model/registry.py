"""The families of models, by name, and how a configuration becomes one."""

from __future__ import annotations

import torch

from scaling.config import RunConfig
from scaling.model.base import LanguageModel
from scaling.model.gpt import GPT
from scaling.model.initialise import initialise

FAMILIES: dict[str, type[LanguageModel]] = {"gpt": GPT}


def build_model(config: RunConfig, device: torch.device | str | None = None) -> LanguageModel:
    """The model of `config` in fp32 on `device` (null: CPU), with the initial weights of train.seed.

    On "meta" no memory is taken and there are no values: for counting parameters.
    """
    with torch.device("meta"):
        model = FAMILIES[config.model.family](config)
    target = torch.device(device or "cpu")
    if target.type != "meta":
        model.to_empty(device=target)
        initialise(model, config.train.seed)
    return model
