"""Sequences of a corpus in the order that one integer fixes.

webdataset is imported when the first shard is read, not with this module.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from scaling.data.io.fetch import fetch, join, size_bytes
from scaling.data.read.closing import Closing
from scaling.data.read.shard_reader import decode_shard
from scaling.data.read.source import ShardSource, Streaming
from scaling.data.read.threads import DaemonPool
from scaling.data.sequence_order import WINDOW_SHARDS, SequenceOrder
from scaling.data.shards import CorpusIndex, ShardInfo
from scaling.errors import DataError

_DECODERS = 4
"""Shards decoded at once: assumption, enough to hide the reading of local files behind the decoding
of others."""

_LONG = 1000
"""Tokens from which on a sequence is worth a call of its own. Copied one by one against by the
shard, a token took 0.48 against 0.54 ns in sequences of 1025, and 1.49 against 0.99 ns in those of
257."""


@dataclass(frozen=True)
class BadShard:
    """A shard that is missing or differs from the index, and why."""

    name: str
    reason: str


def check_shards(
    directory: str | Path, index: CorpusIndex, split: str, full: bool = False
) -> list[BadShard]:
    """Shards of a split that are missing or of another size; with `full` also those of another
    checksum, all bytes read."""

    def check(shard: ShardInfo) -> str | None:
        location = join(directory, shard.name)
        try:
            found = size_bytes(location)
            if found is not None and found != shard.size_bytes:
                return f"{location} has {found} bytes, and the index says {shard.size_bytes}"
            if (
                full
                and hashlib.sha256(fetch(location, shard.size_bytes + 1)).hexdigest()
                != shard.sha256
            ):
                return f"{location} has another sha256 than the index says"
        except DataError as error:
            return error.what
        return None

    shards = index.split(split)
    with ThreadPoolExecutor(max_workers=8) as pool:  # assumption: enough to hide a store's latency
        reasons = list(pool.map(check, shards))
    return [
        BadShard(shard.name, reason)
        for shard, reason in zip(shards, reasons, strict=True)
        if reason is not None
    ]


class Sequences(Closing):
    """Sequences by their number, for any threads; a context manager.

    n_sequences  until one of them comes again
    n_read       tokens of each
    """

    n_sequences: int
    n_read: int

    @abstractmethod
    def read(self, ks: np.ndarray) -> np.ndarray:
        """Sequences number `ks` as rows, (len(ks), n_read) of the corpus's dtype. Raises DataError
        for a bad shard."""
        ...

    @abstractmethod
    def waiting_for(self) -> list[str]:
        """Where the shards lie that some thread is waiting for."""
        ...

    @abstractmethod
    def close(self) -> None:
        """Forget the shards in memory, and those on their way."""
        ...


class SequenceStream(Sequences):
    """Random access to the sequences of a split, by their number in the endless order of
    `SequenceOrder`, for any threads.

    Holds the token streams of the `max_resident_shards` shards used last (one window of the order
    by default): about n_tokens * 2 bytes each (4 for vocabularies above 65536). `read_ahead`:
    whoever reads continues in order, so the shards of the next window are fetched while those of
    this one are used."""

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
        streaming: Streaming = Streaming(),  # noqa: B008  frozen
        read_ahead: bool = False,
    ) -> None:
        assert max_resident_shards > 0
        self.directory, self.index, self.n_read = directory_or_url, index, seq_len + overlap
        self.order = SequenceOrder(
            index.split(split), seq_len, seed, overlap=overlap, shuffle=shuffle
        )
        self.n_sequences = self.order.n_sequences
        self._source, self._pool = (
            ShardSource(directory_or_url, streaming),
            DaemonPool(_DECODERS, "shards", wait_s=0.0),
        )
        self._max_resident = max_resident_shards
        self._read_ahead = read_ahead
        self._lock = threading.Lock()
        self._resident: OrderedDict[int, Future[np.ndarray]] = OrderedDict()
        self._awaited: Counter[int] = Counter()
        self._window: tuple[int, int] | None = None

    def read(self, ks: np.ndarray) -> np.ndarray:
        """Sequences number `ks` as rows: (len(ks), seq_len + overlap) of index.dtype. Raises
        DataError for a bad shard."""
        with self._lock:
            shards, offsets = self.order.locate(ks)
            coming = {shard: self._windows_of(shard) for shard in _as_they_come(shards)}
            if self._read_ahead:
                self._look_ahead(int(ks.max()))
        rows = np.empty((len(ks), self.n_read), dtype=self.index.dtype)
        _gather(
            rows,
            {shard: self._awaited_windows(shard, future) for shard, future in coming.items()},
            shards,
            offsets,
        )
        return rows

    def waiting_for(self) -> list[str]:
        """Where the shards lie that some thread is waiting for."""
        with self._lock:
            return [
                join(self.directory, self.order.shards[shard].name)
                for shard in sorted(self._awaited)
            ]

    def _windows_of(self, shard: int) -> Future[np.ndarray]:
        """The sequences of a shard, wherever they begin, there or to come."""
        if shard not in self._resident:
            while len(self._resident) >= self._max_resident:
                self._resident.popitem(last=False)
            self._resident[shard] = self._pool.submit(
                _windows, self._source, self.index, self.order.shards[shard], self.n_read
            )
        self._resident.move_to_end(shard)
        return self._resident[shard]

    def _awaited_windows(self, shard: int, future: Future[np.ndarray]) -> np.ndarray:
        if future.done() and future.exception() is None:
            return future.result()
        with self._waiting(shard):
            try:
                return future.result()
            except BaseException:
                with self._lock:  # to be tried again by whoever asks again
                    self._resident.pop(shard, None)
                raise

    @contextlib.contextmanager
    def _waiting(self, shard: int) -> Iterator[None]:
        with self._lock:
            self._awaited[shard] += 1
        try:
            yield
        finally:
            with self._lock:
                self._awaited[shard] -= 1
                self._awaited += Counter()  # drops those that nobody waits for

    def _look_ahead(self, k: int) -> None:
        """Have the shards of the next window fetched when a window is entered."""
        window = self.order.window_of(k)
        if window != self._window:
            self._window = window
            here, next_ones = (
                self.order.shards_of(w) for w in (window, self.order.window_after(window))
            )
            shards = self.order.shards
            self._source.ahead(
                [shards[i] for i in next_ones if i not in here], beside=[shards[i] for i in here]
            )

    def close(self) -> None:
        """Forget the shards in memory, and those on their way."""
        with self._lock:
            self._resident.clear()
        self._pool.close()
        self._source.close()


def _gather(
    rows: np.ndarray, windows: dict[int, np.ndarray], shards: np.ndarray, offsets: np.ndarray
) -> None:
    """Copy into each row the sequence at its offset of its shard: long ones one by one, short ones
    by the shard."""
    if rows.shape[1] > _LONG and len(rows):
        pairs = zip(shards.tolist(), offsets.tolist(), strict=True)
        np.concatenate([windows[shard][offset] for shard, offset in pairs], out=rows.reshape(-1))
        return
    for shard, windows_of_it in windows.items():
        chosen = np.flatnonzero(shards == shard)
        rows[chosen] = windows_of_it[offsets[chosen]]


def _as_they_come(shards: np.ndarray) -> list[int]:
    """Each shard once, in the order of first use: those of a new window last, which so displace
    none that is still needed."""
    _, first = np.unique(shards, return_index=True)
    found: list[int] = shards[np.sort(first)].tolist()
    return found


def _windows(source: ShardSource, index: CorpusIndex, shard: ShardInfo, n_read: int) -> np.ndarray:
    """Views of the token stream of a shard from each of its tokens on: (n_tokens - n_read + 1,
    n_read)."""
    location = join(source.directory, shard.name)
    return sliding_window_view(
        decode_shard(source.read(shard), index, shard, location, source.known), n_read
    )
