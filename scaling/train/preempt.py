"""The wish to stop, as every rank sees it at the same step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist


class Stop:
    """`requested` is a collective: each rank asks once a step, and all get the same answer.

    poll: this rank's own view. group: a gloo group over all ranks, or None for a single one.
    """

    def __init__(self, poll: Callable[[], bool], group: dist.ProcessGroup | None) -> None:
        self._poll = poll
        self._group = group

    @property
    def requested(self) -> bool:
        if self._group is None:
            return self._poll()
        flag = torch.tensor([float(self._poll())])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flag.item())
