"""Transformers: families, each a page, on shared blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from scaling.config.plugins import added
from scaling.config.run_config import RunConfig
from scaling.model.base import GenerativeModel, LanguageModel, MaskedModel
from scaling.model.bert import BERT
from scaling.model.distribute import cut, drop, mark, sum_partial_gradients
from scaling.model.gpt import GPT
from scaling.model.initialise import initialise
from scaling.model.split import WHOLE, Split
from scaling.model.t5 import T5
from scaling.model.transformer import Transformer

__all__ = [
    "FAMILIES",
    "GenerativeModel",
    "LanguageModel",
    "MaskedModel",
    "build_model",
    "initialise",
]

FAMILIES: dict[str, type[LanguageModel]] = {
    "gpt": GPT,
    "bert": BERT,
    "t5": T5,
    "transformer": Transformer,
}


def family_named(name: str) -> type[LanguageModel]:
    """The class of a family of this package, or of one that a plugin adds."""
    family: type[LanguageModel] = (
        FAMILIES[name] if name in FAMILIES else added("families")[name].load()
    )
    return family


def build_model(
    config: RunConfig,
    device: torch.device | str | None = None,
    *,
    split: Split = WHOLE,
    blocks: Sequence[tuple[int, int]] | None = None,
    place: Callable[[str, nn.Module], None] | None = None,
) -> LanguageModel:
    """The model of `config` in fp32 on `device` (null: CPU), its weights not yet set:
    `initialise` or load them.

    Until then they are NaN, so that an uninitialised weight shows up. On "meta" no memory is taken
    at all. split: how its parameters are cut among ranks. blocks: the half-open range of each
    pipeline stage that a rank has; null: all. place: is given each module (and its name) whose own
    parameters have just got memory, before the next ones get theirs: so a model that no device can
    hold is given its weights, and these dealt out among ranks, as it is built."""
    with torch.device("meta"):
        model = family_named(config.model.family)(config)
    if blocks is not None:
        drop(model, set().union(*(model.stage(*of_stage) for of_stage in blocks)))
    parts = cut(model, split)
    target = torch.device(device or "cpu")
    for name, module in reversed(list(model.named_modules())):
        own = {
            f"{name}.{leaf}" if name else leaf: leaf
            for leaf, _ in module.named_parameters(recurse=False)
        }
        if own and target.type != "meta":
            module.to_empty(device=target, recurse=False)
            with torch.no_grad():
                for leaf in own.values():
                    getattr(module, leaf).fill_(torch.nan)
        for path in own.keys() & parts.keys():
            mark(getattr(module, own[path]), parts[path])
        if own and place is not None:
            place(name, module)
    sum_partial_gradients(model, split)
    return model
