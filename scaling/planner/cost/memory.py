"""Bytes that one device holds at the peak of a training step of a configuration."""

from __future__ import annotations

from scaling.config.run_config import RunConfig
from scaling.planner.cost.memory_model import MemoryEstimate, memory_of
from scaling.planner.cost.setting import software_of_run, workload_of
from scaling.planner.layout import Layout


def estimate_memory(config: RunConfig, layout: Layout) -> MemoryEstimate:
    """Memory of the fullest rank."""
    gpu = config.cluster.device.kind == "gpu"
    return memory_of(workload_of(config), layout, software_of_run(config, layout.engine), gpu=gpu)
