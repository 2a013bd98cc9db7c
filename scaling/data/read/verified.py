"""What a process remembers of the shards that it has verified in full."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from scaling.data.shards import ShardInfo

MAX_REMEMBERED = 1 << 22
"""Documents and shards that are remembered: 64 MiB at 16 bytes each. A choice; the rest is verified
in full at every use."""


@dataclass(frozen=True)
class Verified:
    """A shard whose SHA-256, layout, counts and token ids were found to be what the index says.

    crc32  of its content, which shows every change of one bit, and of any number within 32 bits
           that follow each other
    spans  begin and end of each of its documents in it, int64 (n_documents, 2); None where it is
           not of our own layout
    """

    crc32: int
    spans: np.ndarray | None


class VerifiedShards:
    """Shards of one corpus that were verified, for any threads.

    Those that came first stay: an epoch reads all of them once, so of a larger corpus the ones used
    last would be forgotten before they came again.
    """

    def __init__(self, max_remembered: int = MAX_REMEMBERED) -> None:
        self._room, self._found = max_remembered, dict[ShardInfo, Verified]()
        self._adding = threading.Lock()

    def get(self, shard: ShardInfo) -> Verified | None:
        return self._found.get(shard)

    def add(self, shard: ShardInfo, verified: Verified) -> None:
        """Remember it, if there is room."""
        size = 1 if verified.spans is None else 1 + len(verified.spans)
        with self._adding:
            if size <= self._room and self._found.setdefault(shard, verified) is verified:
                self._room -= size
