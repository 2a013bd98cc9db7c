"""Kept-alive workers on one Ray cluster, for many runs one after the other and side by side.

A start of Python, torch and Ray costs ten seconds, and a trial of a study may take no longer; a
warm worker begins within one. A worker that dies or raises is replaced, and the others of its run
with it, as is one whose engine leaves something behind; no other run notices.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from scaling.channel.messages import Lost, Message
from scaling.config.run_config import ClusterConfig
from scaling.errors import LaunchError
from scaling.launch.base import WorkerFn, WorkerKind, guarded
from scaling.launch.ray.channel import KvChannel, KvInbox
from scaling.launch.ray.cluster import RayCluster
from scaling.launch.ray.connection import Connection, unwatched
from scaling.parallel.grid import Ranks
from scaling.planner.layout import Layout

_START_S = 180.0
"""Longest wait for the first worker: assumption, that an idle cluster starts one sooner."""
_LAST_WORDS_S = 2.0
"""Time for the other ranks of a failed run to report: assumption."""


@dataclass(frozen=True)
class Place:
    """Where a worker runs: its node, that node's address, and the accelerator that it sees ("" on a
    CPU)."""

    node: str
    address: str
    device: str


class WarmWorker:
    """The actor: one process that has everything imported."""

    def warm(self) -> Place:
        import ray

        from scaling.launch.ray import warm

        warm.up()
        context = ray.get_runtime_context()
        devices = context.get_accelerator_ids().get("GPU", [])
        return Place(context.get_node_id(), ray.util.get_node_ip_address(), ",".join(devices))

    def rendezvous(self, address: str) -> str:
        import socket

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


@dataclass
class Slot:
    """A worker's share of a device. `device` is equal for slots that share one; None until its
    worker is warm."""

    actor: Any
    warming: Any
    place: Place | None = None
    device: str | None = None
    busy: bool = False


class WorkerPool:
    """`n_devices` devices with `slots` workers each. Entered, it connects and starts them; they
    become ready one by one."""

    def __init__(
        self, cluster: ClusterConfig, n_devices: int, *, slots: int = 1, debug: bool = False
    ) -> None:
        self._ray = RayCluster(cluster, n_devices, helpers=n_devices * (slots - 1), debug=debug)
        self._connection = Connection(self._ray)
        self._cluster, self._n_devices, self._n_slots = cluster, n_devices, slots
        self._slots: list[Slot] = []
        self._began_s = 0.0

    def __enter__(self) -> WorkerPool:
        self._connection.__enter__()
        self._began_s = time.monotonic()
        self._slots = [self._start() for _ in range(self._n_devices * self._n_slots)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.__exit__(kind, error, trace)

    def _start(self) -> Slot:
        actor = start_worker(self._cluster, share=1 / self._n_slots)
        return Slot(actor, actor.warm.remote())

    def poll(self) -> None:
        """Take note of workers that are warm now. Raises LaunchError when after long none is, and
        as soon as one of Ray's own processes has ended."""
        import ray

        self._connection.check()
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
                f"no worker was started within {_START_S:.0f} s",
                "cluster",
                "Look whether others hold its devices (ray status).",
            )

    def _device_of(self, slot: Slot) -> str:
        assert slot.place is not None
        if slot.place.device:
            return f"{slot.place.node}/{slot.place.device}"
        counts: dict[str, int] = {}
        for other in self._slots:
            if (
                other is not slot
                and other.device is not None
                and other.device.startswith(f"{slot.place.node}/cpu")
            ):
                counts[other.device] = counts.get(other.device, 0) + 1
        names = (f"{slot.place.node}/cpu{number}" for number in itertools.count())
        return next(name for name in names if counts.get(name, 0) < self._n_slots)

    def room(self, n_ranks: int, *, whole: bool) -> list[Slot] | None:
        """Slots on which a run of so many ranks can start now: of its own devices, where `whole`;
        None where there is no room."""
        by_device: dict[str, list[Slot]] = {}
        for slot in self._slots:
            if slot.device is not None:
                by_device.setdefault(slot.device, []).append(slot)
        alone = whole or n_ranks > 1
        free = {
            device: [slot for slot in slots if not slot.busy] for device, slots in by_device.items()
        }
        usable = {
            device: slots
            for device, slots in free.items()
            if slots and (not alone or len(slots) == len(by_device[device]))
        }
        chosen = _nearest(usable, n_ranks)
        if chosen is None:
            return None
        return [
            slot for device in chosen for slot in (usable[device] if alone else usable[device][:1])
        ]

    def launch(
        self, worker_fn: WorkerFn, spec: dict[str, Any], layout: Layout, slots: Sequence[Slot]
    ) -> GroupLaunch:
        """Start a run on slots that `room` gave for as many ranks; they are free again when it is
        done."""
        n_ranks, as_new = layout.world_size, leaves_nothing(layout)
        for slot in slots:
            slot.busy = True
        used = list({slot.device: slot for slot in slots}.values())[:n_ranks]
        workers, places = (
            [slot.actor for slot in used],
            [slot.place for slot in used if slot.place is not None],
        )
        meeting = meeting_place(workers[0], places[0], self._ray.session) if n_ranks > 1 else ""
        return GroupLaunch(
            worker_fn,
            spec,
            workers,
            places,
            meeting,
            lambda sound: self._give_back(slots, sound and as_new),
            self._connection.check,
        )

    def _give_back(self, slots: Iterable[Slot], as_new: bool) -> None:
        """Workers that are not `as_new` are ended, and others started in their place."""
        import ray

        if self._connection.is_lost:  # nothing can be ended or started on it
            return
        for slot in slots:
            slot.busy = False
            if not as_new:
                ray.kill(slot.actor, no_restart=True)
                fresh = self._start()
                slot.actor, slot.warming, slot.place, slot.device = (
                    fresh.actor,
                    fresh.warming,
                    None,
                    None,
                )


