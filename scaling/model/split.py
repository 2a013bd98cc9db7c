"""How a model's layers are shared out among ranks, and the collectives that this takes: each layer
asks its `split`.

Tensor parallel (Shoeybi et al. 2019, arXiv:1909.08053): the ranks of a `tp` group hold heads,
columns of the feed-forward layer and rows of the embedding. What all of them use they take by
`enter`; what each made a part of they add up by `leave`. With `sequence` they also share the
positions of the residual stream between (Korthikanti et al. 2022, arXiv:2205.05198, section 4.2).
Context parallel (Jacobs et al. 2023, arXiv:2309.14509, Ulysses): the ranks of a `cp` group hold
positions of every layer, and swap them for heads around attention, or with `ring` pass keys and
values round (scaling/model/attention/ring.py).

Shapes: B batch, T positions, t a rank's own positions, D d_model, H heads, h a rank's own heads, K
d_head, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.parallel.collectives import Group, copy, gather, join, own, scatter_sum, sum_over, swap
from scaling.parallel.part import part_of


@dataclass(frozen=True)
class Split:
    """Nothing is shared out by default, and every method hands back what it is given."""

    tp: Group | None = None
    cp: Group | None = None
    sequence: bool = False
    ring: bool = False

    @property
    def tp_rank(self) -> int:
        return 0 if self.tp is None else dist.get_rank(self.tp)

    @property
    def tp_size(self) -> int:
        return 1 if self.tp is None else dist.get_world_size(self.tp)

    @property
    def cp_rank(self) -> int:
        return 0 if self.cp is None else dist.get_rank(self.cp)

    @property
    def cp_size(self) -> int:
        return 1 if self.cp is None else dist.get_world_size(self.cp)

    # Tensor parallel.

    def enter(self, x_BTD: Tensor) -> Tensor:
        """What the columns of a layer multiply: of all positions."""
        if self.tp is None:
            return x_BTD
        return gather(x_BTD, 1, self.tp) if self.sequence else copy(x_BTD, self.tp)

    def enter_whole(self, x: Tensor) -> Tensor:
        """The same of an x that every tp rank has whole: a source, or the input of the head."""
        return x if self.tp is None else copy(x, self.tp)

    def leave(self, part_BTD: Tensor) -> Tensor:
        """The sum of what the rows of a layer made of their columns; of the rank's own positions
        where those are shared."""
        if self.tp is None:
            return part_BTD
        return scatter_sum(part_BTD, 1, self.tp) if self.sequence else sum_over(part_BTD, self.tp)

    def deal(self, x_BTD: Tensor) -> Tensor:
        """The tp rank's own positions of the residual stream, where it is shared."""
        return own(x_BTD, 1, self.tp) if self.tp is not None and self.sequence else x_BTD

    def collect(self, x_BTD: Tensor) -> Tensor:
        """All positions of the residual stream, where it was shared."""
        return join(x_BTD, 1, self.tp) if self.tp is not None and self.sequence else x_BTD

    def embed(self, tokens_BT: Tensor, weight_VD: Tensor) -> Tensor:
        """Rows of an embedding of which each tp rank holds some: what it does not hold is zero, and
        summed."""
        if self.tp is None:
            return F.embedding(tokens_BT, weight_VD)
        row_BT = tokens_BT - self.rows(weight_VD)[0]
        here_BT = (row_BT >= 0) & (row_BT < len(weight_VD))
        x_BTD = F.embedding(row_BT.where(here_BT, 0), weight_VD) * here_BT.unsqueeze(-1)
        return sum_over(x_BTD, self.tp)

    @staticmethod
    def rows(weight_VD: Tensor) -> tuple[int, int]:
        """The first entry of the vocabulary that this rank holds, and how many there are on all
        ranks."""
        part = part_of(weight_VD)
        return part.first, part.shape[0]

    # Context parallel.

    def positions(self, x_BT: Tensor) -> Tensor:
        """The cp rank's own positions of what every cp rank has whole: tokens, targets."""
        return x_BT if self.cp is None else x_BT.chunk(self.cp_size, dim=1)[self.cp_rank]

    def first_position(self, x_BtD: Tensor) -> int:
        return self.cp_rank * x_BtD.shape[1]

    def n_positions(self, x_BtD: Tensor) -> int:
        return self.cp_size * x_BtD.shape[1]

    def in_attention(self, start: int, x_BtD: Tensor) -> tuple[int, int]:
        """(first, number) of the positions that queries are of, where x is of the rank's own and
        all begin at `start`."""
        own = x_BtD.shape[1]
        return (start + self.cp_rank * own, own) if self.ring else (start, self.cp_size * own)

    def to_heads(self, x_BtHK: Tensor) -> Tensor:
        """x_BThK: all positions of the rank's own heads; in a ring as it is. Key/value heads fewer
        than ranks are repeated."""
        if self.cp is None or self.ring:
            return x_BtHK
        repeats = self.cp_size // math.gcd(self.cp_size, x_BtHK.shape[2])
        if repeats > 1:
            x_BtHK = x_BtHK.repeat_interleave(repeats, dim=2)
        return swap(x_BtHK, 2, 1, self.cp)

    def to_positions(self, x_BThK: Tensor) -> Tensor:
        """x_BtHK: the reverse, for queries' heads."""
        return x_BThK if self.cp is None or self.ring else swap(x_BThK, 1, 2, self.cp)

    # Both.

    def heads(self, n_heads: int) -> slice:
        """Those of a model's query heads whose attention this rank computes."""
        cp_size, cp_rank = (1, 0) if self.ring else (self.cp_size, self.cp_rank)
        own = n_heads // (self.tp_size * cp_size)
        first = (self.tp_rank * cp_size + cp_rank) * own
        return slice(first, first + own)

    def own_bias(self, bias_H: Tensor) -> Tensor:
        """The part of a bias for all heads of a tp rank that is for the heads of this cp
        rank."""
        return bias_H if self.cp is None or self.ring else bias_H.chunk(self.cp_size)[self.cp_rank]

    @contextlib.contextmanager
    def own_randomness(self, wanted: bool) -> Iterator[None]:
        """Random numbers of this tp rank's own, for dropout of what only it has; those of all ranks
        continue alike after it.

        They follow from the common ones, so that a recomputation draws them again.
        """
        if self.tp is None or not wanted:
            yield
            return
        seed = int(torch.randint(2**62, ()))
        with torch.random.fork_rng(
            [torch.cuda.current_device()] if torch.cuda.is_available() else []
        ):
            torch.manual_seed(seed + 1 + self.tp_rank)
            yield


WHOLE = Split()


class OutputLinear(nn.Linear):
    """A linear layer back into the residual stream: row-parallel, its bias added once."""

    split: Split = WHOLE

    def forward(self, x: Tensor) -> Tensor:
        if self.split.tp is None:
            return F.linear(x, self.weight, self.bias)
        y = self.split.leave(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias
