"""A package outside of scaling that adds one toy of every kind. The tests put its folder on the
path, as pip would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scaling.config.plugins import Attention, Family, Objective, Plugin, Position


def load_attention() -> Any:
    # needs torch, so it is imported when a run builds the model
    from scaling_toy.torch_parts import ToyAttention

    return ToyAttention


def load_position() -> Any:
    from scaling_toy.torch_parts import ToyPosition

    return ToyPosition


def load_objective() -> Any:
    from scaling_toy.torch_parts import ToyObjective

    return ToyObjective


def load_family() -> Any:
    from scaling_toy.torch_parts import ToyGPT

    return ToyGPT


def load_form() -> Any:
    from scaling_toy.form import TOY

    return TOY


def attended(config: Any, length: int, *, causal: bool) -> int:
    """Each position sees the positions of one window."""
    return min(length, config.attention.window)


def lengths(config: Any) -> Any:
    from scaling.planner.cost.lengths import Lengths

    seq_len = config.train.seq_len
    return Lengths(stride=seq_len, overlap=0, inputs=seq_len, targets=0, scored=seq_len)


PLUGIN = Plugin(
    conf=Path(__file__).parent / "conf",
    attentions={"toy": Attention(load=load_attention, reads=("window",), attended=attended)},
    positions={"toy": Position(load=load_position, params=lambda config: config.model.d_model)},
    objectives={"toy": Objective(load=load_objective, lengths=lengths, families=("gpt",))},
    families={
        "toy": Family(
            load=load_family,
            like="gpt",
            objectives=("causal_lm",),
            description="sees earlier tokens only",
        )
    },
    forms={"toy": load_form},
    driver_names={"Toy Card": "TOY-8GB"},
)
