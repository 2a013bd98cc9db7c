"""Attention with learnt vectors of distances. They meet queries and weights, so scores are formed,
piece by piece.

Shapes: B batch, T positions, S keys, t queries of a piece, s keys that they may see, H = G R query
heads, G key/value heads, K d_head, N vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scaling.config.run_config import RunConfig
from scaling.config.tile_sizes import PIECE
from scaling.model.attention.base import OF_ALL_HEADS
from scaling.model.attention.full import FullAttention
from scaling.model.attention.tiles import mask_of
from scaling.model.position import Context


class RelativeAttention(FullAttention):
    """softmax(q (k + a) / sqrt(K)) (v + b), with vectors a and b of the clipped distance (Shaw et
    al. 2018, eqs. 3 and 4).

    Distances of max_distance or more share a vector; causal layers have none for the future. The
    heads of a layer share all vectors, as in the paper. Only a piece's T x S part of the scores is
    ever held, and it is made again in backward.
    """

    partial = (*OF_ALL_HEADS, "relative_k.weight", "relative_v.weight")

    def __init__(
        self, config: RunConfig, *, causal: bool = True, scale: float | None = None
    ) -> None:
        super().__init__(config, causal=causal, scale=scale)
        attention = config.attention
        assert attention.max_distance is not None
        self.max_distance = attention.max_distance
        n_vectors = self.max_distance + 1 if causal else 2 * self.max_distance + 1
        self.relative_k = nn.Embedding(n_vectors, self.d_head)
        self.relative_v = (
            nn.Embedding(n_vectors, self.d_head) if attention.relative_values else None
        )

    def attend(self, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, context: Context) -> Tensor:
        """Attend by content and distance. With T < S the queries are the last T of S positions."""
        T = q_BHTK.shape[2]
        q_BGRTK = q_BHTK.unflatten(1, (k_BGSK.shape[1], -1)) * (self.scale or self.d_head**-0.5)
        vector_N = torch.arange(self.relative_k.num_embeddings, device=q_BHTK.device)
        a_NK = self.relative_k(vector_N)
        b_NK = None if self.relative_v is None else self.relative_v(vector_N)
        parts = []
        for start, q_BGRtK in zip(range(0, T, PIECE), q_BGRTK.split(PIECE, dim=3), strict=True):
            arguments = (start, q_BGRtK, k_BGSK, v_BGSK, a_NK, b_NK, T, context)
            again = torch.is_grad_enabled() and T > PIECE
            parts.append(
                checkpoint(
                    self._piece,
                    *arguments,
                    use_reentrant=False,
                    preserve_rng_state=self.dropout_p > 0,
                )
                if again
                else self._piece(*arguments)
            )
        return torch.cat(parts, dim=3).flatten(1, 2)

    def _piece(
        self,
        start: int,
        q_BGRtK: Tensor,
        k_BGSK: Tensor,
        v_BGSK: Tensor,
        a_NK: Tensor,
        b_NK: Tensor | None,
        T: int,
        context: Context,
    ) -> Tensor:
        G, R, t, S = *q_BGRtK.shape[1:4], k_BGSK.shape[2]
        offset = S - T if self.causal else 0
        s = start + t + offset if self.causal else S
        k_BGsK, v_BGsK = k_BGSK[:, :, :s], v_BGSK[:, :, :s]
        row_ts = self._rows(start + offset, t, s, q_BGRtK.device).expand(*q_BGRtK.shape[:3], t, s)
        scores_BGRts = (q_BGRtK.flatten(2, 3) @ k_BGsK.transpose(2, 3)).unflatten(2, (R, t))
        scores_BGRts = scores_BGRts + (q_BGRtK @ a_NK.T.to(q_BGRtK.dtype)).gather(4, row_ts)
        ids_BT = context.documents_BT
        mask = mask_of(
            start, start + t, s, offset, self.causal, context.bias, ids_BT, ids_BT, q_BGRtK.device
        )
        if mask is not None and mask.dtype == torch.bool:
            scores_BGRts = scores_BGRts.masked_fill(
                ~(mask.unsqueeze(1) if mask.ndim == 4 else mask), float("-inf")
            )
        elif mask is not None:
            scores_BGRts = scores_BGRts + mask.unflatten(-3, (G, R))
        weights_BGRts = F.dropout(
            scores_BGRts.softmax(dim=-1, dtype=torch.float32).to(v_BGsK.dtype), self.dropout_p
        )
        y_BGRtK = (weights_BGRts.flatten(2, 3) @ v_BGsK).unflatten(2, (R, t))
        if b_NK is not None:
            by_row_BGRtN = weights_BGRts.new_zeros(*weights_BGRts.shape[:4], len(b_NK)).scatter_add(
                4, row_ts, weights_BGRts
            )
            y_BGRtK = y_BGRtK + by_row_BGRtN @ b_NK.to(v_BGsK.dtype)
        return y_BGRtK

    def _rows(self, q_start: int, t: int, s: int, device: torch.device) -> Tensor:
        """row_ts of the vectors for t queries from q_start and the first s keys."""
        relative_ts = torch.arange(s, device=device) - torch.arange(
            q_start, q_start + t, device=device
        ).unsqueeze(1)
        return (
            relative_ts.clamp(-self.max_distance, 0 if self.causal else self.max_distance)
            + self.max_distance
        )
