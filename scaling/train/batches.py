"""Where the loop gets its steps from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from scaling.data.objective import Batch

Step = tuple[Sequence[Batch], int]


class Batches(Protocol):
    """Steps of this rank: (micro-batches, data position after the step). `last_wait_s`: seconds the
    last one kept us waiting."""

    last_wait_s: float

    def __iter__(self) -> Iterator[Step]: ...


class Uncondemned:
    """Steps without those whose global batch begins at a condemned sequence: they are read, and
    dropped."""

    def __init__(self, batches: Batches, condemned: Sequence[int], global_batch_size: int) -> None:
        self._batches, self._condemned, self._global_batch_size = (
            batches,
            frozenset(condemned),
            global_batch_size,
        )
        self.last_wait_s = 0.0

    def __iter__(self) -> Iterator[Step]:
        wait_s = 0.0
        for micro_batches, next_sequence in self._batches:
            wait_s += self._batches.last_wait_s
            if next_sequence - self._global_batch_size not in self._condemned:
                self.last_wait_s, wait_s = wait_s, 0.0
                yield micro_batches, next_sequence
