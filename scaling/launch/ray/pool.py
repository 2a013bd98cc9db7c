"""Kept-alive workers on one Ray cluster, for many runs one after the other and side by side.

A start of Python, torch and Ray costs ten seconds, and a trial of a study may take no longer; a
warm worker begins within one. A worker that dies or raises is replaced, and the others of its run
with it, as is one whose engine leaves something behind; no other run notices.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from scaling.config.run_config import ClusterConfig
from scaling.errors import LaunchError
from scaling.launch.base import WorkerFn
from scaling.launch.ray.cluster import RayCluster
from scaling.launch.ray.connection import Connection
from scaling.launch.ray.group import GroupLaunch
from scaling.launch.ray.warm_worker import Location, leaves_nothing, meeting_address, start_worker
from scaling.planner.layout import Layout

_START_S = 180.0
"""Longest wait for the first worker: assumption, that an idle cluster starts one sooner."""


@dataclass
class Slot:
    """A worker's share of a device. `device` is equal for slots that share one; None until its
    worker is warm."""

    actor: Any
    warming: Any
    location: Location | None = None
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
        cold = [slot for slot in self._slots if slot.location is None]
        for slot in cold:
            if ray.wait([slot.warming], timeout=0)[0]:
                try:
                    slot.location = ray.get(slot.warming)
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
        assert slot.location is not None
        if slot.location.device:
            return f"{slot.location.node}/{slot.location.device}"
        counts: dict[str, int] = {}
        for other in self._slots:
            if (
                other is not slot
                and other.device is not None
                and other.device.startswith(f"{slot.location.node}/cpu")
            ):
                counts[other.device] = counts.get(other.device, 0) + 1
        names = (f"{slot.location.node}/cpu{number}" for number in itertools.count())
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
        workers, locations = (
            [slot.actor for slot in used],
            [slot.location for slot in used if slot.location is not None],
        )
        meeting = (
            meeting_address(workers[0], locations[0], self._ray.session) if n_ranks > 1 else ""
        )
        return GroupLaunch(
            worker_fn,
            spec,
            workers,
            locations,
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
                slot.actor, slot.warming, slot.location, slot.device = (
                    fresh.actor,
                    fresh.warming,
                    None,
                    None,
                )


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
