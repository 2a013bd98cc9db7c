"""Kept-alive workers on one Ray cluster, for many runs one after the other and side by side.

A start of Python, torch and Ray costs ten seconds, and a trial of a study may take no longer; a warm worker begins within one.
A worker that dies or raises is replaced, and the others of its run with it; no other run notices.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scaling.config import ClusterConfig
from scaling.errors import LaunchError
from scaling.launch.base import WorkerFn, guarded
from scaling.launch.cluster import RayCluster
from scaling.launch.kv_channel import KvChannel, KvInbox
from scaling.parallel.grid import Ranks

_START_S = 180.0
"""Longest wait for the first worker: assumption, that an idle cluster starts one sooner."""
_LAST_WORDS_S = 2.0
"""Time for the other ranks of a failed run to say what they know: assumption."""


@dataclass(frozen=True)
class Place:
    """Where a worker runs: its node, that node's address, and the accelerator that it sees ("" on a CPU)."""

    node: str
    address: str
    device: str


class WarmWorker:
    """The actor: one process that has everything imported."""

    def warm(self) -> Place:
        import ray

        from scaling.launch import warm

        warm.up()
        context = ray.get_runtime_context()
        devices = context.get_accelerator_ids().get("GPU", [])
        return Place(context.get_node_id(), ray.util.get_node_ip_address(), ",".join(devices))

    def rendezvous(self, address: str) -> str:
        import socket

        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{address}:{free.getsockname()[1]}"

    def run(self, worker_fn: WorkerFn, spec: dict[str, Any], ranks: Ranks, prefix: str, rendezvous: str) -> dict[str, Any]:
        from scaling.launch import warm

        with warm.one_run():
            return guarded(worker_fn, spec, ranks, KvChannel(prefix, ranks.rank), rendezvous)


@dataclass
class Slot:
    """A worker's share of a device. `device` tells which slots share one; None until its worker is warm."""

    actor: Any
    warming: Any
    place: Place | None = None
    device: str | None = None
    busy: bool = False


class WorkerPool:
    """`n_devices` devices with `slots` workers each. Entered, it connects and starts them; they become ready one by one."""

    def __init__(self, cluster: ClusterConfig, n_devices: int, *, slots: int = 1, debug: bool = False) -> None:
        self._ray = RayCluster(cluster, n_devices, helpers=n_devices * (slots - 1), debug=debug)
        self._cluster, self._n_devices, self._n_slots = cluster, n_devices, slots
        self._slots: list[Slot] = []
        self._began_s = 0.0

    def __enter__(self) -> WorkerPool:
        self._ray.set_environment()
        self._ray.connect()
        self._began_s = time.monotonic()
        self._slots = [self._start() for _ in range(self._n_devices * self._n_slots)]
        return self

    def __exit__(self, *exc: object) -> None:
        self._ray.shutdown()

    def _start(self) -> Slot:
        import ray

        gpu = self._cluster.device.kind == "gpu"
        cpus = 1 if gpu else self._cluster.threads_per_worker
        options: dict[str, Any] = {
            "num_cpus": cpus / self._n_slots,
            "num_gpus": 1 / self._n_slots if gpu else 0,
            "max_restarts": 0,
        }
        actor: Any = ray.remote(**options)(WarmWorker).remote()
        return Slot(actor, actor.warm.remote())

    def poll(self) -> None:
        """Take note of workers that are warm now. Raises LaunchError when after long none is."""
        import ray

        cold = [slot for slot in self._slots if slot.place is None]
        for slot in cold:
            if ray.wait([slot.warming], timeout=0)[0]:
                try:
                    slot.place = ray.get(slot.warming)
                except ray.exceptions.RayError as error:
                    raise LaunchError(f"a worker could not be started: {error}") from error
                slot.device = self._device_of(slot)
        if len(cold) == len(self._slots) and time.monotonic() - self._began_s > _START_S:
            raise LaunchError(
                f"no worker was started within {_START_S:.0f} s", "cluster", "Look whether others hold its devices (ray status)."
            )

    def _device_of(self, slot: Slot) -> str:
        assert slot.place is not None
        if slot.place.device:
            return f"{slot.place.node}/{slot.place.device}"
        counts: dict[str, int] = {}
        for other in self._slots:
            if other is not slot and other.device is not None and other.device.startswith(f"{slot.place.node}/cpu"):
                counts[other.device] = counts.get(other.device, 0) + 1
        names = (f"{slot.place.node}/cpu{number}" for number in itertools.count())
        return next(name for name in names if counts.get(name, 0) < self._n_slots)

    def room(self, n_ranks: int, *, whole: bool) -> list[Slot] | None:
        """Slots on which a run of so many ranks can start now: of its own devices, where `whole`; None where there is no room."""
        by_device: dict[str, list[Slot]] = {}
        for slot in self._slots:
            if slot.device is not None:
                by_device.setdefault(slot.device, []).append(slot)
        alone = whole or n_ranks > 1
        free = {device: [slot for slot in slots if not slot.busy] for device, slots in by_device.items()}
        usable = {
            device: slots for device, slots in free.items() if slots and (not alone or len(slots) == len(by_device[device]))
        }
        chosen = _nearest(usable, n_ranks)
        if chosen is None:
            return None
        return [slot for device in chosen for slot in (usable[device] if alone else usable[device][:1])]

    def launch(self, worker_fn: WorkerFn, spec: dict[str, Any], n_ranks: int, slots: Sequence[Slot]) -> PoolLaunch:
        """Start a run on slots that `room` gave."""
        for slot in slots:
            slot.busy = True
        first_of_device = list({slot.device: slot for slot in slots}.values())
        return PoolLaunch(self, worker_fn, spec, first_of_device[:n_ranks], slots)

    def rendezvous(self, first: Slot) -> str:
        """Where the ranks of a run meet: a file on a single machine, else a free port of the first rank's."""
        import ray

        if self._ray.session is not None:
            return f"file://{self._ray.session}/rendezvous-{uuid.uuid4().hex}"
        assert first.place is not None
        address: str = ray.get(first.actor.rendezvous.remote(first.place.address))
        return address

    def give_back(self, slots: Iterable[Slot], *, sound: bool) -> None:
        """Slots of a run that is over; workers that are not `sound` are ended and others started in their place."""
        import ray

        for slot in slots:
            slot.busy = False
            if not sound:
                ray.kill(slot.actor, no_restart=True)
                fresh = self._start()
                slot.actor, slot.warming, slot.place, slot.device = fresh.actor, fresh.warming, None, None


