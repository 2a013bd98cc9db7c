"""Sequences of a corpus in the order that one integer fixes, and steps of micro-batches prefetched in the background.

torch and webdataset are imported when the first shard is read, not with this module.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from scaling.data.fetch import fetch, join, size_bytes
from scaling.data.reader import read_shard
from scaling.data.shards import WINDOW_SHARDS, CorpusIndex, SequenceOrder, ShardInfo
from scaling.errors import DataError, PlanError

if TYPE_CHECKING:
    from scaling.data.objective import MakeBatch
    from scaling.model.batch import Batch


@dataclass(frozen=True)
class BadShard:
    """A shard that is missing or not what the index says, and why."""

    name: str
    reason: str


def check_shards(directory: str | Path, index: CorpusIndex, split: str, full: bool = False) -> list[BadShard]:
    """Shards of a split that are missing or of another size; with `full` also those of another checksum, all bytes read."""

    def check(shard: ShardInfo) -> str | None:
        location = join(directory, shard.name)
        try:
            found = size_bytes(location)
            if found is not None and found != shard.size_bytes:
                return f"{location} has {found} bytes, and the index says {shard.size_bytes}"
            if full and hashlib.sha256(fetch(location)).hexdigest() != shard.sha256:
                return f"{location} has another sha256 than the index says"
        except DataError as error:
            return error.what
        return None

    shards = index.split(split)
    with ThreadPoolExecutor(max_workers=8) as pool:  # assumption: enough to hide a store's latency
        reasons = list(pool.map(check, shards))
    return [BadShard(shard.name, reason) for shard, reason in zip(shards, reasons, strict=True) if reason is not None]


class SequenceStream:
    """Random access to the sequences of a split, by their number in the endless order of `SequenceOrder`.

    Holds the token streams of the `max_resident_shards` shards used last (one window of the order by default): about
    n_tokens * 2 bytes each (4 for vocabularies above 65536). For one thread at a time.
    """

    def __init__(
        self,
        directory_or_url: str | Path,
        index: CorpusIndex,
        split: str,
        seq_len: int,
        seed: int,
        max_resident_shards: int = WINDOW_SHARDS,
        shuffle: bool = True,
        overlap: int = 1,
    ) -> None:
        assert max_resident_shards > 0
        self.directory, self.index, self.n_read = directory_or_url, index, seq_len + overlap
        self.order = SequenceOrder(index.split(split), seq_len, seed, overlap=overlap, shuffle=shuffle)
        self.n_sequences = self.order.n_sequences
        self._max_resident = max_resident_shards
        self._resident: OrderedDict[int, np.ndarray] = OrderedDict()

    def read(self, ks: np.ndarray) -> np.ndarray:
        """Sequences number `ks` as rows: int64 (len(ks), seq_len + overlap). Raises DataError for a bad shard."""
        shards, offsets = self.order.locate(ks)
        rows = np.empty((len(ks), self.n_read), dtype=np.int64)
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            rows[chosen] = self._tokens(int(shard))[offsets[chosen, None] + np.arange(self.n_read)]
        return rows

    def _tokens(self, shard: int) -> np.ndarray:
        if shard not in self._resident:
            while len(self._resident) >= self._max_resident:
                self._resident.popitem(last=False)
            self._resident[shard] = read_shard(self.directory, self.index, self.order.shards[shard])
        self._resident.move_to_end(shard)
        return self._resident[shard]

    def close(self) -> None:
        """Forget the shards in memory."""
        self._resident.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


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

    def sequences(self, next_sequence: int) -> np.ndarray:
        """Numbers of this rank's sequences in the step that begins with `next_sequence`: int64 (global_batch_size / dp,)."""
        rows = self.global_batch_size // self.dp
        return np.arange(rows, dtype=np.int64) + next_sequence + self.dp_rank * rows

    def micro_batches(self, rows_B: np.ndarray) -> list[np.ndarray]:
        return np.split(rows_B, len(rows_B) // self.micro_batch_size)


Step = tuple[list["Batch"], int]


class Loader:
    """Steps of one data-parallel rank: iterates over (micro-batches, next_sequence), without end.

    A step consumes global_batch_size sequences; `next_sequence` is the data position after it, with which a new Loader
    continues, on any dp and micro_batch_size. A background thread keeps `prefetch_steps` steps ready; what it raises is
    raised here. `last_wait_s` is the time for which the last step kept its consumer waiting. A context manager.
    """

    def __init__(
        self,
        stream: SequenceStream,
        *,
        make_batch: MakeBatch,
        global_batch_size: int,
        dp_rank: int,
        dp: int,
        micro_batch_size: int,
        start_sequence: int,
        prefetch_steps: int = 2,
    ) -> None:
        assert prefetch_steps > 0
        cut = _Cut(global_batch_size, dp_rank, dp, micro_batch_size)
        self.last_wait_s = 0.0
        self._failure: BaseException | None = None
        self._ready: queue.Queue[Step | BaseException] = queue.Queue(maxsize=prefetch_steps)
        stop = threading.Event()
        # The thread knows its parts and not the Loader, so that one which is dropped or forgotten ends its thread too.
        thread = threading.Thread(
            target=_prefetch,
            args=(_steps(stream, make_batch, cut, start_sequence), self._ready, stop),
            name="loader",
            daemon=True,
        )
        self._finalizer = weakref.finalize(self, _end, thread, self._ready, stop)
        thread.start()

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        if self._failure is not None:
            raise self._failure
        if not self._finalizer.alive:
            raise StopIteration
        begun_s = time.perf_counter()
        item = self._ready.get()
        self.last_wait_s = time.perf_counter() - begun_s
        if isinstance(item, BaseException):
            self._failure = item
            raise item
        return item

    def close(self) -> None:
        """End the thread; waits for a read that is under way, for some seconds at most."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _steps(stream: SequenceStream, make_batch: MakeBatch, cut: _Cut, next_sequence: int) -> Iterator[Step]:
    while True:
        ks_B = cut.sequences(next_sequence)
        parts = zip(cut.micro_batches(stream.read(ks_B)), cut.micro_batches(ks_B), strict=True)
        micro_batches = [make_batch(sequences_BS, ks) for sequences_BS, ks in parts]
        next_sequence += cut.global_batch_size
        yield micro_batches, next_sequence


def _prefetch(steps: Iterator[Step], ready: queue.Queue[Step | BaseException], stop: threading.Event) -> None:
    """Body of the thread: fill the queue until told to stop; a failure is the last item."""
    item: Step | BaseException
    while not stop.is_set():
        try:
            item = next(steps)
        except BaseException as error:
            item = error
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                break
        if isinstance(item, BaseException):
            return


def _end(thread: threading.Thread, ready: queue.Queue[Step | BaseException], stop: threading.Event) -> None:
    stop.set()
    with contextlib.suppress(queue.Empty):
        while True:
            ready.get_nowait()
    thread.join(timeout=5.0)  # a daemon: one that hangs in a read is left to die with the process
