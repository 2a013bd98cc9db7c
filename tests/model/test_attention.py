"""Attention, rotation and the key/value cache against a naive reference, forward and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scaling.model.attention import ATTENTIONS
from scaling.model.attention.cache import KVCache
from scaling.model.attention.full import FullAttention
from scaling.model.position import Context, RotaryPosition, rotate
from tests.support.configs import composed
from tests.support.exact import RTOL, assert_same

DOUBLE = pytest.mark.usefixtures("double")
SHAPE = ("model.d_model=48", "model.n_heads=6", "train.seq_len=32")


def attention(n_kv_heads: int, *overrides: str) -> FullAttention:
    torch.manual_seed(0)
    return ATTENTIONS["full"](composed(*SHAPE, f"model.n_kv_heads={n_kv_heads}", *overrides))


def naive(module: FullAttention, x_BTD: Tensor) -> Tensor:
    """Head by head and position by position, from the definition."""
    T, K = x_BTD.shape[1], module.d_head
    q, k, v = (linear(x_BTD) for linear in (module.q, module.k, module.v))
    n_heads, per_group = q.shape[-1] // K, q.shape[-1] // k.shape[-1]
    rows = []
    for h in range(n_heads):
        own, shared = slice(h * K, (h + 1) * K), slice(h // per_group * K, (h // per_group + 1) * K)
        at_t = []
        for t in range(T):
            scores = (q[:, t, own, None] * k[:, : t + 1, shared].transpose(1, 2)).sum(
                1
            ) / math.sqrt(K)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            at_t.append((weights[..., None] * v[:, : t + 1, shared]).sum(1))
        rows.append(torch.stack(at_t, dim=1))
    return module.o(torch.cat(rows, dim=-1))


@pytest.mark.parametrize("n_kv_heads", [6, 2, 1])
@pytest.mark.parametrize("bias", ["true", "false"])
@DOUBLE
def test_equals_the_definition_forward_and_backward(n_kv_heads: int, bias: str) -> None:
    module = attention(n_kv_heads, f"model.bias={bias}")
    x = torch.randn(2, 9, 48, requires_grad=True)
    inputs = [x, *module.parameters()]
    upstream = torch.randn(2, 9, 48)
    ours, expected = module(x, Context()), naive(module, x)
    assert_same(ours, expected)
    for got, want in zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        assert_same(got, want)


@pytest.mark.parametrize("n_kv_heads", [6, 2])
def test_runs_the_fused_kernel(n_kv_heads: int) -> None:
    q, kv = torch.randn(1, 6, 8, 8, requires_grad=True), torch.randn(1, n_kv_heads, 8, 8)
    out = attention(n_kv_heads).attend(q, kv, kv, Context())
    assert "FlashAttention" in type(out.grad_fn).__name__


@DOUBLE
def test_dropout_acts_in_training_only() -> None:
    module, x = attention(6, "attention.dropout=0.5"), torch.randn(2, 9, 48)
    assert not torch.equal(module(x, Context()), module(x, Context()))
    module.eval()
    assert_same(module(x, Context()), naive(module, x))


@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 5], [5, 1, 1, 2]])
@DOUBLE
def test_pieces_through_the_cache_equal_the_whole(pieces: list[int]) -> None:
    module, x = attention(2).eval(), torch.randn(2, 9, 48)
    position = RotaryPosition(composed(*SHAPE))
    cache, parts, start = module.new_cache(12), [], 0
    for length in pieces:
        context = Context(position.rotation(start, length, x.device))
        parts.append(module(x[:, start : start + length], context, cache))
        start += length
    whole = module(x, Context(position.rotation(0, 9, x.device)))
    assert_same(torch.cat(parts, dim=1), whole)


def test_a_full_cache_says_so() -> None:
    cache = KVCache(4)
    cache.append(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2))
    with pytest.raises(ValueError, match="room for 4 positions, and was given 5"):
        cache.append(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))


@DOUBLE
def test_rotation_is_multiplication_by_a_unit_complex_number() -> None:
    x = torch.randn(2, 7, 3, 8)
    rotation = RotaryPosition(composed(*SHAPE)).rotation(5, 7, x.device)
    angles = torch.arange(5, 12)[:, None] * 10000.0 ** (-torch.arange(4) / 4)
    turned = (
        torch.complex(x[..., :4], x[..., 4:])
        * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    assert_same(rotate(x, rotation), torch.cat((turned.real, turned.imag), dim=-1))


@DOUBLE
def test_rotated_scores_depend_on_distance_only() -> None:
    position = RotaryPosition(composed(*SHAPE))
    q, k = torch.randn(8), torch.randn(8)

    def score(at_q: int, at_k: int) -> float:
        turned = [
            rotate(x.view(1, 1, 1, 8), position.rotation(at, 1, x.device)).flatten()
            for x, at in ((q, at_q), (k, at_k))
        ]
        return float(turned[0] @ turned[1])

    assert score(7, 3) == pytest.approx(score(25, 21), rel=RTOL)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3
