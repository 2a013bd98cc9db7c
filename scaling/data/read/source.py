"""The bytes of shards, verified; remote ones are fetched ahead of their use, into a bounded cache
or into memory."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from scaling.config.run_config import DataConfig
from scaling.data.io.fetch import AT_FIRST, join, local_path
from scaling.data.io.http import Patience
from scaling.data.read.cache import ShardCache
from scaling.data.read.shard_reader import fetch_shard
from scaling.data.read.threads import DaemonPool
from scaling.data.read.verified import VerifiedShards
from scaling.data.shards import ShardInfo

N_THREADS = 8
"""Shards fetched at once by each rank: assumption, enough to hide a store's latency."""
CACHE = "streamed"
"""Folder in data.cache_dir: copies of remote shards."""


@dataclass(frozen=True)
class Streaming:
    """How shards come: `cache_dir` and `cache_bytes` bound the copies of remote ones on this
    machine, 0 for none."""

    cache_dir: Path | None = None
    cache_bytes: int = 0
    patience: Patience = field(default=AT_FIRST)

    @staticmethod
    def of(data: DataConfig) -> Streaming:
        cache_dir = Path(data.cache_dir).expanduser().absolute() / CACHE
        return Streaming(cache_dir, data.stream_cache_bytes, Patience(give_up_s=data.give_up_s))


class ShardSource:
    """Shards of one corpus by their entry in its index, for any number of threads.

    `known`: those verified in full, of which files on this machine are compared with what they were
    then. What comes over the network is always compared by its SHA-256.
    """

    def __init__(self, directory: str | Path, streaming: Streaming) -> None:
        self.directory, self._streaming = directory, streaming
        self.known = VerifiedShards()
        self._is_local = local_path(directory) is not None
        self._cache: ShardCache | None = None
        if not self._is_local and streaming.cache_dir is not None and streaming.cache_bytes:
            self._cache = ShardCache(streaming.cache_dir, streaming.cache_bytes)
        self._lock = threading.Lock()
        self._coming: dict[str, Future[bytes]] = {}
        self._pool: DaemonPool | None = None

    def read(self, shard: ShardInfo) -> bytes:
        """The content of a shard, of the size and checksum that the index gives. Raises DataError
        that names it."""
        if self._is_local:
            return fetch_shard(self.directory, shard, verified=self.known.get(shard))
        with self._lock:
            ahead = self._coming.pop(shard.name, None)
        if ahead is not None and not ahead.cancel() and (content := ahead.result()):
            return content
        return self._remote(shard)

    def ahead(self, shards: Sequence[ShardInfo], beside: Iterable[ShardInfo] = ()) -> None:
        """Announce what will be read soon, in order, while `beside` is in use. Replaces what was
        announced before and has not begun.

        Local files are announced to the system. Remote ones are fetched: into the cache, as many as
        it has room for, or where there is none into memory.
        """
        if self._is_local:
            for shard in shards:
                _will_need(Path(join(self.directory, shard.name)))
            return
        wanted = {shard.name: shard for shard in self._fitting(shards, beside)}
        with self._lock:
            for name, future in list(self._coming.items()):
                if name not in wanted and (future.cancel() or future.done()):
                    del self._coming[name]
            for name, shard in wanted.items():
                if name not in self._coming:
                    self._coming[name] = self._threads().submit(self._fetched_ahead, shard)

    def close(self) -> None:
        """Give up what is fetched ahead."""
        with self._lock:
            self._coming.clear()
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _threads(self) -> DaemonPool:
        if self._pool is None:
            self._pool = DaemonPool(N_THREADS, "shards ahead", wait_s=0.0)
        return self._pool

    def _fitting(self, shards: Sequence[ShardInfo], beside: Iterable[ShardInfo]) -> list[ShardInfo]:
        """The first of them for which the cache has room beside those in use."""
        if self._cache is None:
            return list(shards)
        room = self._cache.max_bytes - sum(shard.size_bytes for shard in beside)
        fitting = []
        for shard in shards:
            room -= shard.size_bytes
            if room < 0:
                break
            fitting.append(shard)
        return fitting

    def _fetched_ahead(self, shard: ShardInfo) -> bytes:
        """The content, or nothing where the cache keeps it."""
        content = self._remote(shard)
        return content if self._cache is None or shard.size_bytes > self._cache.max_bytes else b""

    def _remote(self, shard: ShardInfo) -> bytes:
        def fetched() -> bytes:
            return fetch_shard(self.directory, shard, self._streaming.patience)

        if self._cache is None:
            return fetched()
        content = self._cache.get(shard, self.known.get(shard))
        return content if content is not None else self._cache.fill(shard, fetched)


def _will_need(path: Path) -> None:
    """Ask the system to have a file in memory soon; one that is not there is found out when it is
    read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
