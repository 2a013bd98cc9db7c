"""The engine that runs a layout, and the device it runs on."""

from __future__ import annotations

import sys

import torch

from scaling.config.run_config import RunConfig
from scaling.engine.base import Engine
from scaling.parallel.grid import Ranks
from scaling.planner.layout import Layout


def prepare_device(config: RunConfig, ranks: Ranks) -> torch.device:
    """This rank's device, with torch's process-wide settings for it."""
    if config.cluster.device.kind == "gpu":
        device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        return device
    torch.set_num_threads(config.cluster.threads_per_worker)
    return torch.device("cpu")


def build_engine(config: RunConfig, layout: Layout, ranks: Ranks, device: torch.device) -> Engine:
    """One rank's engine, with initial weights. Collective over the world. DeepSpeed is imported
    only where it is used."""
    if layout.engine == "reference":
        from scaling.engine.reference import ReferenceEngine

        return ReferenceEngine(config, layout, device)
    if layout.engine == "ddp":
        from scaling.engine.ddp import DDPEngine

        return DDPEngine(config, layout, ranks, device)
    if layout.pp > 1:
        from scaling.engine.deepspeed.pipeline import PipelineEngine

        return PipelineEngine(config, layout, ranks, device)
    from scaling.engine.deepspeed.zero import DeepSpeedEngine

    return DeepSpeedEngine(config, layout, ranks, device)


def forget_engines() -> None:
    """Reset what DeepSpeed keeps for the whole process, where a process runs one layout after
    another."""
    if "deepspeed" in sys.modules:
        from scaling.engine.deepspeed.library import forget_layout

        forget_layout()
