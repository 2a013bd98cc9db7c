"""Attention to every position, multi-head or grouped-query, through fused scaled-dot-product attention.

Shapes: B batch, T new positions, S all positions (of the source, in cross-attention), D d_model, H query heads,
G key/value heads, K d_head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from scaling.config import RunConfig
from scaling.model.attention.base import Attention
from scaling.model.attention.cache import Cache, KVCache
from scaling.model.attention.pieces import attend_in_pieces, sdpa
from scaling.model.position import Context


class FullAttention(Attention):
    """softmax(q k^T / sqrt(K) + bias) v (Vaswani et al. 2017); G < H shares keys and values (Ainslie et al. 2023)."""

    def attend(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, context: Context) -> Tensor:
        """With T < S the queries are the last T of S positions."""
        T, S = q_BHTK.shape[2], k_BGSK.shape[2]
        if context.bias is not None or context.documents_BT is not None:
            return attend_in_pieces(
                q_BHTK, k_BGSK, v_BGSK, causal=self.causal, bias=context.bias, documents_BT=context.documents_BT,
                source_documents_BS=context.documents_BT, scale=self.scale, dropout_p=self.dropout_p,
            )  # fmt: skip
        mask_TS = None
        if 1 < T < S:
            mask_TS = torch.ones(T, S, dtype=torch.bool, device=q_BHTK.device).tril(diagonal=S - T)
        return sdpa(q_BHTK, k_BGSK, v_BGSK, mask_TS, self.scale, self.dropout_p, is_causal=self.causal and T == S)

    def decode(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, context: Context, cache: Cache) -> Tensor:
        assert isinstance(cache, KVCache)
        return self.attend(q_BHTK, *cache.append(k_BGTK, v_BGTK), context)

    def new_cache(self, capacity: int) -> KVCache:
        return KVCache(capacity)


class KeyValues(NamedTuple):
    """A source as cross-attention sees it: made once, looked at by every position of the target."""

    k_BGSK: Tensor
    v_BGSK: Tensor

    def select(self, index_B: Tensor) -> KeyValues:
        """These rows of the batch, in this order (beams)."""
        return KeyValues(self.k_BGSK[index_B], self.v_BGSK[index_B])


class CrossAttention(nn.Module):
    """softmax(q k^T / sqrt(K)) v with the keys and values of another sequence, the encoder's (Vaswani et al. 2017).

    No positions: a distance between a word of the target and one of the source means nothing.
    """

    def __init__(self, config: RunConfig, *, scale: float | None = None) -> None:
        super().__init__()
        model = config.model
        self.d_head, self.dropout, self.scale = model.head_width, config.attention.dropout, scale
        q_width, kv_width = model.n_heads * self.d_head, model.kv_heads * self.d_head
        self.q = nn.Linear(model.d_model, q_width, bias=model.bias)
        self.k = nn.Linear(model.d_model, kv_width, bias=model.bias)
        self.v = nn.Linear(model.d_model, kv_width, bias=model.bias)
        self.o = nn.Linear(q_width, model.d_model, bias=model.bias)

    def source(self, source_BSD: Tensor) -> KeyValues:
        B, S, _ = source_BSD.shape
        k_BGSK, v_BGSK = (linear(source_BSD).view(B, S, -1, self.d_head).transpose(1, 2) for linear in (self.k, self.v))
        return KeyValues(k_BGSK, v_BGSK)

    def forward(
        self,
        x_BTD: Tensor,
        source: KeyValues,
        documents_BT: Tensor | None = None,
        source_documents_BS: Tensor | None = None,
    ) -> Tensor:
        """What each position of the target gathers from the source; with documents, from those of its own only."""
        B, T, _ = x_BTD.shape
        q_BHTK = self.q(x_BTD).view(B, T, -1, self.d_head).transpose(1, 2)
        y_BHTK = attend_in_pieces(
            q_BHTK, *source, causal=False, documents_BT=documents_BT, source_documents_BS=source_documents_BS,
            scale=self.scale, dropout_p=self.dropout if self.training else 0.0,
        )  # fmt: skip
        return self.o(y_BHTK.transpose(1, 2).reshape(B, T, -1))
