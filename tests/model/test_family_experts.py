"""Mixture of experts: against a naive sum, one expert is the dense layer, balance, and no
dependence on how a batch is cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaling.batch import IGNORED, Batch
from scaling.model import build_model, initialise
from scaling.model.layers import FeedForward
from scaling.model.moe import MixtureOfExperts, balance
from tests.support.configs import composed
from tests.support.exact import ATOL, RTOL, assert_same

DOUBLE = pytest.mark.usefixtures("double")
SHAPE = (
    "model.n_layers=2",
    "model.d_model=32",
    "model.n_heads=2",
    "tokenizer.vocab_size=300",
    "train.seq_len=16",
    "model.init_std=0.1",
)


def experts(n: int, per_token: int, seed: int = 0) -> MixtureOfExperts:
    torch.manual_seed(seed)
    layer = MixtureOfExperts(
        composed(*SHAPE, f"model.n_experts={n}", f"model.experts_per_token={per_token}").model
    )
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def naive(layer: MixtureOfExperts, x_BTD: Tensor) -> Tensor:
    y_BTD = torch.zeros_like(x_BTD)
    for b in range(x_BTD.shape[0]):
        for t in range(x_BTD.shape[1]):
            p = (layer.router.weight @ x_BTD[b, t]).softmax(dim=0)
            chosen = p.argsort(descending=True)[: layer.experts_per_token].tolist()
            total = float(p[chosen].sum()) if len(chosen) > 1 else 1.0
            for expert in chosen:
                y_BTD[b, t] += p[expert] / total * layer.experts[expert](x_BTD[b, t])
    return y_BTD


@pytest.mark.parametrize(("n", "per_token"), [(4, 1), (5, 2), (3, 3)])
@DOUBLE
def test_equals_the_naive_sum(n: int, per_token: int) -> None:
    layer, x = experts(n, per_token), torch.randn(2, 7, 32)
    with torch.no_grad():
        assert_same(layer(x)[0], naive(layer, x))


@DOUBLE
def test_one_expert_is_the_dense_layer() -> None:
    layer, x = experts(1, 1), torch.randn(2, 7, 32)
    dense = FeedForward(composed(*SHAPE).model)
    dense.load_state_dict(layer.experts[0].state_dict())
    y, balance_B = layer(x)
    assert_same(y, dense(x))
    assert_same(balance_B, torch.ones(2))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(0, 2**31))
@DOUBLE
def test_balance_is_between_even_and_all_on_one(n_experts: int, seed: int) -> None:
    torch.manual_seed(seed)
    p = (torch.randn(3, 40, n_experts) * 3).softmax(dim=-1)
    values = balance(p, p.topk(1, dim=-1).indices)
    assert bool((values <= n_experts + ATOL).all())
    even = torch.eye(n_experts).repeat(5, 1)[None]
    assert_same(balance(even, even.topk(1, dim=-1).indices), torch.ones(1))
    one = torch.eye(n_experts)[:1].expand(1, 9, n_experts)
    assert_same(balance(one, one.topk(1, dim=-1).indices), torch.full((1,), float(n_experts)))


@DOUBLE
def test_the_balancing_term_spreads_the_load() -> None:
    layer, x = experts(4, 1), torch.randn(4, 64, 32)
    with torch.no_grad():
        layer.router.weight.mul_(0.2)
        layer.router.weight[2] += (
            0.05 * x.mean(dim=(0, 1)) / x.mean(dim=(0, 1)).norm() ** 2 + x.std() * 0.1
        )
    optimizer = torch.optim.Adam([layer.router.weight], lr=0.02)
    before = layer(x)[1].mean().item()
    for _ in range(60):
        loss = layer(x)[1].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = layer(x)[1].mean().item()
    assert after < before
    assert after == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("family", [("model=gpt_nano",), ("model=bert_tiny", "model.dropout=0")])
@DOUBLE
def test_the_objective_does_not_depend_on_how_a_batch_is_cut(family: tuple[str, ...]) -> None:
    vocab = ("tokenizer.vocab_size=600",) if "bert" in family[0] else ()
    model = build_model(
        composed(*family, *SHAPE, "model.n_experts=4", "model.balance_loss=0.5", *vocab)
    )
    initialise(model, 0)
    tokens, targets = torch.randint(0, 300, (2, 6, 16), generator=torch.Generator().manual_seed(0))
    targets[0, :9], targets[4, 3:] = IGNORED, IGNORED
    whole = model.loss(Batch(tokens, targets))
    parts = [model.loss(Batch(tokens[i:j], targets[i:j])) for i, j in ((0, 1), (1, 4), (4, 6))]
    assert whole.objective.item() > whole.nats.item() * 1.02
    assert sum(part.objective.item() for part in parts) == pytest.approx(
        whole.objective.item(), rel=RTOL
    )
    assert sum(part.nats.item() for part in parts) == pytest.approx(whole.nats.item(), rel=RTOL)