def _nearest(usable: dict[str, list[Slot]], n_ranks: int) -> list[str] | None:
    """`n_ranks` devices, of one node where one has enough: of those the fullest; None where there are too few in all."""
    nodes: dict[str, list[str]] = {}
    for device in usable:
        nodes.setdefault(device.partition("/")[0], []).append(device)
    enough = [devices for devices in nodes.values() if len(devices) >= n_ranks]
    if enough:
        return min(enough, key=len)[:n_ranks]
    spread = [device for devices in sorted(nodes.values(), key=len, reverse=True) for device in devices]
    return spread[:n_ranks] if len(spread) >= n_ranks else None


class PoolLaunch:
    """One run in the pool: the `Launch` that its driver sees."""

    def __init__(
        self, pool: WorkerPool, worker_fn: WorkerFn, spec: dict[str, Any], workers: Sequence[Slot], held: Sequence[Slot]
    ) -> None:
        self._pool, self._held = pool, held
        prefix = f"scaling/{uuid.uuid4().hex}"
        self._inbox = KvInbox(prefix)
        self._result: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._failed_s: float | None = None
        rendezvous = pool.rendezvous(workers[0]) if len(workers) > 1 else ""
        self._running = [
            slot.actor.run.remote(worker_fn, spec, ranks, prefix, rendezvous)
            for slot, ranks in zip(workers, _ranks(workers), strict=True)
        ]
        self._first = self._running[0]

    def receive(self) -> list[tuple[str, dict[str, Any]]]:
        return self._inbox.receive()

    def request_stop(self) -> None:
        self._inbox.request_stop()

    def done(self, timeout_s: float) -> bool:
        """True once: then the workers are given back."""
        import ray

        ended, self._running = ray.wait(self._running, num_returns=len(self._running), timeout=timeout_s)
        for ref in ended:
            try:
                value = ray.get(ref)
            except Exception as error:  # whatever a worker raises: its own words are in the channel
                self._error = self._error or error
            else:
                self._result = value if ref == self._first else self._result
        if self._error is not None and self._failed_s is None:
            self._failed_s = time.monotonic()
        waited = self._failed_s is not None and time.monotonic() - self._failed_s > _LAST_WORDS_S
        if self._running and not waited:
            return False
        self._running = []
        self._pool.give_back(self._held, sound=self._error is None)
        return True

    def result(self) -> dict[str, Any]:
        if self._error is not None or self._result is None:
            raise LaunchError(_last_line(self._error)) from self._error
        return self._result

    def __enter__(self) -> PoolLaunch:
        return self

    def __exit__(self, *exc: object) -> None:
        """Workers are given back when the run is done, or end with the pool."""


def _ranks(workers: Sequence[Slot]) -> list[Ranks]:
    """Ranks in the workers' order, each with its number on its node."""
    seen: dict[str, int] = {}
    ranks = []
    for rank, slot in enumerate(workers):
        assert slot.place is not None
        local = seen.get(slot.place.node, 0)
        seen[slot.place.node] = local + 1
        ranks.append(Ranks(rank, len(workers), local))
    return ranks


def _last_line(error: Exception | None) -> str:
    import ray

    if isinstance(error, ray.exceptions.RayActorError):
        return "its worker died (killed, or out of memory)"
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "its worker ended without a result"
