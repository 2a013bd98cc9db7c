"""Attention to a window and to every stride-th position beyond it, in T (2 stride + T / stride)
scores.

Shapes: B batch, T positions, H = G R query heads, G key/value heads, K d_head, n blocks of C =
stride positions, W near keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.config.run_config import RunConfig
from scaling.model.attention.base import Attention
from scaling.model.attention.cache import Cache, KVCache
from scaling.model.attention.full import attend_all
from scaling.model.attention.sparse import (
    from_blocks,
    gather_near,
    ids_in_blocks,
    joint_softmax,
    near,
    near_scores,
    queries_in_blocks,
    to_blocks,
)
from scaling.model.attention.tiles import sdpa
from scaling.model.position import Context


class StridedAttention(Attention):
    """Position t sees those less than `stride` away and those a multiple of it away (Child et al.
    2019, section 4.2).

    Both patterns in every head under one softmax, which the paper calls a merged head. Its strided
    pattern is causal; without a causal mask the same holds for both sides.
    """

    def __init__(
        self, config: RunConfig, *, causal: bool = True, scale: float | None = None
    ) -> None:
        super().__init__(config, causal=causal, scale=scale)
        self.stride = config.attention.stride_for(config.train.seq_len)

    def attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, context: Context) -> Tensor:
        T, G, C = q_BHTK.shape[2], k_BGTK.shape[1], self.stride
        if T <= C:
            return attend_all(
                q_BHTK, k_BGTK, v_BGTK, context, self.causal, self.scale, self.dropout_p
            )
        q_BGnRCK = queries_in_blocks(q_BHTK * (self.scale or self.d_head**-0.5), G, C)
        k_BGnCK, v_BGnCK = to_blocks(k_BGTK, C), to_blocks(v_BGTK, C)
        ids_BnC = ids_in_blocks(context.documents_BT, T, C, q_BHTK.device)
        scores_BGnRCW = near_scores(
            q_BGnRCK, near(k_BGnCK, self.causal), ids_BnC, C, self.causal, context
        )
        scores_BGnRCn = self._far_scores(q_BGnRCK, k_BGnCK, ids_BnC, context)
        near_BGnRCW, far_BGnRCn = joint_softmax(
            scores_BGnRCW, scores_BGnRCn, self.dropout_p, v_BGTK.dtype
        )
        y_BGnRCK = gather_near(near_BGnRCW, near(v_BGnCK, self.causal))
        R, n = far_BGnRCn.shape[3], far_BGnRCn.shape[2]
        far_BGCRnn = far_BGnRCn.permute(0, 1, 4, 3, 2, 5)
        y_BGCRnK = (far_BGCRnn.flatten(3, 4) @ v_BGnCK.transpose(2, 3)).unflatten(3, (R, n))
        return from_blocks(y_BGnRCK + y_BGCRnK.permute(0, 1, 4, 3, 2, 5), T)

    def _far_scores(
        self, q_BGnRCK: Tensor, k_BGnCK: Tensor, ids_BnC: Tensor, context: Context
    ) -> Tensor:
        """scores_BGnRCn with the keys at the same place of every other block, of which causal
        queries see earlier ones."""
        G, n, R = q_BGnRCK.shape[1:4]
        q_BGCRnK = q_BGnRCK.permute(0, 1, 4, 3, 2, 5)
        scores_BGCRnn = (q_BGCRnK.flatten(3, 4) @ k_BGnCK.permute(0, 1, 3, 4, 2)).unflatten(
            3, (R, n)
        )
        block_n = torch.arange(n, device=q_BGnRCK.device)
        relative_nn = block_n - block_n.unsqueeze(1)
        seen_nn = relative_nn < 0 if self.causal else relative_nn != 0
        if context.bias is not None:
            scores_BGCRnn = scores_BGCRnn + context.bias(relative_nn * self.stride).unflatten(
                0, (G, 1, R)
            )
        ids_BCn = ids_BnC.transpose(1, 2)
        seen_BCnn = (ids_BCn.unsqueeze(3) == ids_BCn.unsqueeze(2)) & seen_nn
        return scores_BGCRnn.masked_fill(~seen_BCnn[:, None, :, None], float("-inf")).permute(
            0, 1, 4, 3, 2, 5
        )

    def remember(self, k_BGTK: Tensor, v_BGTK: Tensor, cache: Cache) -> None:
        assert isinstance(cache, KVCache)
        cache.append(k_BGTK, v_BGTK)

    def step(
        self, q_BH1K: Tensor, k_BG1K: Tensor, v_BG1K: Tensor, context: Context, cache: Cache
    ) -> Tensor:
        """Only the keys that are seen are read: stride + T / stride of T."""
        assert isinstance(cache, KVCache)
        k_BGSK, v_BGSK = cache.append(k_BG1K, v_BG1K)
        position_S = torch.arange(k_BGSK.shape[2], device=q_BH1K.device)
        distance_S = k_BGSK.shape[2] - 1 - position_S
        seen = position_S[(distance_S < self.stride) | (distance_S % self.stride == 0)]
        mask = None if context.bias is None else context.bias(-distance_S[seen]).unsqueeze(1)
        return sdpa(
            q_BH1K, k_BGSK[:, :, seen], v_BGSK[:, :, seen], mask, self.scale, self.dropout_p
        )

    def new_cache(self, capacity: int) -> KVCache:
        return KVCache(capacity)
