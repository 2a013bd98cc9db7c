"""Steps of micro-batches for one data-parallel rank, made in the background.

torch is imported when the first batch is made, not with this module.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scaling.data.read.closing import Closing
from scaling.data.read.stream import Sequences
from scaling.data.read.threads import DaemonPool
from scaling.errors import PlanError

if TYPE_CHECKING:
    from scaling.batch import Batch
    from scaling.data.objective import MakeBatch

Step = tuple[list["Batch"], int]
GROUP_TOKENS = 1 << 19
"""Tokens that a worker makes at a time, 8 MB of batches: half of it cost 0.5 ns a token more at
seq_len=4096 (of 4)."""
OnStall = Callable[[float, list[str]], None]
"""Receives for how many seconds a step has been awaited, and where the shards lie that are on their
way."""


@dataclass(frozen=True)
class _Cut:
    """Which sequences of each step are this rank's, and how they are cut into micro-batches."""

    global_batch_size: int
    dp_rank: int
    dp: int
    micro_batch_size: int

    def __post_init__(self) -> None:
        assert 0 <= self.dp_rank < self.dp
        if self.global_batch_size % (self.dp * self.micro_batch_size):
            raise PlanError(
                f"train.global_batch_size={self.global_batch_size} is not a multiple of "
                f"dp={self.dp} times micro_batch_size={self.micro_batch_size}",
                fix="Change one of the three.",
            )

    @property
    def rows(self) -> int:
        """Sequences of this rank in a step."""
        return self.global_batch_size // self.dp

    def sequences(self, first: int, n_steps: int) -> np.ndarray:
        """Numbers of this rank's sequences in the steps from that on which begins with sequence
        `first`.

        int64 (n_steps * global_batch_size / dp,), step by step.
        """
        steps, rows = np.arange(n_steps, dtype=np.int64), np.arange(self.rows, dtype=np.int64)
        return (
            first + self.dp_rank * self.rows + steps[:, None] * self.global_batch_size + rows
        ).reshape(-1)

    def micro_batches(self, batch: Batch) -> list[Batch]:
        """Views of a batch of any number of steps."""
        fields = [
            None if tensor is None else tensor.split(self.micro_batch_size) for tensor in batch
        ]
        number = len(batch.tokens_BT) // self.micro_batch_size
        return [
            type(batch)._make(None if field is None else field[i] for field in fields)
            for i in range(number)
        ]


class Loader(Closing):
    """Steps of one data-parallel rank: iterates over (micro-batches, next_sequence), without end.

    A step consumes global_batch_size sequences; `next_sequence` is the data position after it, with
    which a new Loader continues, on any dp, micro_batch_size and number of workers. `workers`
    threads keep at least `prefetch_steps` steps in hand, which come in order; what a worker raises
    is raised here, at its step. They make several steps at a time, one at first and then up to
    GROUP_TOKENS tokens. `last_wait_s` is the time for which the last step kept its consumer
    waiting; `on_stall` is called for waits from `stall_after_s` on, each time they have doubled. A
    context manager.
    """

    def __init__(
        self,
        stream: Sequences,
        *,
        make_batch: MakeBatch,
        global_batch_size: int,
        dp_rank: int,
        dp: int,
        micro_batch_size: int,
        start_sequence: int,
        prefetch_steps: int = 2,
        workers: int = 1,
        on_stall: OnStall | None = None,
        stall_after_s: float = 30.0,
    ) -> None:
        assert prefetch_steps > 0
        self._stream, self._make_batch = stream, make_batch
        self._cut = _Cut(global_batch_size, dp_rank, dp, micro_batch_size)
        self.last_wait_s = 0.0
        self._failure: BaseException | None = None
        self._on_stall, self._stall_after_s = on_stall, stall_after_s
        self._next_sequence = start_sequence
        self._group, self._largest_group = (
            1,
            max(1, GROUP_TOKENS // (self._cut.rows * stream.n_read)),
        )
        self._ready: deque[Step | BaseException] = deque()
        self._coming: deque[Future[list[Step | BaseException]]] = deque()
        # Its threads know their parts and not the Loader, so that one which is dropped or forgotten
        # ends them too.
        self._pool: DaemonPool | None = DaemonPool(workers, "loader")
        for _ in range(max(prefetch_steps, workers)):
            self._begin_group(self._pool)

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        if self._failure is not None:
            raise self._failure
        if self._pool is None:
            raise StopIteration
        begun_s = time.perf_counter()
        if not self._ready:
            self._ready.extend(self._finished(self._coming.popleft()))
            self._begin_group(self._pool)
        self.last_wait_s = time.perf_counter() - begun_s
        step = self._ready.popleft()
        if isinstance(step, BaseException):
            self._failure = step
            raise step
        return step

    def _begin_group(self, pool: DaemonPool) -> None:
        parts = (self._stream, self._make_batch, self._cut, self._next_sequence, self._group)
        self._coming.append(pool.submit(_make_steps, *parts))
        self._next_sequence += self._group * self._cut.global_batch_size
        self._group = min(2 * self._group, self._largest_group)

    def _finished(self, future: Future[list[Step | BaseException]]) -> list[Step | BaseException]:
        waited_s, patience_s = 0.0, self._stall_after_s
        while not future.done() and self._on_stall is not None:
            begun_s = time.perf_counter()
            concurrent.futures.wait([future], timeout=patience_s)
            waited_s += time.perf_counter() - begun_s
            if not future.done():
                self._on_stall(waited_s, self._stream.waiting_for())
                patience_s = waited_s
        return future.result()

    def close(self) -> None:
        """End the threads; waits for a read that is under way, for some seconds at most."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
            self._coming.clear()
            self._ready.clear()


def _make_steps(
    stream: Sequences, make_batch: MakeBatch, cut: _Cut, first: int, n_steps: int
) -> list[Step | BaseException]:
    """Steps from that on whose first sequence, of all ranks, has number `first`; in place of one
    that fails, and last, the error.

    They are made as one batch, of which they are views: that costs about as much as one step does,
    and memory is taken in pieces that are large enough to be used again instead of being returned
    to the system, which was most of the time.
    """
    begins = [first + step * cut.global_batch_size for step in range(n_steps)]
    try:
        ks_N = cut.sequences(first, n_steps)
        micro_batches = cut.micro_batches(make_batch(stream.read(ks_N), ks_N))
        per_step = len(micro_batches) // n_steps
        return [
            (micro_batches[i * per_step : (i + 1) * per_step], begin + cut.global_batch_size)
            for i, begin in enumerate(begins)
        ]
    except BaseException as error:
        if n_steps == 1:
            return [error]
    made: list[Step | BaseException] = []
    for begin in begins:
        made += _make_steps(stream, make_batch, cut, begin, 1)
        if isinstance(made[-1], BaseException):
            break
    return made
