"""How a model knows the order of its tokens: added to the input, or applied in every attention.

Shapes: B batch, T positions, D d_model, H heads, K d_head, P = K/2 pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from scaling.config import RunConfig


class Rotation(NamedTuple):
    """Of T positions, for pairs (i, i + K/2) at angle a_i: cosines (a, a) and sines (-a, a), T x 1 x K each, fp32."""

    cos_T1K: Tensor
    sin_T1K: Tensor


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
