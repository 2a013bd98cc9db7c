"""A worker that is kept from run to run: its process, what it takes of a machine, and where the
ranks of a run meet."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.config.run_config import ClusterConfig
from scaling.launch.base import WorkerFn, guarded
from scaling.launch.ray.channel import KvChannel
from scaling.parallel.grid import Ranks
from scaling.planner.layout import Layout


@dataclass(frozen=True)
class Location:
    """Where a worker runs: its node, that node's address, and the accelerator that it sees ("" on a
    CPU)."""

    node: str
    address: str
    device: str


class WarmWorker:
    """The actor: one process that has everything imported."""

    def warm(self) -> Location:
        import ray

        from scaling.launch.ray import warm

        warm.up()
        context = ray.get_runtime_context()
        devices = context.get_accelerator_ids().get("GPU", [])
        return Location(context.get_node_id(), ray.util.get_node_ip_address(), ",".join(devices))

    def rendezvous(self, address: str) -> str:
        import socket

        # the port is free when it is asked for: another process may take it before the ranks meet
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{address}:{free.getsockname()[1]}"

    def run(
        self, worker_fn: WorkerFn, spec: dict[str, Any], ranks: Ranks, prefix: str, rendezvous: str
    ) -> dict[str, Any]:
        from scaling.launch.ray import warm

        with warm.one_run():
            return guarded(worker_fn, spec, ranks, KvChannel(prefix, ranks.rank), rendezvous)


def start_worker(cluster: ClusterConfig, *, share: float = 1.0, **options: Any) -> Any:
    """The actor of a worker that holds this share of a device."""
    import ray

    cpus, gpus = resources_of(cluster)
    return ray.remote(num_cpus=cpus * share, num_gpus=gpus * share, max_restarts=0, **options)(
        WarmWorker
    ).remote()


def leaves_nothing(layout: Layout) -> bool:
    """Whether a worker that ran this layout is as new for the next run.

    DeepSpeed 0.19.8 keeps ZeRO-3 engines reachable as long as their process lives: measured, each
    left all its parameters after it was closed and collected, where those of ZeRO-1 and ZeRO-2 left
    none.
    """
    return not (layout.engine == "deepspeed" and layout.zero_stage == 3)


def resources_of(cluster: ClusterConfig) -> tuple[int, int]:
    """CPUs and GPUs of one worker, as Ray counts them."""
    return (1, 1) if cluster.device.kind == "gpu" else (cluster.threads_per_worker, 0)


def meeting_address(worker: Any, location: Location, session: Path | None) -> str:
    """Where the ranks of a run meet: a file in `session` on a single machine, else a free port of
    the first rank's."""
    import ray

    if session is not None:
        return f"file://{session}/rendezvous-{uuid.uuid4().hex}"
    address: str = ray.get(worker.rendezvous.remote(location.address))
    return address
