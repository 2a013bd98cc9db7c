"""Recomputation changes neither values nor gradients, keeps less, and repeats what it says and
nothing more."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from scaling.config.cluster import Checkpointing
from scaling.config.run_config import RunConfig
from scaling.model import LanguageModel, build_model, initialise
from scaling.model.recompute import run_block
from tests.support.configs import composed

KINDS: tuple[Checkpointing, ...] = get_args(Checkpointing)
BLOCKS = {
    "gpt_tiny": ("model=gpt_tiny",),
    "dropout": ("model=gpt_tiny", "model.dropout=0.1"),
    "gpt2": (
        "model=gpt_tiny",
        "model.activation=gelu",
        "model.norm=layernorm",
        "model.bias=true",
        "position=learned",
    ),
    "experts": ("model=gpt_tiny", "model.n_experts=4", "model.experts_per_token=2"),
}
PRODUCTS = {"mm", "addmm", "bmm", "_scaled_dot_product_flash_attention_for_cpu"}
every = pytest.mark.parametrize("name", BLOCKS)


class Counted(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def setting(name: str) -> tuple[LanguageModel, Tensor]:
    """A model in training, and what its first block is given: (2, T, D) of the shape of
    gpt_tiny."""
    config: RunConfig = composed(*BLOCKS[name])
    model = build_model(config)
    initialise(model, seed=0)
    torch.manual_seed(1)
    return model.train(), torch.randn(
        2, config.train.seq_len, config.model.d_model, requires_grad=True
    )


def run(
    model: Any, x_BTD: Tensor, kind: Checkpointing, context: Any = None
) -> tuple[Tensor, Tensor | None]:
    torch.manual_seed(2)
    context = context or model.position.context(0, x_BTD, None)
    out: tuple[Tensor, Tensor | None] = run_block(kind, model.blocks[0], x_BTD, context, None, None)
    return out


def backward(out: tuple[Tensor, Tensor | None]) -> None:
    y_BTD, balance_B = out
    (y_BTD.square().sum() + (0 if balance_B is None else balance_B.sum())).backward()


@every
def test_values_and_gradients_are_equal_bit_for_bit(name: str) -> None:
    model, x_BTD = setting(name)
    found = {}
    for kind in KINDS:
        model.zero_grad(set_to_none=True)
        x_BTD.grad = None
        out = run(model, x_BTD, kind)
        backward(out)
        grads = {
            key: parameter.grad
            for key, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        found[kind] = {"out": out[0].detach(), "x": x_BTD.grad} | grads
    assert len(found["none"]) > 8
    for kind in KINDS[1:]:
        assert found[kind].keys() == found["none"].keys()
        for key, value in found["none"].items():
            assert torch.equal(found[kind][key], value), f"{key} with {kind}"


def kept_bytes(model: Any, x_BTD: Tensor, kind: Checkpointing) -> int:
    """What forward leaves allocated, its output included."""
    context = model.position.context(0, x_BTD, None)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        out = run(model, x_BTD, kind, context)
    backward(out)
    return sum(event.self_cpu_memory_usage for event in profiled.events())


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("gpt_tiny", {"none": 19.5, "selective": 13, "full": 1.1}),
        ("dropout", {"none": 21.5, "selective": 13, "full": 1.1}),
        ("gpt2", {"none": 16.5, "selective": 11.5, "full": 1.1}),
    ],
)
def test_what_is_kept_for_backward(name: str, most: dict[Checkpointing, float]) -> None:
    """Sizes are multiples of the block's input. Selective: q, k, v, o, attention's output, gate and
    up (2.75 each), down, y."""
    model, x_BTD = setting(name)
    run(model, x_BTD, "none")  # whatever is made once
    inputs = {kind: kept_bytes(model, x_BTD, kind) / (x_BTD.numel() * 4) for kind in KINDS}
    assert inputs["none"] > 1.4 * inputs["selective"] > 1.4 * inputs["full"] > 1
    assert all(inputs[kind] < most[kind] for kind in KINDS), inputs


@every
def test_selective_repeats_no_product_and_full_repeats_them(name: str) -> None:
    model, x_BTD = setting(name)
    in_backward, in_forward = {}, Counter[str]()
    for kind in KINDS:
        with Counted() as counted:
            out = run(model, x_BTD, kind)
            in_forward = counted.calls.copy()
            backward(out)
        in_backward[kind] = counted.calls - in_forward
    forward = {key: count for key, count in in_forward.items() if key in PRODUCTS}
    assert forward
    for key, count in forward.items():
        assert in_backward["selective"][key] == in_backward["none"][key], key
        assert in_backward["full"][key] >= in_backward["none"][key] + count - 1, (
            "the last product's output may be needed no more"
        )
    assert in_backward["selective"].total() > in_backward["none"].total(), (
        "the rest is computed again"
    )
