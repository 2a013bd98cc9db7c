"""The worker as other processes import it: torch is loaded on their side only."""

from __future__ import annotations

from typing import Any

from scaling.channel.base import Channel
from scaling.parallel.grid import Ranks
from scaling.runs.startup import mark


def worker_entry(
    spec: dict[str, Any], ranks: Ranks, channel: Channel, rendezvous: str
) -> dict[str, Any]:
    mark(spec["startup"], "worker_entered")
    from scaling.worker.rank import run_worker
    from scaling.worker.spec import WorkerSpec

    mark(spec["startup"], "imported")
    return run_worker(WorkerSpec.from_dict(spec), ranks, channel, rendezvous=rendezvous)
