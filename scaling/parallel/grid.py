"""Which rank stands where. Pure arithmetic: no process groups, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum


class Axis(StrEnum):
    """An axis of the grid of devices, along which ranks differ. The word `axis` means this one
    thing everywhere; a tensor has dims."""

    TP = "tp"
    CP = "cp"
    DP = "dp"
    PP = "pp"
    REPLICAS = "replicas"
    """dp and cp as one axis: ranks that hold the same part of the model."""


@dataclass(frozen=True)
class Ranks:
    """One worker's place: in the world, on its node, and on the axes of the layout.

    rank = ((pp_rank dp + dp_rank) cp + cp_rank) tp + tp_rank: tensor parallel ranks, which talk
    most, are neighbours.
    """

    rank: int
    world_size: int
    local_rank: int
    tp: int = 1
    pp: int = 1
    cp: int = 1

    def laid_out(self, *, tp: int, pp: int, cp: int) -> Ranks:
        """The same worker on the axes of a layout."""
        assert self.world_size % (tp * pp * cp) == 0, (
            f"{self.world_size} ranks are not of tp={tp} x pp={pp} x cp={cp}"
        )
        return replace(self, tp=tp, pp=pp, cp=cp)

    @property
    def dp(self) -> int:
        """Data-parallel degree: the parts into which a global batch is cut."""
        return self.world_size // (self.tp * self.pp * self.cp)

    def degree(self, axis: Axis) -> int:
        """Ranks along one axis."""
        return int(getattr(self, axis.value))

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp

    @property
    def cp_rank(self) -> int:
        return self.rank // self.tp % self.cp

    @property
    def dp_rank(self) -> int:
        return self.rank // (self.tp * self.cp) % self.dp

    @property
    def pp_rank(self) -> int:
        return self.rank // (self.tp * self.cp * self.dp)

    @property
    def replicas(self) -> int:
        """Ranks that hold the same part of the model, and sum its gradients: dp x cp."""
        return self.dp * self.cp

    @property
    def replica(self) -> int:
        """Which of them this is."""
        return self.rank // self.tp % self.replicas

    @property
    def is_first(self) -> bool:
        """True on the rank that reports: it writes records, manifests and progress."""
        return self.rank == 0

    def axis(self, axis: Axis) -> Iterator[list[int]]:
        """The groups of ranks that differ along one axis alone, in the same order on every
        rank."""
        strides = {
            Axis.TP: 1,
            Axis.CP: self.tp,
            Axis.REPLICAS: self.tp,
            Axis.DP: self.tp * self.cp,
            Axis.PP: self.tp * self.replicas,
        }
        stride, size = strides[axis], self.degree(axis)
        for first in range(self.world_size):
            if first // stride % size == 0:
                yield [first + stride * index for index in range(size)]
