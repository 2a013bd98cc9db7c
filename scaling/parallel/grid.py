"""Which rank stands where. Pure arithmetic: no process groups, no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """One worker's place: in the world, on its node, and on the data-parallel axis."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def dp(self) -> int:
        """Data-parallel degree: every rank, while tensor and pipeline degrees are one."""
        return self.world_size

    @property
    def dp_rank(self) -> int:
        return self.rank

    @property
    def is_first(self) -> bool:
        """True on the rank that speaks: it writes records, manifests and progress."""
        return self.rank == 0
