"""The block of which the families are stacks: attention and feed-forward, each normalised before and added after.

Shapes: B batch, T positions, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scaling.config import RunConfig
from scaling.model.attention import ATTENTIONS
from scaling.model.attention.cache import Cache
from scaling.model.layers import FEED_FORWARDS, build_norm
from scaling.model.position import Context


class Block(nn.Module):
    """Pre-norm block (Radford et al. 2019; Xiong et al. 2020, arXiv:2002.04745)."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        model = config.model
        self.attention_norm = build_norm(model)
        self.attention = ATTENTIONS[config.attention.kind](config)
        self.feed_forward_norm = build_norm(model)
        self.feed_forward = FEED_FORWARDS[model.activation](model)
        self.dropout = nn.Dropout(model.dropout)

    def forward(self, x_BTD: Tensor, context: Context, cache: Cache | None = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), context, cache))
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))


class BlockStack(nn.ModuleList):
    """`n_layers` blocks in a row, and how they are executed."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(Block(config) for _ in range(config.model.n_layers))
        self.checkpointing: Literal["none", "full"] = "none"

    def forward(self, x_BTD: Tensor, context: Context, caches: Sequence[Cache] | None = None) -> Tensor:
        for index, block in enumerate(self):
            if self.checkpointing == "full" and self.training:
                x_BTD = cast(Tensor, checkpoint(block, x_BTD, context, use_reentrant=False))
            else:
                x_BTD = block(x_BTD, context, caches[index] if caches is not None else None)
        return x_BTD

    def new_caches(self, capacity: int) -> list[Cache]:
        return [cast(Block, block).attention.new_cache(capacity) for block in self]

    def compile_blocks(self) -> None:
        for block in self:
            block.compile()
