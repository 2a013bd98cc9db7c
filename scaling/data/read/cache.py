"""Copies of remote shards on the disk of this machine, shared by its processes, and never more than
were asked for."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from scaling.data.read.shard_reader import is_sound
from scaling.data.read.verified import Verified
from scaling.data.shards import ShardInfo
from scaling.errors import DataError
from scaling.runs.file_lock import file_lock

_LOCKS = 256
"""Files to lock: shards that share one are fetched one after the other, which many files make rare.
Assumption."""
_LOCK = ".lock-"
# a copy in the making that nobody has written to for so long is of a process that was killed
_ABANDONED_S = 3600.0


class ShardCache:
    """Keeps up to `max_bytes` of shards in a directory, each under its checksum, those used last.

    Several processes may use one directory: a shard is fetched by one of them while the others
    wait. Nothing is synced to the disk, since a copy is compared with a checksum whenever it is
    read.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory, self.max_bytes = directory, max_bytes

    def get(self, shard: ShardInfo, verified: Verified | None = None) -> bytes | None:
        """The copy of a shard, sound or as it was when `verified`; None where there is none, or a
        bad one, which is removed."""
        path = self._path(shard)
        try:
            content = path.read_bytes()
            os.utime(path)  # used now: the last to be removed
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._trouble(error) from error
        if is_sound(content, shard, verified):
            return content
        path.unlink(missing_ok=True)
        return None

    def fill(self, shard: ShardInfo, fetch: Callable[[], bytes]) -> bytes:
        """What `fetch` gives, kept from now on; not asked where another process has put it here
        meanwhile.

        Raises what `fetch` raises, and DataError for a disk that is full or cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            # few locks serve all shards: two that share one wait for each other
            with self._lock(f"{int(shard.sha256[:8], 16) % _LOCKS:02x}"):
                if (content := self.get(shard)) is not None:
                    return content
                content = fetch()
                self._put(self._path(shard), content)
                return content
        except OSError as error:
            raise self._trouble(error) from error

    def _path(self, shard: ShardInfo) -> Path:
        return self.directory / f"{shard.sha256}.tar"

    def _put(self, path: Path, content: bytes) -> None:
        if len(content) > self.max_bytes:  # it would push out all others, and not stay
            return
        self._make_room(len(content))
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _make_room(self, n_bytes: int) -> None:
        """Remove the copies that were used longest ago, until so much more is within the bound."""
        with self._lock("room"):
            found = []
            for entry in os.scandir(self.directory):
                if entry.name.startswith(_LOCK):
                    continue
                with contextlib.suppress(FileNotFoundError):  # removed by another process
                    status = entry.stat()
                    # a copy under way counts once its writer must be dead
                    if (
                        not entry.name.startswith(".")
                        or time.time() - status.st_mtime > _ABANDONED_S
                    ):
                        found.append((status.st_mtime_ns, status.st_size, entry.path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total + n_bytes <= self.max_bytes:
                    break
                Path(path).unlink(missing_ok=True)
                total -= size

    def _lock(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Hold one of the directory's locks."""
        return file_lock(self.directory / f"{_LOCK}{name}")

    def _trouble(self, error: OSError) -> DataError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "Free some space, or set data.stream_cache_bytes lower. " if full else ""
        return DataError(
            f"copies of remote shards cannot be kept in {self.directory}: "
            f"{error.strerror or error}",
            where="data.cache_dir",
            fix=f"{fix}Another directory is set by data.cache_dir; data.stream_cache_bytes=0 "
            "keeps none.",
        )
