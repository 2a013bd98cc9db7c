"""The block of which the families are stacks: attention, in a decoder beside an encoder also to
that, and feed-forward.

Shapes: B batch, T positions, S positions of the encoder, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn

from scaling.config.run_config import RunConfig
from scaling.model.attention import CrossAttention, attention_named
from scaling.model.attention.cache import Cache
from scaling.model.attention.full import KeyValues
from scaling.model.layers import FeedForward, build_norm
from scaling.model.moe import MixtureOfExperts
from scaling.model.parametrization import residual_scale
from scaling.model.position import Context
from scaling.model.recompute import Recompute, run_block
from scaling.model.split import WHOLE, Split


class Source(NamedTuple):
    """What an encoder made of its tokens, and the document of each (None: a row is one)."""

    x_BSD: Tensor
    documents_BS: Tensor | None = None


class CrossCache(Cache):
    """One block's memory in a decoder: of its own positions, and of the source, which is projected
    once."""

    def __init__(self, own: Cache) -> None:
        self.own = own
        self.source: KeyValues | None = None

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.own.length

    def select(self, index_B: Tensor) -> None:
        self.own.select(index_B)
        if self.source is not None:
            self.source = self.source.select(index_B)


class Block(nn.Module):
    """x + f(norm(x)) (Radford et al. 2019; Xiong et al. 2020, arXiv:2002.04745), or norm(x + f(x))
    (Vaswani et al. 2017)."""

    split: Split = WHOLE
    partial_in_sequence = (
        *(
            f"{norm}_norm.{kind}"
            for norm in ("attention", "cross_attention", "feed_forward")
            for kind in ("weight", "bias")
        ),
        *("attention.o.bias", "cross_attention.o.bias", "feed_forward.down.bias"),
    )
    """Parameters that act on the residual stream: where tp ranks share its positions, each has a
    part of their gradients."""

    def __init__(
        self,
        config: RunConfig,
        *,
        causal: bool = True,
        cross: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        model = config.model
        self.pre_norm = model.norm_position == "pre"
        self.attention_norm = build_norm(model)
        self.attention = attention_named(config.attention.kind)(config, causal=causal, scale=scale)
        self.cross_attention_norm = build_norm(model) if cross else None
        self.cross_attention = CrossAttention(config, scale=scale) if cross else None
        self.feed_forward_norm = build_norm(model)
        self.feed_forward = MixtureOfExperts(model) if model.n_experts > 1 else FeedForward(model)
        self.dropout = nn.Dropout(model.dropout)
        self.residual_scale = residual_scale(model)

    def forward(
        self,
        x_BTD: Tensor,
        context: Context,
        cache: Cache | None = None,
        source: Source | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x_BTD, and the balance_B of experts where there are any."""
        own = cache.own if isinstance(cache, CrossCache) else cache
        h_BTD = self.attention(self.attention_norm(x_BTD) if self.pre_norm else x_BTD, context, own)
        x_BTD = self._add(x_BTD, h_BTD, self.attention_norm)
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            assert source is not None
            h_BTD = self.cross_attention_norm(x_BTD) if self.pre_norm else x_BTD
            keys = self._source_keys(self.cross_attention, source, cache)
            h_BTD = self.cross_attention(h_BTD, keys, context.documents_BT, source.documents_BS)
            x_BTD = self._add(x_BTD, h_BTD, self.cross_attention_norm)
        balance_B = None
        h_BTD = self.feed_forward(self.feed_forward_norm(x_BTD) if self.pre_norm else x_BTD)
        if isinstance(self.feed_forward, MixtureOfExperts):
            h_BTD, balance_B = h_BTD
        return self._add(x_BTD, h_BTD, self.feed_forward_norm), balance_B

    def _add(self, x_BTD: Tensor, h_BTD: Tensor, norm: nn.Module) -> Tensor:
        h_BTD = h_BTD if self.residual_scale == 1 else h_BTD * self.residual_scale
        with self.split.own_randomness(
            self.split.sequence and self.training and self.dropout.p > 0
        ):
            x_BTD = x_BTD + self.dropout(h_BTD)
        return x_BTD if self.pre_norm else norm(x_BTD)

    @staticmethod
    def _source_keys(
        cross_attention: CrossAttention, source: Source, cache: Cache | None
    ) -> KeyValues:
        if not isinstance(cache, CrossCache):
            return cross_attention.source(source.x_BSD)
        if cache.source is None:
            cache.source = cross_attention.source(source.x_BSD)
        return cache.source

    def new_cache(self, capacity: int) -> Cache:
        own = self.attention.new_cache(capacity)
        return own if self.cross_attention is None else CrossCache(own)


class BlockStack(nn.ModuleList):
    """`n_layers` blocks in a row, or one that is run so many times (`model.share_layers`), and how
    they are executed."""

    split: Split = WHOLE

    def __init__(
        self,
        config: RunConfig,
        *,
        causal: bool = True,
        cross: bool = False,
        scale: float | None = None,
    ) -> None:
        model = config.model
        n_blocks = 1 if model.share_layers else model.n_layers
        super().__init__(
            Block(config, causal=causal, cross=cross, scale=scale) for _ in range(n_blocks)
        )
        self.n_layers = model.n_layers
        self.recompute: Recompute = "none"

    def forward(
        self,
        x_BTD: Tensor,
        context: Context,
        caches: Sequence[Cache] | None = None,
        source: Source | None = None,
        *,
        first: int = 0,
        last: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """x_BTD after blocks [first, last) (None: all), and the balance_B of experts, summed over
        these blocks."""
        total_B = None
        x_BTD = self.split.deal(x_BTD)
        kind = self.recompute if self.training else "none"
        for index in range(first, self.n_layers if last is None else last):
            cache = caches[index] if caches is not None else None
            x_BTD, balance_B = run_block(kind, self._at(index), x_BTD, context, cache, source)
            if balance_B is not None:
                total_B = balance_B if total_B is None else total_B + balance_B
        return self.split.collect(x_BTD), total_B

    def _at(self, index: int) -> Block:
        return cast(Block, self[index % len(self)])

    def new_caches(self, capacity: int) -> list[Cache]:
        return [self._at(index).new_cache(capacity) for index in range(self.n_layers)]

    def compile_blocks(self) -> None:
        for block in self:
            block.compile()
