"""The kinds of attention, by the name that `attention=` gives them.

Self-attention is built as KIND(config, causal=..., scale=...) and called as (x_BTD, context, cache); see base.Attention.
Cross-attention is built as KIND(config, scale=...); `source(memory_BSD)` makes what is called as (x_BTD, source,
documents_BT, source_documents_BS).
"""

from __future__ import annotations

from scaling.model.attention.base import Attention
from scaling.model.attention.full import CrossAttention, FullAttention

ATTENTIONS: dict[str, type[Attention]] = {"full": FullAttention}
CROSS_ATTENTIONS: dict[str, type[CrossAttention]] = {"full": CrossAttention}
