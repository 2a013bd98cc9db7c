"""Take a rank's share of a model: its stage's blocks, and its part of every parameter that is cut.

Names of parameters stay those of the whole model, so that initial values and checkpoints know them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from scaling.model.moe import MixtureOfExperts
from scaling.model.split import Split
from scaling.parallel.collectives import Group, all_reduce
from scaling.parallel.part import Part


def drop(model: nn.Module, kept: set[str]) -> None:
    """Leave only the parameters that `kept` names, by themselves or by a module that has them."""
    for name, _ in list(model.named_parameters()):
        if not covered(name, kept):
            module, _, leaf = name.rpartition(".")
            model.get_submodule(module).register_parameter(leaf, None)


def covered(name: str, kept: set[str]) -> bool:
    """Whether a parameter is one of `kept`, or of a module in it."""
    return any(name == keep or name.startswith(keep + ".") for keep in kept)


def cut(model: nn.Module, split: Split) -> dict[str, Part]:
    """Cut the parameters of a model on "meta" among tensor parallel ranks; the part of each that is
    cut, by name."""
    _tell(model, split)
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):  # tokens of all positions come to an expert
            _tell(module.experts, replace(split, sequence=False))
    parts = {}
    if split.tp is not None:
        for name, owner, leaf, dim in list(_to_be_cut(model)):
            parts[name] = part = Part.nth(
                tuple(getattr(owner, leaf).shape), dim, split.tp_rank, split.tp_size
            )
            setattr(owner, leaf, nn.Parameter(torch.empty(part.local_shape, device="meta")))
    return parts


def mark(parameter: nn.Parameter, part: Part) -> None:
    """Say what a parameter is a part of, in our words and in DeepSpeed's."""
    for attribute, value in (
        ("part", part),
        ("model_parallel", True),
        ("tensor_model_parallel", True),
    ):
        setattr(parameter, attribute, value)


def sum_partial_gradients(model: nn.Module, split: Split) -> None:
    """Sum the gradients of parameters that are whole on tensor parallel ranks, where each rank sees
    a part of them."""
    if split.tp is None:
        return
    parameters = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        partial = getattr(module, "partial", ()) + (
            getattr(module, "partial_in_sequence", ()) if split.sequence else ()
        )
        for leaf in partial:
            if f"{prefix}.{leaf}" in parameters:
                parameters[f"{prefix}.{leaf}"].register_hook(_Summed(split.tp))


def _tell(model: nn.Module, split: Split) -> None:
    for module in model.modules():
        if hasattr(type(module), "split"):
            object.__setattr__(module, "split", split)


class _Summed:
    """A gradient hook; a class so that engines which copy modules can copy it."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __call__(self, gradient: Tensor) -> Tensor:
        return all_reduce(gradient, self.group)


def _to_be_cut(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, int]]:
    for prefix, module in model.named_modules():
        for path, dim in getattr(module, "cut", {}).items():
            child, _, leaf = path.rpartition(".")
            owner = getattr(module, child, None) if child else module
            if isinstance(owner, nn.Module) and getattr(owner, leaf, None) is not None:
                yield f"{prefix}.{path}" if prefix else path, owner, leaf, dim
