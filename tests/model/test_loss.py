"""The chunked head's loss and gradients against F.cross_entropy, and norms against PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaling.model import loss
from scaling.model.layers import RMSNorm
from scaling.model.loss import linear_cross_entropy
from tests.support.exact import RTOL, assert_same, rounding_bound

DOUBLE = pytest.mark.usefixtures("double")


def inputs(N: int, D: int, V: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(N, D, generator=generator), torch.randn(V, D, generator=generator)
    targets = torch.randint(0, V, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < 0.2] = -100
    return x.requires_grad_(), weight.requires_grad_(), targets


def plain(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(x @ weight.T, targets, reduction="sum", ignore_index=-100)


@settings(deadline=None, max_examples=40)
@given(
    N=st.integers(1, 40), V=st.integers(2, 50), rows=st.integers(1, 45), seed=st.integers(0, 2**31)
)
@DOUBLE
def test_value_and_gradients_equal_the_plain_ones(N: int, V: int, rows: int, seed: int) -> None:
    x, weight, targets = inputs(N, 7, V, seed)
    ours, expected = (
        linear_cross_entropy(x, weight, targets, chunk_rows=rows),
        plain(x, weight, targets),
    )
    assert_same(ours, expected)
    # The upstream gradient is not 1: engines divide by the number of targets.
    for got, want in zip(
        torch.autograd.grad(ours / 3, (x, weight)),
        torch.autograd.grad(expected / 3, (x, weight)),
        strict=True,
    ):
        assert_same(got, want)


def test_nothing_to_predict_is_zero_with_zero_gradients() -> None:
    x, weight, targets = inputs(8, 4, 5, 0)
    loss = linear_cross_entropy(x, weight, torch.full_like(targets, -100))
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()
    assert not weight.grad.any()


def test_large_logits_stay_finite() -> None:
    x, weight, targets = inputs(8, 4, 5, 0)
    loss = linear_cross_entropy(x * 1e4, weight, targets)
    expected = plain(x * 1e4, weight, targets)
    # Eight losses of logits with four terms.
    torch.testing.assert_close(loss, expected, rtol=rounding_bound(n_terms=4 + 5 + 8), atol=0)


@DOUBLE
def test_evaluation_and_frozen_weights() -> None:
    x, weight, targets = inputs(20, 7, 11, 3)
    with torch.no_grad():
        assert float(linear_cross_entropy(x, weight, targets)) == pytest.approx(
            float(plain(x, weight, targets)), rel=RTOL
        )
    linear_cross_entropy(x, weight.detach(), targets).backward()
    assert_same(x.grad, torch.autograd.grad(plain(x, weight, targets), x)[0])


def test_bf16_weight_gradient_is_summed_in_fp32() -> None:
    # 2000 chunks of one row: a bf16 sum stands still once it is 2^8 times a term, and is off by 19
    # % here.
    x, weight, targets = inputs(2000, 7, 11, 5)
    x = x.detach().abs().requires_grad_()
    exact = torch.autograd.grad(plain(x, weight, targets), weight)[0]
    low = weight.detach().bfloat16().requires_grad_()
    grad = torch.autograd.grad(
        linear_cross_entropy(x.detach().bfloat16(), low, targets, chunk_rows=1), low
    )[0]
    assert grad.dtype == torch.bfloat16
    assert float((grad.float() - exact).norm() / exact.norm()) < 4e-3


@pytest.mark.parametrize("shape", [(3, 48), (2, 5, 48)])
@DOUBLE
def test_rms_norm_equals_pytorchs_forward_and_backward(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm, x, upstream = (
        RMSNorm(48, 1e-5),
        torch.randn(shape).mul_(3).add_(1).requires_grad_(),
        torch.randn(shape),
    )
    torch.nn.init.normal_(norm.weight)
    expected = F.rms_norm(x, (48,), norm.weight, 1e-5)
    assert_same(norm(x), expected)
    ours, theirs = (torch.autograd.grad(y, (x, norm.weight), upstream) for y in (norm(x), expected))
    for got, want in zip(ours, theirs, strict=True):
        assert_same(got, want)
    with torch.no_grad():
        assert_same(norm(x), expected)


def test_rms_norm_of_bf16_is_computed_in_fp32() -> None:
    torch.manual_seed(0)
    norm, x = RMSNorm(512, 1e-5).bfloat16(), torch.randn(4, 512).mul_(100).bfloat16()
    exact = F.rms_norm(x.float(), (512,), torch.ones(512), 1e-5)
    # Two orders of an fp32 sum round to another bf16 once in 2^15; a norm computed in bf16 is off
    # by a unit nearly everywhere.
    assert (norm(x) == exact.bfloat16()).double().mean() > 0.99


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_given_to_the_compiler_is_the_same(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(loss, "_compiled_score", lambda: loss._fusible_score)
    found = []
    for compiled in (False, True):
        x, weight, targets = inputs(300, 7, 11, 0)
        result = loss.head_loss(
            x.to(dtype), weight.to(dtype), targets, smoothing=smoothing, compiled=compiled
        )
        found.append(
            (result.nats, result.objective, *torch.autograd.grad(result.objective, (x, weight)))
        )
    for got, want in zip(found[1], found[0], strict=True):
        # Sums over V = 11 logits of seven terms, or over 300 rows; of bf16 a few roundings of 2^-9
        # more.
        bound = rounding_bound(n_terms=7 + 11 + 300, scale=float(want.detach().abs().max()))
        torch.testing.assert_close(
            got, want, rtol=0.0 if dtype == torch.float32 else 2e-2, atol=bound
        )
