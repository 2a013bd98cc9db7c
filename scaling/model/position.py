"""How a model knows the order of its tokens: added to the input, or applied in every attention.

Shapes: B batch, T positions, D d_model, H heads, K d_head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from scaling.config import RunConfig


class Rotation(NamedTuple):
    """Cosines and sines of the angles of T positions, (T, K/2) each, fp32."""

    cos: Tensor
    sin: Tensor


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
        half = torch.arange(0, self.d_head, 2, dtype=torch.float32, device=device)
        angles = torch.outer(
            torch.arange(start, start + length, dtype=torch.float32, device=device), self.theta ** (-half / self.d_head)
        )
        return Rotation(angles.cos(), angles.sin())


def rotate(x_BTHK: Tensor, rotation: Rotation) -> Tensor:
    """Turn every pair of every head by its position's angle, in fp32; the dtype of x is kept."""
    cos_T1K, sin_T1K = rotation.cos[:, None], rotation.sin[:, None]
    a, b = x_BTHK.float().chunk(2, dim=-1)
    return torch.cat((a * cos_T1K - b * sin_T1K, b * cos_T1K + a * sin_T1K), dim=-1).to(x_BTHK.dtype)


POSITIONS: dict[str, type[Position]] = {"none": Position, "learned": LearnedPosition, "rope": RotaryPosition}
