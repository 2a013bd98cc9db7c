"""What strided and hierarchical attention share: near keys by neighbouring blocks, far ones
besides, under one softmax.

Two sets of keys under one softmax are beyond the fused kernels, so these scores are formed: T (W +
F) of them, never T x T.

Shapes: B batch, T positions, H = G R query heads, G key/value heads, R queries that share one, K
d_head, n blocks, C positions of a block, W near keys of a block, F far keys of a query.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scaling.model.position import Context, bias_grid

OUTSIDE, BEYOND = -2, -3
"""Document numbers of positions that fill up the last block, and of blocks before the first and
after the last. No document has them (PADDING is -1); the first see one another, so that no query is
without a key."""


def to_blocks(x_BHTK: Tensor, C: int) -> Tensor:
    """x_BHnCK; zeros fill up the last block."""
    return F.pad(x_BHTK, (0, 0, 0, -x_BHTK.shape[2] % C)).unflatten(2, (-1, C))


def queries_in_blocks(q_BHTK: Tensor, n_groups: int, C: int) -> Tensor:
    """q_BGnRCK."""
    return to_blocks(q_BHTK, C).unflatten(1, (n_groups, -1)).transpose(2, 3)


def from_blocks(y_BGnRCK: Tensor, T: int) -> Tensor:
    """y_BHTK."""
    return y_BGnRCK.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :, :T]


def near(x_BGnCK: Tensor, causal: bool) -> Tensor:
    """x_BGnWK: of each block the one before and itself, W = 2C, and without a causal mask the one
    after, W = 3C."""
    n = x_BGnCK.shape[2]
    padded = F.pad(x_BGnCK, (0, 0, 0, 0, 1, 0 if causal else 1))
    return torch.cat([padded[:, :, i : i + n] for i in range(2 if causal else 3)], dim=3)


def ids_in_blocks(documents_BT: Tensor | None, T: int, C: int, device: torch.device) -> Tensor:
    """ids_BnC of each position's document; B = 1 where a row is one document."""
    if documents_BT is None:
        documents_BT = torch.zeros(1, T, dtype=torch.long, device=device)
    return F.pad(documents_BT, (0, -T % C), value=OUTSIDE).unflatten(1, (-1, C))


def near_ids(ids_BnC: Tensor, causal: bool) -> Tensor:
    """ids_BnW of the near keys."""
    n = ids_BnC.shape[1]
    padded = F.pad(ids_BnC, (0, 0, 1, 0 if causal else 1), value=BEYOND)
    return torch.cat([padded[:, i : i + n] for i in range(2 if causal else 3)], dim=2)


def near_scores(
    q_BGnRCK: Tensor,
    k_BGnWK: Tensor,
    ids_BnC: Tensor,
    window: int | None,
    causal: bool,
    context: Context,
) -> Tensor:
    """scores_BGnRCW, -inf where a key is of another document, in the future, or `window` or more
    away."""
    G, R, C, W = *q_BGnRCK.shape[1:5:2], q_BGnRCK.shape[4], k_BGnWK.shape[3]
    relative_CW = torch.arange(-C, W - C, device=q_BGnRCK.device) - torch.arange(
        C, device=q_BGnRCK.device
    ).unsqueeze(1)
    seen_CW = relative_CW <= 0 if causal else torch.ones_like(relative_CW, dtype=torch.bool)
    if window is not None:
        seen_CW = seen_CW & (relative_CW.abs() < window)
    seen_BnCW = (ids_BnC.unsqueeze(3) == near_ids(ids_BnC, causal).unsqueeze(2)) & seen_CW
    scores = (q_BGnRCK.flatten(3, 4) @ k_BGnWK.transpose(3, 4)).unflatten(3, (R, C))
    if context.bias is not None:
        scores = scores + bias_grid(context.bias, C, C, 0, W, scores.device).unflatten(0, (G, 1, R))
    return scores.masked_fill(~seen_BnCW[:, None, :, None], float("-inf"))


def joint_softmax(
    near_BGnRCW: Tensor, far_BGnRCF: Tensor, dropout_p: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The weights of near and far keys in `dtype`, which together sum to 1; softmax in fp32."""
    W = near_BGnRCW.shape[-1]
    weights = (
        torch.cat((near_BGnRCW, far_BGnRCF), dim=-1).softmax(dim=-1, dtype=torch.float32).to(dtype)
    )
    weights = F.dropout(weights, dropout_p)
    return weights[..., :W], weights[..., W:]


def gather_near(weights_BGnRCW: Tensor, v_BGnWK: Tensor) -> Tensor:
    """y_BGnRCK."""
    R, C = weights_BGnRCW.shape[3:5]
    return (weights_BGnRCW.flatten(3, 4) @ v_BGnWK).unflatten(3, (R, C))
