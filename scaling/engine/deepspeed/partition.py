"""Who holds what, for DeepSpeed: its groups of ranks, and ZeRO-3's partitions of a new model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from scaling.parallel.grid import Ranks
from scaling.parallel.groups import Groups
from scaling.planner.layout import Layout


class Mpu:
    """Names to DeepSpeed the ranks that sum gradients, and those that together have one gradient
    norm."""

    def __init__(self, ranks: Ranks, groups: Groups) -> None:
        self._ranks, self._groups = ranks, groups

    def get_data_parallel_group(self) -> Any:
        return self._groups.replicas or self._groups.single

    def get_data_parallel_world_size(self) -> int:
        return self._ranks.replicas

    def get_data_parallel_rank(self) -> int:
        return self._ranks.replica

    def get_model_parallel_group(self) -> Any:
        return self._groups.tp

    get_tensor_model_parallel_group = get_model_parallel_group

    def get_model_parallel_world_size(self) -> int:
        return self._ranks.tp

    get_tensor_model_parallel_world_size = get_model_parallel_world_size

    def get_model_parallel_rank(self) -> int:
        return self._ranks.tp_rank

    get_tensor_model_parallel_rank = get_model_parallel_rank


class Sharder:
    """Partitions a module's own parameters among the ranks of ZeRO-3 as soon as they exist, so that
    no rank ever holds all of a model."""

    def __init__(
        self, settings: dict[str, Any], layout: Layout, mpu: Mpu | None, dtype: torch.dtype
    ) -> None:
        self._settings, self._mpu, self._dtype = settings, mpu, dtype
        self._offloaded = layout.offload == "parameters"
        self._first: Any = None

    def __call__(self, module: nn.Module) -> None:
        # DeepSpeed keeps the dtype that a parameter has when it is partitioned.
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(self._dtype)
        if self._first is not None:
            self._first.convert_to_zero_parameters(
                param_list=list(module.parameters(recurse=False))
            )
            return
        from deepspeed.runtime.zero import Init

        group = None if self._mpu is None else self._mpu.get_data_parallel_group()
        remote = "cpu" if self._offloaded else None
        Init(
            module,
            data_parallel_group=group,
            config_dict_or_path=self._settings,
            mpu=self._mpu,
            mem_efficient_linear=False,
            remote_device=remote,
        )
        self._first = next(module.parameters(recurse=False))
