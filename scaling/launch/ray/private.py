"""Every private part of Ray that the project relies on, with the reason; written for Ray 2.60.

Ray may rename these in any release. `missing` says which are absent from the Ray that is installed.
Nothing here imports Ray before it is asked to: Ray reads its environment when it is imported.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

_V2 = "ray.train.v2._internal"
_TRAINER = "ray.train.v2.api.data_parallel_trainer"


@dataclass(frozen=True)
class Private:
    """An attribute of a module of Ray's. name: dotted where it is a class's own. used_by: module
    of this package, without which it is not needed."""

    module: str
    name: str
    used_by: str
    reason: str

    @property
    def exists(self) -> bool:
        try:
            found: object = importlib.import_module(self.module)
            for part in self.name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError):
            return False
        return True

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


_KV = "ray.experimental.internal_kv"
_KEEPS = "the channel between workers and driver; an actor would need a process of its own"
_PROCESSES = "which of Ray's own processes has died: Ray ends the driver for it without a reason"
_NO_ACTOR = "left out of the embedded trainer: each starts an actor, which takes a second"

PRIVATE = (
    Private(_KV, "_internal_kv_put", "channel", _KEEPS),
    Private(_KV, "_internal_kv_get", "channel", _KEEPS),
    Private(_KV, "_internal_kv_del", "channel", _KEEPS),
    Private(_KV, "_internal_kv_list", "channel", _KEEPS),
    Private(_KV, "_internal_kv_exists", "channel", _KEEPS),
    Private("ray._private.worker", "_global_node", "cluster", _PROCESSES),
    Private("ray._private.node", "Node.dead_processes", "cluster", _PROCESSES),
    Private(
        "ray._private.node",
        "Node.kill_all_processes",
        "cluster",
        "ends what is left of a cluster that has lost a process",
    ),
    Private(
        "ray.train._internal.utils",
        "get_address_and_port",
        "trainer",
        "the first rank's address: the public TorchConfig imports torch into driver and controller",
    ),
    Private(f"{_V2}.callbacks.datasets", "DatasetsCallback", "embedded", _NO_ACTOR),
    Private(
        f"{_V2}.callbacks.placement_group_callback",
        "PlacementGroupCleanerCallback",
        "embedded",
        _NO_ACTOR,
    ),
    Private(
        f"{_V2}.constants",
        "get_env_vars_to_propagate",
        "embedded",
        "the controller sends its workers no environment, so that processes started ahead serve",
    ),
    Private(
        f"{_V2}.execution.context",
        "TrainRunContext",
        "embedded",
        "type of an argument of the policy's",
    ),
    Private(
        f"{_V2}.execution.controller",
        "TrainController",
        "embedded",
        "base of the controller that sends no environment",
    ),
    Private(
        f"{_V2}.execution.scaling_policy.fixed",
        "FixedScalingPolicy.after_controller_start",
        "embedded",
        "replaced: nobody is asked for resources on a cluster of the run's own",
    ),
    Private(
        f"{_V2}.execution.scaling_policy.fixed",
        "FixedScalingPolicy._maybe_send_resource_request",
        "embedded",
        "replaced: nobody is asked for resources on a cluster of the run's own",
    ),
    Private(
        _TRAINER,
        "DataParallelTrainer._create_default_callbacks",
        "embedded",
        "replaced: without the callbacks that start actors",
    ),
    Private(
        _TRAINER,
        "DataParallelTrainer._initialize_and_run_controller",
        "embedded",
        "replaced: starts the controller with the policy of the embedded cluster",
    ),
    Private(
        f"{_V2}.execution.scaling_policy.elastic",
        "ElasticScalingPolicy._count_possible_workers",
        "elastic",
        "replaced: only numbers of workers with a legal plan",
    ),
    Private(
        _TRAINER,
        "DataParallelTrainer._initialize_and_run_controller",
        "elastic",
        "replaced: hands the elastic policy over",
    ),
)


def missing(used_by: str) -> list[str]:
    """The parts that this module of the package needs and the installed Ray lacks."""
    return [str(part) for part in PRIVATE if part.used_by == used_by and not part.exists]
