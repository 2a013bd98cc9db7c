"""The block of which the families are stacks: attention, in a decoder beside an encoder also to
that, and feed-forward.

Shapes: B batch, T positions, S positions of the encoder, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn

from scaling.config.cluster import Checkpointing
from scaling.config.run_config import RunConfig
from scaling.model.attention import CrossAttention, attention_named
from scaling.model.attention.cache import Cache
from scaling.model.attention.full import KeyValues
from scaling.model.layers import FeedForward, build_norm
from scaling.model.moe import MixtureOfExperts
from scaling.model.parametrization import residual_scale
from scaling.model.position import Context
from scaling.model.recompute import run_block
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
    """x + f(norm(x)) (Radford et al. 2019; Xiong et al. 2020, arXiv:2002.04745), norm(x + f(x))
    (Vaswani et al. 2017), or x + norm(f(norm(x))) (sandwich; Ding et al. 2021, arXiv:2105.13290).
    f is attention, then the feed-forward layer; or both of one input (Wang and Komatsuzaki 2021,
    GPT-J)."""

    split: Split = WHOLE
    partial_in_sequence = (
        *(
            f"{norm}_norm.{kind}"
            for norm in (
                *("attention", "cross_attention", "feed_forward"),
                *("attention_post", "cross_attention_post", "feed_forward_post"),
            )
            for kind in ("weight", "bias")
        ),
        *("attention.o.bias", "cross_attention.o.bias", "feed_forward.down.bias"),
    )
    """Parameters that act on the residual stream: where tp ranks share its positions, each has a
    part of their gradients."""

    def __init__(
        self,
        config: RunConfig,
        layer: int = 0,
        *,
        causal: bool = True,
        cross: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        model, kind = config.model, config.attention.kind_at(layer)
        sandwich, one_norm = (
            model.norm_position == "sandwich",
            model.residual == "parallel_one_norm",
        )
        self.pre_norm, self.parallel = model.norm_position != "post", model.residual != "serial"
        self.in_pattern = kind != config.attention.kind
        self.attention_norm = build_norm(model) if layer > 0 or model.first_norm else nn.Identity()
        self.attention = attention_named(kind)(config, causal=causal, scale=scale)
        self.attention_post_norm = build_norm(model) if sandwich else None
        self.cross_attention_norm = build_norm(model) if cross else None
        self.cross_attention = CrossAttention(config, scale=scale) if cross else None
        self.cross_attention_post_norm = build_norm(model) if cross and sandwich else None
        self.feed_forward_norm = None if one_norm else build_norm(model)
        self.feed_forward = MixtureOfExperts(model) if model.n_experts > 1 else FeedForward(model)
        self.feed_forward_post_norm = build_norm(model) if sandwich else None
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
        if self.in_pattern and context.local_rotation is not None:
            context = context._replace(rotation=context.local_rotation)
        if self.parallel:
            return self._of_one_input(x_BTD, context, own)
        h_BTD = self.attention(self.attention_norm(x_BTD) if self.pre_norm else x_BTD, context, own)
        x_BTD = self._add(x_BTD, h_BTD, self.attention_norm, self.attention_post_norm)
        if self.cross_attention is not None and self.cross_attention_norm is not None:
            assert source is not None
            h_BTD = self.cross_attention_norm(x_BTD) if self.pre_norm else x_BTD
            keys = self._source_keys(self.cross_attention, source, cache)
            h_BTD = self.cross_attention(h_BTD, keys, context.documents_BT, source.documents_BS)
            x_BTD = self._add(
                x_BTD, h_BTD, self.cross_attention_norm, self.cross_attention_post_norm
            )
        assert self.feed_forward_norm is not None
        normed_BTD = self.feed_forward_norm(x_BTD) if self.pre_norm else x_BTD
        h_BTD, balance_B = self._fed_forward(normed_BTD)
        x_BTD = self._add(x_BTD, h_BTD, self.feed_forward_norm, self.feed_forward_post_norm)
        return x_BTD, balance_B

    def _of_one_input(
        self, x_BTD: Tensor, context: Context, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        """x + attention(norm(x)) + feed_forward(norm(x)), each with a norm of its own or with
        one."""
        normed_BTD = self.attention_norm(x_BTD)
        h_BTD = self.attention(normed_BTD, context, cache)
        if self.feed_forward_norm is not None:
            normed_BTD = self.feed_forward_norm(x_BTD)
        m_BTD, balance_B = self._fed_forward(normed_BTD)
        return self._add(self._add(x_BTD, h_BTD), m_BTD), balance_B

    def _fed_forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.feed_forward, MixtureOfExperts):
            y_BTD, balance_B = self.feed_forward(x_BTD)
            return y_BTD, balance_B
        return self.feed_forward(x_BTD), None

    def _add(
        self,
        x_BTD: Tensor,
        h_BTD: Tensor,
        norm: nn.Module | None = None,
        post_norm: nn.Module | None = None,
    ) -> Tensor:
        """The residual stream with a sublayer's output; post-norm norms their sum, a sandwich the
        output alone."""
        h_BTD = h_BTD if post_norm is None else post_norm(h_BTD)
        h_BTD = h_BTD if self.residual_scale == 1 else h_BTD * self.residual_scale
        with self.split.own_randomness(
            self.split.sequence and self.training and self.dropout.p > 0
        ):
            x_BTD = x_BTD + self.dropout(h_BTD)
        return x_BTD if self.pre_norm or norm is None else norm(x_BTD)

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
            Block(config, layer, causal=causal, cross=cross, scale=scale)
            for layer in range(n_blocks)
        )
        self.n_layers = model.n_layers
        self.recompute: Checkpointing = "none"

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
