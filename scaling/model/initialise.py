"""Initial weights, of which each depends on its own name and shape and on the seed alone.

So they do not change with the order in which modules are built, the layers built beside them, the
device or the rank: a pipeline stage that holds blocks 4 to 7 gives them the values that one process
would.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from scaling.config.run_config import ModelConfig
from scaling.model.parametrization import initial_scale, residual_depth
from scaling.parallel.part import Part, part_of

Given = Callable[[str, Part], Tensor | None]
"""Gives a part of a parameter from elsewhere; None: it has its random values."""
RESIDUAL_OUTPUTS = ("attention.o", ".down")
"""The linears whose output is added to the residual stream: of attention, and of the feed-forward
layer or its experts."""


def initial_values(name: str, shape: Sequence[int], config: ModelConfig, seed: int) -> Tensor:
    """The parameter `name` (as in named_parameters of the whole model) in fp32 on the CPU.

    Factors of norms 1, biases 0, all else normal(init_std). Unless with post-norm, residual outputs
    are narrower by sqrt(2 n_layers), the number of terms that the residual stream sums (Radford et
    al. 2019, section 2.3). T5's queries are narrower by sqrt(d_head), by which it does not divide
    scores. With mup and completep hidden matrices are narrower with the width
    (`parametrization.py`).
    """
    module, _, kind = name.rpartition(".")
    if kind in ("bias", "head_bias"):
        return torch.zeros(*shape)
    if module.endswith("norm"):
        return torch.zeros(*shape) if config.norm == "rmsnorm_one" else torch.ones(*shape)
    std = config.init_std * initial_scale(name, config)
    if module.endswith(RESIDUAL_OUTPUTS) and config.norm_position != "post":
        std /= math.sqrt(2 * residual_depth(config))
    if config.traits.unscaled_scores and module.endswith("attention.q"):
        std /= math.sqrt(config.head_width)
    digest = hashlib.sha256(f"{name} {seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.empty(*shape).normal_(0.0, std, generator=generator)


def initialise(model: nn.Module, seed: int, given: Given | None = None) -> None:
    """Fill every parameter of `model` (which has its ModelConfig as `config`), on whatever device,
    in whatever dtype."""
    config = model.config
    assert isinstance(config, ModelConfig)
    fill(model.named_parameters(), config, seed, given)


@torch.no_grad()
def fill(
    named: Iterable[tuple[str, nn.Parameter]],
    config: ModelConfig,
    seed: int,
    given: Given | None = None,
) -> None:
    """Give parameters, by their names in the whole model, their initial values or the part of them
    that they are."""
    for name, parameter in named:
        part = part_of(parameter)
        value = given(name, part) if given is not None else None
        if value is None:
            value = part.of(initial_values(name, part.shape, config, seed))
        parameter.copy_(value)
