"""What a single rank sees, as every rank acts on it at the same step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from scaling.parallel.exchange import share_json


class Agreement:
    """One all-reduce of a few numbers before each step. group: gloo over all ranks, or None for a
    single one."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group

    def any(self, *seen: bool) -> Sequence[bool]:
        """For each question, whether any rank says yes. A collective: all ranks ask the same
        questions in the same order."""
        if self._group is None:
            return seen
        votes = torch.tensor([float(vote) for vote in seen])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        return [bool(vote) for vote in votes.tolist()]

    def of_first(self, number: int) -> int:
        """The first rank's number. A collective."""
        return int(share_json(number, self._group))
