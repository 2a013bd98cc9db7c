"""The worker as other processes import it: torch is loaded on their side only."""

from __future__ import annotations

from typing import Any

from scaling.channel import Channel
from scaling.parallel.grid import Ranks


def worker_entry(spec: dict[str, Any], ranks: Ranks, channel: Channel, rendezvous: str) -> dict[str, Any]:
    from scaling.worker import WorkerSpec, run_worker

    return run_worker(WorkerSpec.from_dict(spec), ranks, channel, rendezvous=rendezvous)
