"""How a model knows the order of its tokens: added to the input, or applied in every attention.

Shapes: B batch, T positions, S keys, D d_model, H heads, K d_head, P = K/2 pairs, R relative positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scaling.config import RunConfig


class Rotation(NamedTuple):
    """Of T positions, for pairs (i, i + K/2) at angle a_i: cosines (a, a) and sines (-a, a), T x 1 x K each, fp32."""

    cos_T1K: Tensor
    sin_T1K: Tensor


BiasAt = Callable[[Tensor], Tensor]
"""From relative positions (key's minus query's) of any shape (...) to what every head's score gets added: (H, ...), fp32."""


class Context(NamedTuple):
    """What all layers of a stack share in a forward, beside x.

    rotation      turns queries and keys of the T positions; None: nothing does
    bias          is added to scores; None: nothing is
    documents_BT  number of each position's document: it looks at positions with the same number only. The positions of a
                  document are neighbours; padding is a document of its own (PADDING in scaling/model/batch.py).
                  None: a row is one document
    """

    rotation: Rotation | None = None
    bias: BiasAt | None = None
    documents_BT: Tensor | None = None


def bias_grid(bias: BiasAt, q_start: int, n_q: int, k_start: int, n_k: int, device: torch.device) -> Tensor:
    """bias_HTS of n_q queries from position q_start and n_k keys from k_start: one value a distance, laid out."""
    first = k_start - (q_start + n_q - 1)
    by_distance_HR = bias(torch.arange(first, first + n_q + n_k - 1, device=device))
    return by_distance_HR.unfold(1, n_k, 1).flip(1)


class Position(nn.Module):
    """No position at all: only the causal mask tells the order. The others override what they add."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        """The input of the first block; `start` is the position of x_BTD[:, 0]."""
        return x_BTD

    def rotation(self, start: int, length: int, device: torch.device) -> Rotation | None:
        """What turns queries and keys, if anything."""
        return None

    @property
    def bias(self) -> BiasAt | None:
        """What is added to scores, if anything."""
        return None

    def context(self, start: int, x_BTD: Tensor, documents_BT: Tensor | None = None) -> Context:
        """For a stack of which x_BTD is the input, from position `start` on."""
        return Context(self.rotation(start, x_BTD.shape[1], x_BTD.device), self.bias, documents_BT)


class LearnedPosition(Position):
    """One vector a position, of train.seq_len positions, added to the token's (Radford et al. 2019)."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(config.train.seq_len, config.model.d_model)

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        length, limit = x_BTD.shape[1], self.table.num_embeddings
        if start + length > limit:
            raise ValueError(f"position=learned knows {limit} positions, and was given {start + length}")
        return x_BTD + self.table(torch.arange(start, start + length, device=x_BTD.device))


class RotaryPosition(Position):
    """Pairs (i, i + K/2) of a head turn by position * theta^(-2i/K) (Su et al. 2021; pairs as in Llama).

    The angles are computed in fp32 for each forward: a table kept as a buffer would be rounded when an engine casts
    the module to bf16, and 16k positions take less than a block does.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.d_head, self.theta = config.model.head_width, config.position.theta

    def rotation(self, start: int, length: int, device: torch.device) -> Rotation:
        pair_P = torch.arange(0, self.d_head, 2, dtype=torch.float32, device=device)
        position_T = torch.arange(start, start + length, dtype=torch.float32, device=device)
        angle_T1P = torch.outer(position_T, self.theta ** (-pair_P / self.d_head)).unsqueeze(1)
        cos_T1P, sin_T1P = angle_T1P.cos(), angle_T1P.sin()
        return Rotation(torch.cat((cos_T1P, cos_T1P), dim=-1), torch.cat((-sin_T1P, sin_T1P), dim=-1))


def rotate(x_BTHK: Tensor, rotation: Rotation) -> Tensor:
    """Turn every pair of every head by its position's angle, in fp32; the dtype of x is kept."""
    swapped_BTHK = x_BTHK.roll(x_BTHK.shape[-1] // 2, dims=-1)
    return (x_BTHK * rotation.cos_T1K + swapped_BTHK * rotation.sin_T1K).to(x_BTHK.dtype)


POSITIONS: dict[str, type[Position]] = {"none": Position, "learned": LearnedPosition, "rope": RotaryPosition}
