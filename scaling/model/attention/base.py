"""What every kind of self-attention is to a block, and what of it the kinds share.

Shapes: B batch, T new positions, D d_model, H query heads, G key/value heads, K d_head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from scaling.config.run_config import RunConfig
from scaling.model.attention.cache import Cache
from scaling.model.layers import build_norm, working
from scaling.model.position import Context, Rotation, rotate
from scaling.model.split import WHOLE, OutputLinear, Split

HEADS = {
    "q.weight": 0,
    "q.bias": 0,
    "k.weight": 0,
    "k.bias": 0,
    "v.weight": 0,
    "v.bias": 0,
    "o.weight": 1,
}
"""Dimensions in which the parameters of attention are cut among tensor parallel ranks: each holds
some of the heads."""
OF_ALL_HEADS = ("q_norm.weight", "q_norm.bias", "k_norm.weight", "k_norm.bias")
"""Parameters that the heads of a layer share, and tensor parallel ranks hold whole."""


class Attention(nn.Module, ABC):
    """Queries, keys and values of x, what a kind makes of them, and the projection of that back to
    d_model.

    `causal`: a position looks at itself and earlier ones only. `scale` multiplies q k^T; null: 1 /
    sqrt(K), or as attention.score_width says. Head counts are read from the tensors, so a rank that
    holds a slice of the heads runs the same code.
    """

    split: Split = WHOLE
    cut = HEADS
    partial: tuple[str, ...] = OF_ALL_HEADS
    """Parameters that all heads share: a tp rank's gradient of them is that of its own heads."""

    def __init__(
        self, config: RunConfig, *, causal: bool = True, scale: float | None = None
    ) -> None:
        super().__init__()
        model = config.model
        self.d_head, self.dropout = model.head_width, config.attention.dropout
        self.causal, self.cap = causal, config.attention.score_cap
        self.scale = score_scale(config) if scale is None else scale
        q_width, kv_width = model.n_heads * self.d_head, model.kv_heads * self.d_head
        self.q = nn.Linear(model.d_model, q_width, bias=model.qkv_biased)
        self.k = nn.Linear(model.d_model, kv_width, bias=model.qkv_biased)
        self.v = nn.Linear(model.d_model, kv_width, bias=model.qkv_biased)
        self.o = OutputLinear(q_width, model.d_model, bias=model.output_biased)
        normed = model.qk_norm == "head"
        self.q_norm = build_norm(model, self.d_head) if normed else None
        self.k_norm = build_norm(model, self.d_head) if normed else None

    def forward(self, x_BTD: Tensor, context: Context, cache: Cache | None = None) -> Tensor:
        """What each position gathers; with a cache, of T positions that follow those already in
        it."""
        x_BTD = working(self.split.enter(x_BTD))
        B, T, _ = x_BTD.shape
        q_BTHK = self.split.to_heads(
            _normed(self.q(x_BTD).view(B, T, -1, self.d_head), self.q_norm)
        )
        k_BTGK = self.split.to_heads(
            _normed(self.k(x_BTD).view(B, T, -1, self.d_head), self.k_norm)
        )
        v_BTGK = self.split.to_heads(self.v(x_BTD).view(B, T, -1, self.d_head))
        if context.rotation is not None:
            q_BTHK, k_BTGK = (
                self.turn(q_BTHK, context.rotation),
                self.turn(k_BTGK, context.rotation),
            )
        q_BHTK, k_BGTK, v_BGTK = (
            q_BTHK.transpose(1, 2),
            k_BTGK.transpose(1, 2),
            v_BTGK.transpose(1, 2),
        )
        if cache is None:
            with self.split.own_randomness(self.dropout_p > 0):
                y_BHTK = self.attend(q_BHTK, k_BGTK, v_BGTK, context)
        else:
            self._check_cached(context)
            y_BHTK = self.decode(q_BHTK, k_BGTK, v_BGTK, context, cache)
        return self.o(self.split.to_positions(y_BHTK.transpose(1, 2)).reshape(B, T, -1))

    @abstractmethod
    def attend(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, context: Context) -> Tensor:
        """y_BHTK of a whole sequence."""

    @abstractmethod
    def new_cache(self, capacity: int) -> Cache:
        """Room for `capacity` positions of this layer."""

    def remember(self, k_BGTK: Tensor, v_BGTK: Tensor, cache: Cache) -> None:
        """Put the first T positions into an empty cache."""
        raise NotImplementedError

    def step(
        self, q_BH1K: Tensor, k_BG1K: Tensor, v_BG1K: Tensor, context: Context, cache: Cache
    ) -> Tensor:
        """y_BH1K of the next position, whose key and value the cache takes in."""
        raise NotImplementedError

    def decode(
        self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, context: Context, cache: Cache
    ) -> Tensor:
        """y_BHTK of the next T positions: the first at once, later ones one after the other."""
        if cache.length == 0 and q_BHTK.shape[2] > 1:
            self.remember(k_BGTK, v_BGTK, cache)
            return self.attend(q_BHTK, k_BGTK, v_BGTK, context)
        parts = [
            self.step(
                q_BHTK[:, :, t : t + 1],
                k_BGTK[:, :, t : t + 1],
                v_BGTK[:, :, t : t + 1],
                context,
                cache,
            )
            for t in range(q_BHTK.shape[2])
        ]
        return torch.cat(parts, dim=2)

    def turn(self, x_BTHK: Tensor, rotation: Rotation) -> Tensor:
        """Rotary positions, where they act on queries and keys."""
        return rotate(x_BTHK, rotation)

    def _check_cached(self, context: Context) -> None:
        if not self.causal:
            raise ValueError(
                "a bidirectional layer has no past to keep: the whole sequence is needed at once"
            )
        if context.documents_BT is not None:
            raise ValueError(
                "generation takes one document a row, without padding: a cache holds no document "
                "numbers"
            )

    @property
    def dropout_p(self) -> float:
        return self.dropout if self.training else 0.0


def score_scale(config: RunConfig) -> float | None:
    """What multiplies q k^T by the configuration; None: 1 / sqrt(K)."""
    width = config.attention.score_width
    return None if width is None else width**-0.5


def _normed(x_BTHK: Tensor, norm: nn.Module | None) -> Tensor:
    """Each head by itself, in the dtype of x, where there is a norm."""
    if norm is None:
        return x_BTHK
    y_BTHK: Tensor = norm(x_BTHK).to(x_BTHK.dtype)
    return y_BTHK
