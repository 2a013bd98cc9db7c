"""Keys that go round give the attention, and the gradients, of a rank that has them all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from scaling.model.attention import ring
from scaling.model.attention.tiles import attend_in_pieces
from scaling.parallel.grid import Ranks
from tests.support.exact import assert_same, in_double
from tests.support.ranks import run_ranks

B, H, T, K = 2, 4, 24, 8
CASES: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "both ways": {"causal": False},
    "grouped": {"causal": True, "groups": 2},
    "a source of another length": {"causal": False, "sources": 36},
    "documents": {"causal": True, "documents": True},
    "a bias": {"causal": False, "bias": True},
    "all": {"causal": True, "groups": 2, "documents": True, "bias": True},
}


def inputs(case: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    """Whole q, k, v, weights of the output and the table of a learnt bias; and what attention is
    told."""
    torch.manual_seed(0)
    S = case.get("sources", T)
    made = [
        (B, H, T, K),
        (B, case.get("groups", H), S, K),
        (B, case.get("groups", H), S, K),
        (B, H, T, K),
        (H, 2 * T),
    ]
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in made]
    documents = None
    if case.get("documents"):  # of two documents a row, and padding that sees nothing but itself
        documents = torch.stack([torch.arange(T) // 10, torch.arange(T) // 17])
    return tensors, {
        "causal": case["causal"],
        "documents_BT": documents,
        "source_documents_BS": documents,
    }


def bias_of(table_HR: Tensor, case: dict[str, Any]) -> Any:
    return (lambda relative: table_HR[:, relative + T]) if case.get("bias") else None


def attend_in_a_ring(ranks: Ranks, name: str, dropout_p: float, nudge: float = 0.0) -> list[Tensor]:
    """This rank's part of the output, and its gradients of q, k, v and the bias, summed over ranks
    where all have it."""
    ring.PIECE = 5
    case = CASES[name]
    (q, k, v, weights, table), told = inputs(case)
    q, k, v = (x + nudge * torch.sin(10 * x) for x in (q, k, v))
    q, k, v = (
        x.chunk(ranks.world_size, dim=2)[ranks.rank].clone().requires_grad_() for x in (q, k, v)
    )
    weights = weights.chunk(ranks.world_size, dim=2)[ranks.rank]
    table.requires_grad_()
    torch.manual_seed(ranks.rank)
    group = dist.group.WORLD
    assert group is not None
    bias = bias_of(table, case)
    with in_double():
        y = ring.ring_attention(q, k, v, group, bias=bias, dropout_p=dropout_p, **told)
        (y * weights).sum().backward()
    if table.grad is not None:
        dist.all_reduce(table.grad)
    return [
        y.detach(),
        *(x.grad for x in (q, k, v, table) if x.grad is not None),
        (y.detach() * weights).sum(),
    ]


@pytest.mark.parametrize("n_ranks", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_a_ring_is_plain_attention(name: str, n_ranks: int) -> None:
    (q, k, v, weights, table), told = inputs(CASES[name])
    leaves = [x.requires_grad_() for x in (q, k, v, table)]
    with in_double():
        y = attend_in_pieces(q, k, v, bias=bias_of(table, CASES[name]), **told)
        (y * weights).sum().backward()
    found = run_ranks(attend_in_a_ring, n_ranks, name, 0.0)
    expected = [y.detach(), *(x.grad for x in leaves if x.grad is not None)]
    for place, whole in enumerate(expected):
        got = (
            found[0][place]
            if whole.ndim == 2
            else torch.cat([parts[place] for parts in found], dim=2)
        )
        assert_same(got, whole, name)


def test_dropped_scores_have_the_gradients_of_what_was_kept() -> None:
    """Compares along one direction with differences: the same is dropped in every call of the same
    seed."""
    step = 1e-2
    up, down = (
        sum(parts[-1] for parts in run_ranks(attend_in_a_ring, 2, "all", 0.4, sign * step))
        for sign in (1, -1)
    )
    here = run_ranks(attend_in_a_ring, 2, "all", 0.4)
    undropped = run_ranks(attend_in_a_ring, 2, "all", 0.0)
    assert not torch.allclose(here[0][0], undropped[0][0], rtol=0.1)
    (*qkv, _, _), _ = inputs(CASES["all"])
    slope = 0.0
    for place, x in enumerate(qkv, start=1):
        slope += (torch.cat([parts[place] for parts in here], dim=2) * torch.sin(10 * x)).sum()
    torch.testing.assert_close((up - down) / (2 * step), slope, rtol=2e-2, atol=1e-2)


def see_nothing(ranks: Ranks) -> Tensor:
    group = dist.group.WORLD
    assert group is not None
    q, k, v = (torch.randn(1, 2, 4, K, requires_grad=True) for _ in range(3))
    documents, others = torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long)
    y = ring.ring_attention(
        q, k, v, group, causal=False, documents_BT=documents, source_documents_BS=others
    )
    y.sum().backward()
    assert all(x.grad is not None and not x.grad.any() for x in (q, k, v))
    return y.detach()


def test_a_query_that_may_see_nothing_gets_zeros() -> None:
    for y in run_ranks(see_nothing, 2):
        torch.testing.assert_close(y, torch.zeros_like(y))
