"""The process groups of a layout's axes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from scaling.parallel.grid import Axis, Ranks


@dataclass(frozen=True)
class Groups:
    """This rank's groups: tp and cp are None where the axis has one rank; replicas hold the same
    part of the model.

    single is of this rank alone, for a library that insists on a group.
    """

    tp: dist.ProcessGroup | None
    cp: dist.ProcessGroup | None
    replicas: dist.ProcessGroup | None
    single: dist.ProcessGroup | None

    @staticmethod
    def of(ranks: Ranks, timeout: timedelta | None = None) -> Groups:
        """Collective over the world, whose default group exists."""

        def group(axis: Axis) -> dist.ProcessGroup | None:
            mine = None
            if ranks.degree(axis) > 1:
                # Making a group is collective: every rank makes every group, in one order.
                for members in ranks.axis(axis):
                    made = dist.new_group(members, timeout=timeout)
                    mine = made if ranks.rank in members else mine
            return mine

        single = None
        if ranks.tp > 1 and ranks.replicas == 1:
            made = [dist.new_group([rank], timeout=timeout) for rank in range(ranks.world_size)]
            single = made[ranks.rank]
        replicas = (
            dist.group.WORLD if ranks.replicas == ranks.world_size > 1 else group(Axis.REPLICAS)
        )
        return Groups(group(Axis.TP), group(Axis.CP), replicas, single)
