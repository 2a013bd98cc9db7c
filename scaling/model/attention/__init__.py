"""The kinds of attention, by the name that `attention=` gives them.

A kind takes the RunConfig, is called with (x_BTD, rotation, cache) and has `new_cache(capacity)`.
"""

from __future__ import annotations

from scaling.model.attention.full import FullAttention

ATTENTIONS: dict[str, type[FullAttention]] = {"full": FullAttention}
