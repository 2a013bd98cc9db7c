"""Ring attention: ranks keep the queries of their positions, and pass keys and values round (Liu et
al. 2023, arXiv:2310.01889).

A rank meets the keys of one rank after the other. What each part contributes is weighted by the
exponentials that it has seen, whose sum is known at the end (Milakov and Gimelshein 2018,
arXiv:1805.02867). Backward goes round once more, and the gradients of keys and values travel with
them until they are home. Unlike Ulysses it takes any number of heads, and no rank ever has the keys
of more than two. Scores are made by plain products in pieces of queries, not by a fused kernel,
none of which in PyTorch's public interface tells the sums of exponentials with gradients on every
device.

Shapes: B batch, H query heads, G key/value heads, K d_head; t a rank's own queries, s the keys of a
rank, n queries of a piece, R relative positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from scaling.config.tile_sizes import PIECE
from scaling.model.attention.tiles import soft_cap
from scaling.model.position import BiasAt
from scaling.parallel.collectives import Group, pass_on


@dataclass(frozen=True)
class Scores:
    """How a query's scores are made: multiplied, masked and dropped. n_queries, documents: of all
    ranks."""

    group: Group
    n_queries: int
    causal: bool
    scale: float
    dropout_p: float
    documents_BT: Tensor | None
    source_documents_BS: Tensor | None
    cap: float | None = None

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group)

    def pieces(self, owner: int) -> Iterator[slice]:
        """Runs of the rank's own queries to be multiplied with the keys of `owner`, all of which
        may be in the future."""
        own = self.n_queries // self.size
        if not self.causal or owner <= self.rank:
            for start in range(0, own, PIECE):
                yield slice(start, min(start + PIECE, own))

    def of(
        self, q_BHnK: Tensor, k_BGsK: Tensor, bias_HR: Tensor | None, rows: slice, owner: int
    ) -> Tensor:
        """scores_BHns of the rank's queries `rows` and the keys of `owner`, in fp32; -inf where a
        key may not be seen."""
        n, s = q_BHnK.shape[2], k_BGsK.shape[2]
        q_start, k_start = self.rank * self.n_queries // self.size + rows.start, owner * s
        scores_BHns = soft_cap(_by_group(q_BHnK, k_BGsK.transpose(2, 3)) * self.scale, self.cap)
        if bias_HR is not None:  # its distances begin at 1 - n_queries
            first = k_start - (q_start + n - 1) + self.n_queries - 1
            scores_BHns = scores_BHns + bias_HR[:, first : first + n + s - 1].unfold(1, s, 1).flip(
                1
            )
        seen = self._seen(q_start, n, k_start, s, scores_BHns.device)
        return scores_BHns if seen is None else scores_BHns.masked_fill(~seen, float("-inf"))

    def _seen(
        self, q_start: int, n: int, k_start: int, s: int, device: torch.device
    ) -> Tensor | None:
        seen = None
        if self.causal and k_start + s > q_start:
            seen = torch.ones(n, s, dtype=torch.bool, device=device).tril(
                diagonal=q_start - k_start
            )
        if self.documents_BT is not None and self.source_documents_BS is not None:
            own_Bn1 = self.documents_BT[:, q_start : q_start + n, None]
            same_B1ns = (
                own_Bn1 == self.source_documents_BS[:, None, k_start : k_start + s]
            ).unsqueeze(1)
            seen = same_B1ns if seen is None else same_B1ns & seen
        return seen

    def dropped(self, x_BHns: Tensor, seed: int, rows: slice, owner: int) -> Tensor:
        """x with some of it dropped and the rest larger: the same in forward and backward."""
        if self.dropout_p == 0:
            return x_BHns
        generator = torch.Generator(x_BHns.device).manual_seed(
            seed + (owner << 31) + (rows.start << 40)
        )
        kept_p = 1 - self.dropout_p
        return x_BHns * torch.empty_like(x_BHns).bernoulli_(kept_p, generator=generator).div_(
            kept_p
        )


def ring_attention(
    q_BHtK: Tensor,
    k_BGsK: Tensor,
    v_BGsK: Tensor,
    group: Group,
    *,
    causal: bool,
    bias: BiasAt | None = None,
    documents_BT: Tensor | None = None,
    source_documents_BS: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    cap: float | None = None,
) -> Tensor:
    """y_BHtK of the rank's own queries and every rank's keys. Documents are of all positions.
    Collective over the group.

    A query that may see nothing gets zeros.
    """
    T, S = (n * dist.get_world_size(group) for n in (q_BHtK.shape[2], k_BGsK.shape[2]))
    scale = q_BHtK.shape[3] ** -0.5 if scale is None else scale
    scores = Scores(group, T, causal, scale, dropout_p, documents_BT, source_documents_BS, cap)
    bias_HR = None if bias is None else bias(torch.arange(1 - T, S, device=q_BHtK.device))
    y_BHtK: Tensor = _Ring.apply(q_BHtK, k_BGsK, v_BGsK, bias_HR, scores)
    return y_BHtK


class _Ring(torch.autograd.Function):
    """The gradients of softmax attention from its output and the logarithms of the sums of
    exponentials (Dao et al. 2022, arXiv:2205.14135, appendix B): with P the probabilities and dP =
    dY V^T, dS = P * (dP - rowsum(dY * Y))."""

    @staticmethod
    def forward(
        ctx: Any,
        q_BHtK: Tensor,
        k_BGsK: Tensor,
        v_BGsK: Tensor,
        bias_HR: Tensor | None,
        scores: Scores,
    ) -> Tensor:
        seed = int(torch.randint(2**31, ())) if scores.dropout_p else 0
        y_BHtK = torch.zeros_like(q_BHtK, dtype=torch.float32)
        log_sum_BHt1 = torch.full_like(y_BHtK[..., :1], float("-inf"))
        for owner, k_BGoK, v_BGoK in _round(k_BGsK, v_BGsK, scores):
            for rows in scores.pieces(owner):
                scores_BHns = scores.of(q_BHtK[:, :, rows], k_BGoK, bias_HR, rows, owner)
                part_BHn1 = scores_BHns.logsumexp(dim=3, keepdim=True)
                p_BHns = scores.dropped(
                    (scores_BHns - _finite(part_BHn1)).exp_(), seed, rows, owner
                )
                before_BHn1 = log_sum_BHt1[:, :, rows]
                after_BHn1 = torch.logaddexp(before_BHn1, part_BHn1)
                y_BHtK[:, :, rows] *= (before_BHn1 - _finite(after_BHn1)).exp()
                y_BHtK[:, :, rows] += (
                    _by_group(p_BHns.to(v_BGoK.dtype), v_BGoK)
                    * (part_BHn1 - _finite(after_BHn1)).exp()
                )
                log_sum_BHt1[:, :, rows] = after_BHn1
        y_BHtK = y_BHtK.to(q_BHtK.dtype)
        ctx.save_for_backward(q_BHtK, k_BGsK, v_BGsK, bias_HR, y_BHtK, log_sum_BHt1)
        ctx.scores, ctx.seed = scores, seed
        return y_BHtK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHtK: Tensor) -> tuple[Tensor | None, ...]:
        q_BHtK, k_BGsK, v_BGsK, bias_HR, y_BHtK, log_sum_BHt1 = ctx.saved_tensors
        scores: Scores = ctx.scores
        grad_q_BHtK = torch.zeros_like(q_BHtK, dtype=torch.float32)
        grad_bias_HR = None if bias_HR is None else torch.zeros_like(bias_HR)
        product_BHt1 = (grad_BHtK.float() * y_BHtK.float()).sum(dim=3, keepdim=True)
        grads: Tensor | None = None
        travelling: Callable[[], Tensor] | None = None
        for owner, k_BGoK, v_BGoK in _round(k_BGsK, v_BGsK, scores):
            grads = torch.zeros(2, *k_BGoK.shape, dtype=torch.float32, device=k_BGoK.device)
            for rows in scores.pieces(owner):
                with torch.enable_grad():
                    q, k = (
                        q_BHtK[:, :, rows].detach().requires_grad_(),
                        k_BGoK.detach().requires_grad_(),
                    )
                    bias = None if bias_HR is None else bias_HR.detach().requires_grad_()
                    scores_BHns = scores.of(q, k, bias, rows, owner)
                p_BHns = (scores_BHns.detach() - _finite(log_sum_BHt1[:, :, rows])).exp_()
                grad_BHnK = grad_BHtK[:, :, rows]
                dropped_BHns = scores.dropped(p_BHns, ctx.seed, rows, owner)
                grads[1] += _by_group_transposed(
                    dropped_BHns.to(grad_BHnK.dtype), grad_BHnK, k_BGoK.shape[1]
                )
                grad_p_BHns = scores.dropped(
                    _by_group(grad_BHnK, v_BGoK.transpose(2, 3)).float(), ctx.seed, rows, owner
                )
                grad_scores_BHns = p_BHns * (grad_p_BHns - product_BHt1[:, :, rows])
                found = torch.autograd.grad(
                    scores_BHns, [q, k] if bias is None else [q, k, bias], grad_scores_BHns
                )
                grad_q_BHtK[:, :, rows] += found[0]
                grads[0] += found[1]
                if grad_bias_HR is not None:
                    grad_bias_HR += found[2]
            if travelling is not None:
                grads += travelling()
            travelling = pass_on(grads, scores.group)
        assert travelling is not None
        grad_k_BGsK, grad_v_BGsK = travelling()
        return (
            grad_q_BHtK.to(q_BHtK.dtype),
            grad_k_BGsK.to(k_BGsK.dtype),
            grad_v_BGsK.to(v_BGsK.dtype),
            grad_bias_HR,
            None,
        )


def _round(k_BGsK: Tensor, v_BGsK: Tensor, scores: Scores) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(rank, keys, values) of every rank, this one's first, then of those before it; the next are
    on their way meanwhile."""
    keys_values = torch.stack((k_BGsK, v_BGsK))
    for turn in range(scores.size):
        coming = pass_on(keys_values, scores.group) if turn + 1 < scores.size else None
        yield (scores.rank - turn) % scores.size, keys_values[0], keys_values[1]
        if coming is not None:
            keys_values = coming()


def _finite(log_sum: Tensor) -> Tensor:
    """Replace -inf, where nothing was seen, by 0, so that exponentials of differences stay 0
    there."""
    return log_sum.masked_fill(log_sum == float("-inf"), 0.0)


def _by_group(x_BHns: Tensor, of_group_BGsK: Tensor) -> Tensor:
    """x @ what the group of each head has, in fp32: (B, H, n, K)."""
    G = of_group_BGsK.shape[1]
    return (
        (x_BHns.unflatten(1, (G, -1)).flatten(2, 3) @ of_group_BGsK)
        .float()
        .unflatten(2, (-1, x_BHns.shape[2]))
        .flatten(1, 2)
    )


def _by_group_transposed(p_BHns: Tensor, x_BHnK: Tensor, G: int) -> Tensor:
    """p^T x, summed over the heads of each of G groups: (B, G, s, K)."""
    return (
        p_BHns.unflatten(1, (G, -1)).flatten(2, 3).transpose(2, 3)
        @ x_BHnK.unflatten(1, (G, -1)).flatten(2, 3)
    ).float()
