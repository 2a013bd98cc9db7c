"""The kinds of attention, by the name that `attention=` gives them.

Self-attention is built as KIND(config, causal=..., scale=...) and called as (x_BTD, context,
cache); see base.Attention. Cross-attention is built as KIND(config, scale=...);
`source(memory_BSD)` makes what is called as (x_BTD, source, documents_BT, source_documents_BS).
"""

from __future__ import annotations

from scaling.config.plugins import added
from scaling.model.attention.base import Attention
from scaling.model.attention.full import CrossAttention, FullAttention
from scaling.model.attention.hierarchical import HierarchicalAttention
from scaling.model.attention.linear import LinearAttention, LinearCrossAttention
from scaling.model.attention.local import LocalAttention
from scaling.model.attention.relative import RelativeAttention
from scaling.model.attention.strided import StridedAttention

ATTENTIONS: dict[str, type[Attention]] = {
    "full": FullAttention,
    "gqa": FullAttention,
    "mqa": FullAttention,
    "relative": RelativeAttention,
    "local": LocalAttention,
    "strided": StridedAttention,
    "linear": LinearAttention,
    "hierarchical": HierarchicalAttention,
}

CROSS_ATTENTIONS: dict[str, type[CrossAttention]] = {
    "full": CrossAttention,
    "gqa": CrossAttention,
    "mqa": CrossAttention,
    "relative": CrossAttention,
    "local": CrossAttention,
    "strided": CrossAttention,
    "hierarchical": CrossAttention,
    "linear": LinearCrossAttention,
}
"""Kinds that choose positions by their distance see the whole source: a target has no distance to
it (Guo et al. 2022, arXiv:2112.07916, do the same)."""


def attention_named(kind: str) -> type[Attention]:
    """The class of self-attention of a kind of this package, or of one that a plugin adds."""
    attention: type[Attention] = (
        ATTENTIONS[kind] if kind in ATTENTIONS else added("attentions")[kind].load()
    )
    return attention
