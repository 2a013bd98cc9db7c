"""Attention to every earlier position, multi-head or grouped-query, through fused scaled-dot-product attention.

Shapes: B batch, T new positions, S all positions so far, D d_model, H query heads, G key/value heads, K d_head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.config import RunConfig
from scaling.model.attention.cache import KVCache
from scaling.model.position import Rotation, rotate


class FullAttention(nn.Module):
    """softmax(q k^T / sqrt(K)) v over the past (Vaswani et al. 2017); G < H shares keys and values (Ainslie et al. 2023).

    Head counts are read from the tensors, so a rank that holds a slice of the heads runs the same code.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        model = config.model
        self.d_head, self.dropout = model.head_width, config.attention.dropout
        q_width, kv_width = model.n_heads * self.d_head, model.kv_heads * self.d_head
        self.q = nn.Linear(model.d_model, q_width, bias=model.bias)
        self.k = nn.Linear(model.d_model, kv_width, bias=model.bias)
        self.v = nn.Linear(model.d_model, kv_width, bias=model.bias)
        self.o = nn.Linear(q_width, model.d_model, bias=model.bias)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, cache: KVCache | None = None) -> Tensor:
        B, T, _ = x_BTD.shape
        q_BTHK = self.q(x_BTD).view(B, T, -1, self.d_head)
        k_BTGK = self.k(x_BTD).view(B, T, -1, self.d_head)
        v_BTGK = self.v(x_BTD).view(B, T, -1, self.d_head)
        if rotation is not None:
            q_BTHK, k_BTGK = rotate(q_BTHK, rotation), rotate(k_BTGK, rotation)
        k_BGSK, v_BGSK = k_BTGK.transpose(1, 2), v_BTGK.transpose(1, 2)
        if cache is not None:
            k_BGSK, v_BGSK = cache.append(k_BGSK, v_BGSK)
        y_BHTK = self.attend(q_BTHK.transpose(1, 2), k_BGSK, v_BGSK)
        return self.o(y_BHTK.transpose(1, 2).reshape(B, T, -1))

    def attend(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor) -> Tensor:
        """The last T of S positions look at themselves and at all before them."""
        T, S = q_BHTK.shape[2], k_BGSK.shape[2]
        grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
        if grouped and q_BHTK.is_cuda and q_BHTK.dtype == torch.float32:
            # In fp32 the only fused CUDA kernel is the memory-efficient one, and it takes no groups.
            repeats, grouped = q_BHTK.shape[1] // k_BGSK.shape[1], False
            k_BGSK, v_BGSK = (t.repeat_interleave(repeats, dim=1) for t in (k_BGSK, v_BGSK))
        mask_TS = None
        if 1 < T < S:
            mask_TS = torch.ones(T, S, dtype=torch.bool, device=q_BHTK.device).tril(diagonal=S - T)
        return F.scaled_dot_product_attention(
            q_BHTK, k_BGSK, v_BGSK,
            attn_mask=mask_TS, is_causal=T == S, dropout_p=self.dropout if self.training else 0.0, enable_gqa=grouped,
        )  # fmt: skip

    def new_cache(self, capacity: int) -> KVCache:
        """Room for `capacity` positions of this layer."""
        return KVCache(capacity)
