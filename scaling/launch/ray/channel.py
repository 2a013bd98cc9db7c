"""The channel of workers in other processes: both ends of it, in the key-value store of Ray's
head."""

from __future__ import annotations

import json
import os
import time

from scaling.channel.base import Notice
from scaling.channel.messages import Message, Progress, decode, encode


class KvChannel:
    """A worker's end. `prefix` is the launch's own. watches_machines: under Ray Train, on a cluster
    whose nodes may drain."""

    def __init__(self, prefix: str, rank: int, *, watches_machines: bool = False) -> None:
        self._prefix = prefix
        self._rank = rank
        self.watches_machines = watches_machines

    def send(self, message: Message) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        latest = isinstance(message, Progress)
        name = "progress" if latest else f"message/{time.time_ns():020d}-{self._rank}"
        _internal_kv_put(
            f"{self._prefix}/{name}", json.dumps(encode(message)).encode(), overwrite=True
        )

    def stop_requested(self) -> bool:
        from ray.experimental.internal_kv import _internal_kv_exists

        return bool(_internal_kv_exists(f"{self._prefix}/stop"))

    def stop_signal(self) -> str | None:
        """Name of the signal that asked for the stop; None where there was none."""
        from ray.experimental.internal_kv import _internal_kv_get

        value = (_internal_kv_get(f"{self._prefix}/stop") or b"").decode()
        return value if value.startswith("SIG") else None

    def notice(self) -> Notice | None:
        import ray.train

        found = ray.train.get_preemption_info()
        if found is None:
            return None
        return Notice(
            tuple(found.preempted_ranks),
            None if found.deadline_ms is None else found.deadline_ms / 1000,
        )

    def abandon(self) -> None:
        os._exit(1)


class KvInbox:
    """The driver's end."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def receive(self) -> list[Message]:
        """Everything new since the last call, in order, progress last."""
        from ray.experimental.internal_kv import (
            _internal_kv_del,
            _internal_kv_get,
            _internal_kv_list,
        )

        messages = []
        for key in [
            *sorted(_internal_kv_list(f"{self._prefix}/message/")),
            f"{self._prefix}/progress".encode(),
        ]:
            value = _internal_kv_get(key)
            if value is not None:
                _internal_kv_del(key)
                messages.append(decode(*json.loads(value)))
        return messages

    def request_stop(self, signal: str | None = None) -> None:
        """Ask the other side to stop. signal: the name of the one that asked for it."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(f"{self._prefix}/stop", (signal or "stop").encode(), overwrite=True)
