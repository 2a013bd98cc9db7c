"""Naive attention for tests: every pair of positions from the definition, with no thought of memory
or time.

Shapes: B batch, T positions, H query heads, K d_head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scaling.model.attention import ATTENTIONS
from scaling.model.attention.base import Attention
from scaling.model.attention.relative import RelativeAttention
from scaling.model.position import POSITIONS, Context, Position, rotate
from tests.support.configs import composed

SHAPE = ("model.d_model=48", "model.n_heads=6", "train.seq_len=36")
SIZES = {
    "local": "attention.window=5",
    "hierarchical": "attention.block=4",
    "relative": "attention.max_distance=3",
    "strided": "attention.stride=6",
    "linear": "attention.dropout=0",
    "full": "attention.dropout=0",
}
KINDS = list(SIZES)


def build(
    kind: str, *overrides: str, causal: bool = True, n_kv_heads: int = 2, position: str = "none"
) -> tuple[Attention, Position]:
    """An attention of six heads of eight, with its position, weights far from zero."""
    torch.manual_seed(0)
    config = composed(
        *SHAPE,
        f"attention={kind}",
        SIZES[kind],
        f"model.n_kv_heads={n_kv_heads}",
        f"position={position}",
        *overrides,
    )
    module, at = ATTENTIONS[kind](config, causal=causal), POSITIONS[position](config, causal=causal)
    for parameter in [*module.parameters(), *at.parameters()]:
        torch.nn.init.normal_(parameter, std=0.3)
    return module, at


def naive(module: Attention, x_BTD: Tensor, context: Context) -> Tensor:
    """The module's output for x, by one of the definitions below."""
    B, T, _ = x_BTD.shape
    q, k, v = (
        linear(x_BTD).view(B, T, -1, module.d_head) for linear in (module.q, module.k, module.v)
    )
    k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], dim=2) for t in (k, v))
    ids_BT = (
        torch.zeros(B, T, dtype=torch.long)
        if context.documents_BT is None
        else context.documents_BT
    )
    name = type(module).__name__.removesuffix("Attention").lower()
    if name == "linear":
        y = naive_linear(module, q, k, v, context, ids_BT)
    else:
        if context.rotation is not None:
            q, k = rotate(q, context.rotation), rotate(k, context.rotation)
        scores_BHTT = torch.einsum("bthk,bshk->bhts", q, k)
        if isinstance(module, RelativeAttention):
            scores_BHTT = scores_BHTT + torch.einsum(
                "bthk,tsk->bhts", q, vectors(module, module.relative_k, T)
            )
        scores_BHTT = scores_BHTT * (module.scale or 1 / math.sqrt(module.d_head))
        if context.bias is not None:
            at = torch.arange(T)
            scores_BHTT = scores_BHTT + context.bias(at[None, :] - at[:, None])
        if name == "hierarchical":
            y = naive_hierarchical(module, scores_BHTT, v, ids_BT)
        else:
            seen_TT = torch.tensor([[sees(name, module, t, s) for s in range(T)] for t in range(T)])
            seen_BHTT = seen_TT & (ids_BT[:, None, :, None] == ids_BT[:, None, None, :])
            weights_BHTT = scores_BHTT.masked_fill(~seen_BHTT, float("-inf")).softmax(-1)
            y = torch.einsum("bhts,bshk->bthk", weights_BHTT, v)
            if isinstance(module, RelativeAttention) and module.relative_v is not None:
                y = y + torch.einsum(
                    "bhts,tsk->bthk", weights_BHTT, vectors(module, module.relative_v, T)
                )
    return module.o(y.reshape(B, T, -1))


def sees(name: str, module: Attention, t: int, s: int) -> bool:
    """Whether position t may look at position s."""
    if module.causal and s > t:
        return False
    if name == "local":
        return abs(t - s) < module.window
    if name == "strided":
        return abs(t - s) < module.stride or (t - s) % module.stride == 0
    return True


def vectors(module: RelativeAttention, table: torch.nn.Embedding, T: int) -> Tensor:
    """T x T x K: of each pair the vector of its clipped distance."""
    n = module.max_distance
    return torch.stack(
        [
            torch.stack(
                [
                    table.weight[max(-n, min(n, s - t)) + n]
                    if s <= t or not module.causal
                    else torch.zeros(module.d_head)
                    for s in range(T)
                ]
            )
            for t in range(T)
        ]
    )


def naive_linear(
    module: Attention, q: Tensor, k: Tensor, v: Tensor, context: Context, ids_BT: Tensor
) -> Tensor:
    def feature(x: Tensor) -> Tensor:
        return torch.where(x > 0, x + 1, x.exp())

    T = q.shape[1]
    q, k = feature(q), feature(k)
    seen = ids_BT[:, None, :, None] == ids_BT[:, None, None, :]
    if module.causal:
        seen = seen & torch.ones(T, T, dtype=torch.bool).tril()
    if context.bias is not None:
        at = torch.arange(T)
        seen = seen * context.bias(at[None, :] - at[:, None]).exp()
    norm = torch.einsum("bthk,bshk->bhts", q, k) * seen
    if context.rotation is not None:
        q, k = rotate(q, context.rotation), rotate(k, context.rotation)
    top = torch.einsum("bthk,bshk->bhts", q, k) * seen
    return torch.einsum("bhts,bshk->bthk", top, v) / (
        norm.sum(-1).transpose(1, 2)[..., None] + 1e-6
    )


def naive_hierarchical(
    module: Attention, scores_BHTT: Tensor, v_BTHK: Tensor, ids_BT: Tensor
) -> Tensor:
    """Query by query: the scores and values of near words, and of far blocks the means over the
    words that count."""
    B, H, T, _ = scores_BHTT.shape
    C, rows = module.block, []
    for b in range(B):
        ids = ids_BT[b].tolist()
        for t in range(T):
            keys = []
            for block in range(-(-T // C)):
                words = range(block * C, min(T, (block + 1) * C))
                away = block - t // C
                if abs(away) <= 1:
                    keys += [
                        [s] for s in words if ids[s] == ids[t] and (s <= t or not module.causal)
                    ]
                elif away < 0 or not module.causal:
                    own = [s for s in words if ids[s] == ids[t]]
                    keys += [own] if own else []
            scores = torch.stack(
                [scores_BHTT[b, :, t, own].mean(-1) + math.log(len(own)) for own in keys], dim=-1
            )
            values = torch.stack([v_BTHK[b, own].mean(0) for own in keys])
            rows.append(torch.einsum("hs,shk->hk", scores.softmax(-1), values))
    return torch.stack(rows).view(B, T, H, -1)
