"""Attention in a sliding window, in time and memory linear in T.

The queries are cut into chunks. All chunks but those near the ends see equally many keys by the
same pattern, so they go through fused attention together, as rows of a larger batch with one small
mask; the others each look at what there is.

Shapes: B batch, T positions, H query heads, G key/value heads, K d_head, n chunks in the middle, C
positions of a chunk, W keys that it looks at, c and w those of a chunk near an end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.config.run_config import RunConfig
from scaling.config.tile_sizes import CHUNKS_PER_WINDOW
from scaling.model.attention.base import Attention
from scaling.model.attention.cache import Cache, WindowCache
from scaling.model.attention.full import attend_all
from scaling.model.attention.tiles import sdpa
from scaling.model.position import Context, bias_grid


class LocalAttention(Attention):
    """Position t sees those from t - window + 1 to t, without a causal mask to t + window - 1
    (Beltagy et al. 2020)."""

    def __init__(
        self, config: RunConfig, *, causal: bool = True, scale: float | None = None
    ) -> None:
        super().__init__(config, causal=causal, scale=scale)
        assert config.attention.window is not None
        self.window = config.attention.window

    def attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, context: Context) -> Tensor:
        T = q_BHTK.shape[2]
        if self.window >= T:
            return attend_all(
                q_BHTK, k_BGTK, v_BGTK, context, self.causal, self.scale, self.dropout_p, self.cap
            )
        C = -(-self.window // CHUNKS_PER_WINDOW)
        back = -(-(self.window - 1) // C)
        ahead = 0 if self.causal else back
        first, last = back, max(back, T // C - ahead)
        parts = [
            self._end(c, C, back, ahead, q_BHTK, k_BGTK, v_BGTK, context)
            for c in range(min(first, -(-T // C)))
        ]
        if last > first:
            parts.append(
                self._middle(first, last - first, C, back, ahead, q_BHTK, k_BGTK, v_BGTK, context)
            )
        parts += [
            self._end(c, C, back, ahead, q_BHTK, k_BGTK, v_BGTK, context)
            for c in range(last, -(-T // C))
        ]
        return torch.cat(parts, dim=2)

    def _end(
        self,
        chunk: int,
        C: int,
        back: int,
        ahead: int,
        q_BHTK: Tensor,
        k_BGTK: Tensor,
        v_BGTK: Tensor,
        context: Context,
    ) -> Tensor:
        T = q_BHTK.shape[2]
        q_at = slice(chunk * C, min(T, (chunk + 1) * C))
        k_at = slice(max(0, (chunk - back) * C), min(T, (chunk + 1 + ahead) * C))
        mask = self._mask(
            q_at.start - k_at.start,
            q_at.stop - q_at.start,
            k_at.stop - k_at.start,
            q_BHTK.device,
            context,
        )
        if (ids_BT := context.documents_BT) is not None:
            mask = _within(mask, ids_BT[:, q_at, None] == ids_BT[:, None, k_at])
        return sdpa(
            q_BHTK[:, :, q_at],
            k_BGTK[:, :, k_at],
            v_BGTK[:, :, k_at],
            mask,
            self.scale,
            self.dropout_p,
            cap=self.cap,
        )

    def _middle(
        self,
        first: int,
        n: int,
        C: int,
        back: int,
        ahead: int,
        q_BHTK: Tensor,
        k_BGTK: Tensor,
        v_BGTK: Tensor,
        context: Context,
    ) -> Tensor:
        (B, H, _, K), last, W = q_BHTK.shape, first + n, (back + 1 + ahead) * C
        q_at, k_at = slice(first * C, last * C), slice((first - back) * C, (last + ahead) * C)
        # With T before the heads, as the projections leave them, the queries need no copy.
        q_XHCK = q_BHTK[:, :, q_at].transpose(1, 2).reshape(B * n, C, H, K).transpose(1, 2)
        k_XGWK, v_XGWK = (
            t[:, :, k_at]
            .transpose(1, 2)
            .unfold(1, W, C)
            .movedim(-1, 2)
            .reshape(B * n, W, -1, K)
            .transpose(1, 2)
            for t in (k_BGTK, v_BGTK)
        )
        mask = self._mask(back * C, C, W, q_BHTK.device, context)
        if (ids_BT := context.documents_BT) is not None:
            q_ids_XC1 = ids_BT[:, q_at].reshape(B * n, C, 1)
            k_ids_X1W = ids_BT[:, k_at].unfold(1, W, C).reshape(B * n, 1, W)
            mask = _within(mask, q_ids_XC1 == k_ids_X1W)
        y_XHCK = sdpa(q_XHCK, k_XGWK, v_XGWK, mask, self.scale, self.dropout_p, cap=self.cap)
        return y_XHCK.transpose(1, 2).reshape(B, n * C, H, K).transpose(1, 2)

    def _mask(
        self, shift: int, n_q: int, n_k: int, device: torch.device, context: Context
    ) -> Tensor:
        """The mask of n_q queries and n_k keys; the first query stands `shift` after the first
        key."""
        relative_qk = torch.arange(n_k, device=device) - torch.arange(
            shift, shift + n_q, device=device
        ).unsqueeze(1)
        seen_qk = (relative_qk > -self.window) & (relative_qk < (1 if self.causal else self.window))
        if context.bias is None:
            return seen_qk
        return bias_grid(context.bias, shift, n_q, 0, n_k, device).masked_fill(
            ~seen_qk, float("-inf")
        )

    def remember(self, k_BGTK: Tensor, v_BGTK: Tensor, cache: Cache) -> None:
        assert isinstance(cache, WindowCache)
        cache.append(k_BGTK, v_BGTK)

    def step(
        self, q_BH1K: Tensor, k_BG1K: Tensor, v_BG1K: Tensor, context: Context, cache: Cache
    ) -> Tensor:
        assert isinstance(cache, WindowCache)
        k_BGWK, v_BGWK = cache.append(k_BG1K, v_BG1K)
        W = k_BGWK.shape[2]
        mask = (
            None if context.bias is None else bias_grid(context.bias, W - 1, 1, 0, W, q_BH1K.device)
        )
        return sdpa(q_BH1K, k_BGWK, v_BGWK, mask, self.scale, self.dropout_p, cap=self.cap)

    def new_cache(self, capacity: int) -> WindowCache:
        return WindowCache(min(self.window, capacity))


def _within(mask: Tensor, same_Xqk: Tensor) -> Tensor:
    """A mask of scores, boolean or added, narrowed to pairs of one document."""
    same_X1qk = same_Xqk.unsqueeze(1)
    return mask & same_X1qk if mask.dtype == torch.bool else mask.where(same_X1qk, float("-inf"))
