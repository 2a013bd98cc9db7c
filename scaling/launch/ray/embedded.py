"""Ray Train on a cluster that belongs to one run alone and ends with its driver, without what
serves clusters that are shared."""

from __future__ import annotations

import os
from typing import Any

import ray
from ray.train import Result
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

NEEDLESS = (DatasetsCallback, PlacementGroupCleanerCallback)
"""Each would start an actor, one second each: for Ray Data's shards, which we do not use, and to
free the cluster's resources after a controller that died (`RayCluster.free_reservations` does)."""


class WholeClusterPolicy(FixedScalingPolicy):
    """A fixed number of workers that asks no autoscaler and shares with no data pipeline: one
    actor, one second, saved."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """No request is registered, so there is none to repeat and none to take back."""

    def _maybe_send_resource_request(self) -> None:
        pass


class EmbeddedController(TrainController):
    """A controller that sends its workers no environment: every process here has the driver's.

    A process with an environment of its own is started again through an agent; without one, a
    process started ahead serves.
    """

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        for name in get_env_vars_to_propagate():
            del os.environ[name]


class EmbeddedTrainer(DataParallelTrainer):
    """DataParallelTrainer whose processes are the controller, one for synchronisation, and the
    workers."""

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if not isinstance(c, NEEDLESS)]

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        own: Any = self.scaling_config
        parts["scaling_policy"] = WholeClusterPolicy(own)
        actor_class: Any = ray.remote(num_cpus=0)(EmbeddedController)
        controller = actor_class.remote(**parts)
        ray.get(controller.run.remote())
        result: Any = ray.get(controller.get_result.remote())
        return result
