"""Ray Train on a standing cluster whose machines come and go: as many workers as there is room for
and the model can use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.train import Result, ScalingConfig
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class LegalSizes(ElasticScalingPolicy):
    """Ray's elastic policy, which otherwise takes every number of workers between least and
    most."""

    def __init__(self, scaling_config: Any, sizes: Sequence[int]) -> None:
        super().__init__(scaling_config)
        self._sizes = sizes

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        possible = super()._count_possible_workers(reserved_resources)
        return max((size for size in self._sizes if size <= possible), default=0)


class ElasticTrainer(DataParallelTrainer):
    """`sizes`: the numbers of workers that make a legal plan, ascending."""

    def __init__(
        self, *args: Any, sizes: Sequence[int], scaling_config: ScalingConfig, **parts: Any
    ) -> None:
        super().__init__(*args, scaling_config=scaling_config, **parts)
        self._sizes = sizes

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        parts["scaling_policy"] = LegalSizes(self.scaling_config, self._sizes)
        return super()._initialize_and_run_controller(**parts)
