"""Configurations for the planner's tests: composed once, on a described machine, so that no test depends on this one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from scaling.config import RunConfig

CONF = Path(__file__).resolve().parent.parent / "conf"
BASES = {"gpt", "gpt3"}
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml") if path.stem not in BASES)
CPU = (
    "cluster.devices_per_node=2", "cluster.device.name=test CPU", "cluster.device.memory_gb=12"
)  # fmt: skip


@cache
def composed(*overrides: str) -> RunConfig:
    """`overrides` on conf/, checked; a cluster that is not named is two CPU workers of 12 GB."""
    if not any(text.startswith("cluster") for text in overrides):
        overrides = (*overrides, *CPU)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=list(overrides))
    return RunConfig.model_validate(OmegaConf.to_container(config, resolve=True))
