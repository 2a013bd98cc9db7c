"""What a layer remembers of the past while a text is generated.

Shapes: B batch, G key/value heads, T new positions, S all positions so far, W kept positions, K
d_head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Cache(ABC):
    """One layer's memory of `length` positions."""

    length: int = 0

    @abstractmethod
    def select(self, index_B: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be taken more than once
        (beams)."""


class KVCache(Cache):
    """All keys and values, in buffers allocated once, on the first append, as that dictates."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more positions and return views of all S. Raises ValueError when there is no
        room."""
        B, G, T, K = k_BGTK.shape
        end = self.length + T
        if end > self.capacity:
            raise ValueError(
                f"the cache has room for {self.capacity} positions, and was given {end}"
            )
        if self._k is None or self._v is None:
            self._k, self._v = (t.new_empty(B, G, self.capacity, K) for t in (k_BGTK, v_BGTK))
        self._k[:, :, self.length : end], self._v[:, :, self.length : end] = k_BGTK, v_BGTK
        self.length = end
        return self._k[:, :, :end], self._v[:, :, :end]

    def select(self, index_B: Tensor) -> None:
        if self._k is not None and self._v is not None:
            self._k, self._v = self._k[index_B], self._v[index_B]


class WindowCache(Cache):
    """The keys and values of the latest `window` positions: its size does not grow with the
    text."""

    def __init__(self, window: int) -> None:
        self.window, self.length = window, 0
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more positions, forget what is beyond the window, and return what is kept, the
        latest last."""
        if self._k is not None and self._v is not None:
            k_BGTK, v_BGTK = (
                torch.cat((self._k, k_BGTK), dim=2),
                torch.cat((self._v, v_BGTK), dim=2),
            )
            self.length -= self._k.shape[2]
        self.length += k_BGTK.shape[2]
        self._k, self._v = (t[:, :, -self.window :].clone() for t in (k_BGTK, v_BGTK))
        return self._k, self._v

    def select(self, index_B: Tensor) -> None:
        if self._k is not None and self._v is not None:
            self._k, self._v = self._k[index_B], self._v[index_B]
