"""Attention to every position, multi-head or grouped-query, through fused scaled-dot-product
attention.

Shapes: B batch, T new positions, S all positions (of the source, in cross-attention), D d_model, H
query heads, G key/value heads, K d_head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from scaling.config.run_config import RunConfig
from scaling.model.attention.base import HEADS, Attention, score_scale
from scaling.model.attention.cache import Cache, KVCache
from scaling.model.attention.ring import ring_attention
from scaling.model.attention.tiles import attend_in_pieces, sdpa
from scaling.model.layers import working
from scaling.model.position import Context
from scaling.model.split import WHOLE, OutputLinear, Split


def attend_all(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    context: Context,
    causal: bool,
    scale: float | None,
    dropout_p: float,
    cap: float | None = None,
) -> Tensor:
    """y_BHTK of the last T of S positions, by the fused kernel; where nothing is added to scores,
    it needs no mask. Capped scores are formed in pieces, since no fused kernel caps them."""
    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    if context.bias is not None or context.documents_BT is not None or cap is not None:
        return attend_in_pieces(
            q_BHTK,
            k_BGSK,
            v_BGSK,
            causal=causal,
            bias=context.bias,
            documents_BT=context.documents_BT,
            source_documents_BS=context.documents_BT,
            scale=scale,
            dropout_p=dropout_p,
            cap=cap,
        )
    mask_TS = None
    if causal and 1 < T < S:
        mask_TS = torch.ones(T, S, dtype=torch.bool, device=q_BHTK.device).tril(diagonal=S - T)
    return sdpa(q_BHTK, k_BGSK, v_BGSK, mask_TS, scale, dropout_p, is_causal=causal and T == S)


class FullAttention(Attention):
    """softmax(q k^T / sqrt(K) + bias) v (Vaswani et al. 2017); G < H shares keys and values
    (Ainslie et al. 2023)."""

    def attend(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, context: Context) -> Tensor:
        """Attend fully. With T < S the queries are the last T of S positions."""
        if self.split.ring:
            assert self.split.cp is not None
            return ring_attention(
                q_BHTK,
                k_BGSK,
                v_BGSK,
                self.split.cp,
                causal=self.causal,
                bias=context.bias,
                documents_BT=context.documents_BT,
                source_documents_BS=context.documents_BT,
                scale=self.scale,
                dropout_p=self.dropout_p,
                cap=self.cap,
            )
        return attend_all(
            q_BHTK, k_BGSK, v_BGSK, context, self.causal, self.scale, self.dropout_p, self.cap
        )

    def decode(
        self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, context: Context, cache: Cache
    ) -> Tensor:
        assert isinstance(cache, KVCache)
        return self.attend(q_BHTK, *cache.append(k_BGTK, v_BGTK), context)

    def new_cache(self, capacity: int) -> KVCache:
        return KVCache(capacity)


class KeyValues(NamedTuple):
    """A source as cross-attention sees it: made once, looked at by every position of the target.
    `sum_BGKV` is of linear attention, which needs no more of a source."""

    k_BGSK: Tensor
    v_BGSK: Tensor
    sum_BGKV: Tensor | None = None

    def select(self, index_B: Tensor) -> KeyValues:
        """These rows of the batch, in this order (beams)."""
        return KeyValues._make(None if tensor is None else tensor[index_B] for tensor in self)


class CrossAttention(nn.Module):
    """softmax(q k^T / sqrt(K)) v with the keys and values of another sequence, the encoder's
    (Vaswani et al. 2017).

    No positions: a distance between a word of the target and one of the source means nothing.
    """

    split: Split = WHOLE
    cut = HEADS
    partial: tuple[str, ...] = ()

    def __init__(self, config: RunConfig, *, scale: float | None = None) -> None:
        super().__init__()
        model = config.model
        self.d_head, self.dropout = model.head_width, config.attention.dropout
        self.scale = score_scale(config) if scale is None else scale
        self.cap = config.attention.score_cap
        q_width, kv_width = model.n_heads * self.d_head, model.kv_heads * self.d_head
        self.q = nn.Linear(model.d_model, q_width, bias=model.qkv_biased)
        self.k = nn.Linear(model.d_model, kv_width, bias=model.qkv_biased)
        self.v = nn.Linear(model.d_model, kv_width, bias=model.qkv_biased)
        self.o = OutputLinear(q_width, model.d_model, bias=model.output_biased)

    def source(self, source_BSD: Tensor) -> KeyValues:
        source_BSD = working(self.split.enter_whole(source_BSD))
        B, S, _ = source_BSD.shape
        k_BGSK, v_BGSK = (
            self.split.to_heads(linear(source_BSD).view(B, S, -1, self.d_head)).transpose(1, 2)
            for linear in (self.k, self.v)
        )
        return KeyValues(k_BGSK, v_BGSK)

    def forward(
        self,
        x_BTD: Tensor,
        source: KeyValues,
        documents_BT: Tensor | None = None,
        source_documents_BS: Tensor | None = None,
    ) -> Tensor:
        """What each position of the target gathers from the source; with documents, from those of
        its own only."""
        x_BTD = working(self.split.enter(x_BTD))
        B, T, _ = x_BTD.shape
        q_BHTK = self.split.to_heads(self.q(x_BTD).view(B, T, -1, self.d_head)).transpose(1, 2)
        with self.split.own_randomness(self.training and self.dropout > 0):
            y_BHTK = self.attend(q_BHTK, source, documents_BT, source_documents_BS)
        return self.o(self.split.to_positions(y_BHTK.transpose(1, 2)).reshape(B, T, -1))

    def attend(
        self,
        q_BHTK: Tensor,
        source: KeyValues,
        documents_BT: Tensor | None,
        source_documents_BS: Tensor | None,
    ) -> Tensor:
        """y_BHTK of T queries."""
        dropout_p = self.dropout if self.training else 0.0
        if self.split.ring:
            assert self.split.cp is not None
            return ring_attention(
                q_BHTK,
                source.k_BGSK,
                source.v_BGSK,
                self.split.cp,
                causal=False,
                documents_BT=documents_BT,
                source_documents_BS=source_documents_BS,
                scale=self.scale,
                dropout_p=dropout_p,
                cap=self.cap,
            )
        if self.cap is None and (documents_BT is None or source_documents_BS is None):
            return sdpa(q_BHTK, source.k_BGSK, source.v_BGSK, None, self.scale, dropout_p)
        return attend_in_pieces(
            q_BHTK,
            source.k_BGSK,
            source.v_BGSK,
            causal=False,
            documents_BT=documents_BT,
            source_documents_BS=source_documents_BS,
            scale=self.scale,
            dropout_p=dropout_p,
            cap=self.cap,
        )