def meeting_place(worker: Any, place: Place, session: Path | None) -> str:
    """Where the ranks of a run meet: a file in `session` on a single machine, else a free port of
    the first rank's."""
    import ray

    if session is not None:
        return f"file://{session}/rendezvous-{uuid.uuid4().hex}"
    address: str = ray.get(worker.rendezvous.remote(place.address))
    return address


def _nearest(usable: dict[str, list[Slot]], n_ranks: int) -> list[str] | None:
    """`n_ranks` devices, of one node where one has enough: of those the fullest; None where there
    are too few in all."""
    nodes: dict[str, list[str]] = {}
    for device in usable:
        nodes.setdefault(device.partition("/")[0], []).append(device)
    enough = [devices for devices in nodes.values() if len(devices) >= n_ranks]
    if enough:
        return min(enough, key=len)[:n_ranks]
    spread = [
        device for devices in sorted(nodes.values(), key=len, reverse=True) for device in devices
    ]
    return spread[:n_ranks] if len(spread) >= n_ranks else None


class GroupLaunch:
    """One run on a group of warm workers: the `Launch` that its driver sees.

    places: of the workers, in the ranks' order. on_over: called once, with whether all workers are
    sound. check: raises LaunchError where Ray itself has lost a process, which then answers nobody.
    """

    worker_kind: WorkerKind = "kept"

    def __init__(
        self,
        worker_fn: WorkerFn,
        spec: dict[str, Any],
        workers: Sequence[Any],
        places: Sequence[Place],
        rendezvous: str,
        on_over: Callable[[bool], None],
        check: Callable[[], None] = unwatched,
    ) -> None:
        prefix = f"scaling/{uuid.uuid4().hex}"
        self._inbox, self._on_over, self._check = KvInbox(prefix), on_over, check
        self._ray_is_lost = False
        self._result: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._failed_s: float | None = None
        self._own_messages: list[Message] = []
        self._is_over = False
        self._running = [
            worker.run.remote(worker_fn, spec, ranks, prefix, rendezvous)
            for worker, ranks in zip(workers, _ranks(places), strict=True)
        ]
        self._ranks = {ref: rank for rank, ref in enumerate(self._running)}
        self._lost: list[int] = []

    def receive(self) -> list[Message]:
        own, self._own_messages = self._own_messages, []
        return own if self._ray_is_lost else self._inbox.receive() + own

    def request_stop(self) -> None:
        if not self._ray_is_lost:
            self._inbox.request_stop()

    def done(self, timeout_s: float) -> bool:
        """Whether all workers have ended, or one has failed and the others have had time to
        report, or Ray has lost a process of its own."""
        import ray

        try:
            self._check()
        except LaunchError as error:
            self._error, self._ray_is_lost = error, True
            self._end(sound=False)
            return True
        ended, self._running = ray.wait(
            self._running, num_returns=len(self._running), timeout=timeout_s
        )
        for ref in ended:
            try:
                value = ray.get(ref)
            except Exception as error:  # a worker that raises one has reported it
                self._error = self._error or error
                if isinstance(error, ray.exceptions.RayActorError):
                    self._lost.append(self._ranks[ref])
            else:
                self._result = value if self._ranks[ref] == 0 else self._result
        if self._error is not None and self._failed_s is None:
            self._failed_s = time.monotonic()
        waited = self._failed_s is not None and time.monotonic() - self._failed_s > _LAST_WORDS_S
        if self._running and not waited:
            return False
        if self._lost:
            self._own_messages.append(Lost(sorted(self._lost)))
        self._end(sound=self._error is None)
        return True

    def _end(self, *, sound: bool) -> None:
        self._running, self._is_over = [], True
        self._on_over(sound)

    def result(self) -> dict[str, Any]:
        if isinstance(self._error, LaunchError):
            raise self._error
        if self._error is not None or self._result is None:
            raise LaunchError(_last_line(self._error)) from self._error
        return self._result

    def __enter__(self) -> GroupLaunch:
        return self

    def __exit__(self, *exc: object) -> None:
        """Workers outlive the run, but for those that are still at work on it."""
        if not self._is_over:
            self._end(sound=False)


def _ranks(places: Sequence[Place]) -> list[Ranks]:
    """Ranks in the workers' order, each with its number on its node."""
    seen: dict[str, int] = {}
    ranks = []
    for rank, place in enumerate(places):
        local = seen.get(place.node, 0)
        seen[place.node] = local + 1
        ranks.append(Ranks(rank, len(places), local))
    return ranks


def _last_line(error: Exception | None) -> str:
    import ray

    if isinstance(error, ray.exceptions.RayActorError):
        return "its worker died (killed, or out of memory)"
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "its worker ended without a result"
