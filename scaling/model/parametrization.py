"""How weights, updates and multipliers follow width and depth, so that learning rates found on a
small model serve large ones.

With m = d_model / base_width and l = n_layers / base_layers, relative to the standard
parametrization:

                        mup                  completep
    hidden matrices     initial s.d.         m^-1/2; of residual outputs by base_layers in place of
                        n_layers
                        learning rate        1/m
                        weight decay         m, so that its product with the rate stays
    eps of Adam         1/m                  1/m, in blocks 1/(m l)
    residual branches   1                    1/l
    logits              1/m                  1/m

Sources: Yang et al. 2022 (arXiv:2203.03466), table 8, as laid out for AdamW by Dey et al. 2025
(arXiv:2505.01618), table 1 with alpha = 1 and eq. 40. At the base's width and depth all of it is
the standard parametrization. Heads keep their width: models grow by the number of heads, so that
scores need no multiplier of their own.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from scaling.config.run_config import ModelConfig

_HIDDEN = {"q", "k", "v", "o", "gate", "up", "down"}
"""The linears of a block: both their dimensions grow with the width."""


class Scales(NamedTuple):
    """Factors of one parameter, relative to the standard parametrization."""

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


def width_ratio(model: ModelConfig) -> float:
    """m: d_model over the base's; 1 in the standard parametrization."""
    return 1.0 if model.base_width is None else model.d_model / model.base_width


def depth_ratio(model: ModelConfig) -> float:
    """l: n_layers over the base's; 1 but for completep."""
    return 1.0 if model.base_layers is None else model.n_layers / model.base_layers


def is_hidden(name: str) -> bool:
    """Whether the parameter of this name (in the whole model) is a matrix of a block."""
    module, _, kind = name.rpartition(".")
    return kind == "weight" and module.rpartition(".")[2] in _HIDDEN


def scales_of(name: str, model: ModelConfig) -> Scales:
    """The scales of the parameter `name` (in the whole model)."""
    m, in_block = width_ratio(model), name.startswith("blocks.")
    eps = 1 / m / (depth_ratio(model) if in_block else 1.0)
    return Scales(1 / m, m, eps) if is_hidden(name) else Scales(eps=eps)


def initial_scale(name: str, model: ModelConfig) -> float:
    """What multiplies the initial standard deviation of a hidden matrix."""
    return 1 / math.sqrt(width_ratio(model)) if is_hidden(name) else 1.0


def residual_depth(model: ModelConfig) -> int:
    """The depth by which residual outputs are narrower at the start."""
    return model.base_layers or model.n_layers


def residual_scale(model: ModelConfig) -> float:
    """What multiplies each branch before it is added to the residual stream."""
    return 1 / depth_ratio(model)


def logit_scale(model: ModelConfig) -> float:
    """What multiplies the input of the head."""
    return 1 / width_ratio(model)
