"""Softmax attention with biases or documents, whose scores are masked piece by piece of the
queries.

A mask of all T x S pairs would take more memory than all else in a layer, so one of a piece's
queries is made, used and, where there are more pieces, made again in backward. Causal pieces look
at no later keys, which halves the work.

Shapes: B batch, T queries, S keys, t queries of a piece, s keys that they may see, H query heads, G
key/value heads, K d_head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scaling.config.tile_sizes import PIECE
from scaling.model.position import BiasAt, bias_grid


def sdpa(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask: Tensor | None,
    scale: float | None,
    dropout_p: float,
    is_causal: bool = False,
    cap: float | None = None,
) -> Tensor:
    """Fused scaled-dot-product attention; `mask` is None, boolean (True: may be seen) or added to
    the scores; of two dims, three (heads first) or four. With a cap it is not fused."""
    if cap is not None:
        assert not is_causal, "a mask says what may be seen"
        return _capped(q_BHTK, k_BGSK, v_BGSK, mask, scale, dropout_p, cap)
    grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    if grouped and q_BHTK.is_cuda and q_BHTK.dtype == torch.float32:
        # In fp32 the only fused CUDA kernel is the memory-efficient one, and it takes no groups.
        repeats, grouped = q_BHTK.shape[1] // k_BGSK.shape[1], False
        k_BGSK, v_BGSK = (t.repeat_interleave(repeats, dim=1) for t in (k_BGSK, v_BGSK))
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q_BHTK.dtype)
    if mask is not None and mask.ndim == 3:
        mask = mask.unsqueeze(0)  # fused kernels take two dims or four
    return F.scaled_dot_product_attention(
        q_BHTK,
        k_BGSK,
        v_BGSK,
        attn_mask=mask,
        is_causal=is_causal,
        dropout_p=dropout_p,
        scale=scale,
        enable_gqa=grouped,
    )


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """cap tanh(x / cap): nearly x where it is small, and never beyond the cap (Gemma Team 2024,
    arXiv:2408.00118, section 2)."""
    return x if cap is None else cap * torch.tanh(x / cap)


def _capped(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask: Tensor | None,
    scale: float | None,
    dropout_p: float,
    cap: float,
) -> Tensor:
    """Attention whose scores are capped before a mask or a bias. A query that may see nothing gets
    zeros."""
    G, scale = k_BGSK.shape[1], q_BHTK.shape[3] ** -0.5 if scale is None else scale
    q_BGRTK = q_BHTK.unflatten(1, (G, -1)) * scale
    scores_BGRTS = soft_cap((q_BGRTK @ k_BGSK.transpose(2, 3).unsqueeze(2)).float(), cap)
    scores_BHTS = scores_BGRTS.flatten(1, 2)
    seen = None
    if mask is not None and mask.dtype == torch.bool:
        seen = mask
    elif mask is not None:
        scores_BHTS, seen = scores_BHTS + mask, mask > float("-inf")
    if seen is not None:
        scores_BHTS = scores_BHTS.masked_fill(~seen, torch.finfo(scores_BHTS.dtype).min)
    weights_BHTS = scores_BHTS.softmax(dim=-1)
    weights_BHTS = weights_BHTS if seen is None else weights_BHTS * seen
    weights_BHTS = F.dropout(weights_BHTS, dropout_p).to(v_BGSK.dtype)
    return (weights_BHTS.unflatten(1, (G, -1)) @ v_BGSK.unsqueeze(2)).flatten(1, 2)


def attend_in_pieces(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    *,
    causal: bool,
    bias: BiasAt | None = None,
    documents_BT: Tensor | None = None,
    source_documents_BS: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    cap: float | None = None,
) -> Tensor:
    """y_BHTK; causal queries are the last T of the S positions. A query that may see nothing gets
    zeros."""
    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    offset = S - T if causal else 0

    def piece(start: int, end: int, q_BHtK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor) -> Tensor:
        s = end + offset if causal else S
        mask = mask_of(
            start, end, s, offset, causal, bias, documents_BT, source_documents_BS, q_BHtK.device
        )
        return sdpa(q_BHtK, k_BGSK[:, :, :s], v_BGSK[:, :, :s], mask, scale, dropout_p, cap=cap)

    if T <= PIECE:
        return piece(0, T, q_BHTK, k_BGSK, v_BGSK)
    parts = []
    for start, q_BHtK in zip(range(0, T, PIECE), q_BHTK.split(PIECE, dim=2), strict=True):
        arguments = (start, start + q_BHtK.shape[2], q_BHtK, k_BGSK, v_BGSK)
        parts.append(
            checkpoint(piece, *arguments, use_reentrant=False, preserve_rng_state=dropout_p > 0)
            if torch.is_grad_enabled()
            else piece(*arguments)
        )
    return torch.cat(parts, dim=2)


def mask_of(
    start: int,
    end: int,
    s: int,
    offset: int,
    causal: bool,
    bias: BiasAt | None,
    documents_BT: Tensor | None,
    source_documents_BS: Tensor | None,
    device: torch.device,
) -> Tensor | None:
    """The mask of queries start to end and the first s keys: boolean, or with biases added to the
    scores; None: all may be seen."""
    seen = None
    if causal and (s > 1 or end - start > 1):
        seen = torch.ones(end - start, s, dtype=torch.bool, device=device).tril(
            diagonal=start + offset
        )
    if documents_BT is not None and source_documents_BS is not None:
        same_B1ts = (
            documents_BT[:, start:end, None] == source_documents_BS[:, None, :s]
        ).unsqueeze(1)
        seen = same_B1ts if seen is None else same_B1ts & seen
    if bias is None:
        return seen
    bias_Hts = bias_grid(bias, start + offset, end - start, 0, s, device)
    return bias_Hts if seen is None else bias_Hts.masked_fill(~seen, float("-inf"))
