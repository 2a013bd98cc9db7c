"""Keys and values of the past, kept while a text is generated.

Shapes: B batch, G key/value heads, T new positions, S all positions so far, K d_head.
"""

from __future__ import annotations

from torch import Tensor


class KVCache:
    """One layer's keys and values, in buffers allocated once, on the first append, as that dictates."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more positions and return views of all S. Raises ValueError when there is no room."""
        B, G, T, K = k_BGTK.shape
        end = self.length + T
        if end > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} positions, and was given {end}")
        if self._k is None or self._v is None:
            self._k, self._v = (t.new_empty(B, G, self.capacity, K) for t in (k_BGTK, v_BGTK))
        self._k[:, :, self.length : end], self._v[:, :, self.length : end] = k_BGTK, v_BGTK
        self.length = end
        return self._k[:, :, :end], self._v[:, :, :end]
