"""Configurations for the planner's tests, on described machines, so that no test depends on the one
it runs on."""

from __future__ import annotations

from functools import cache

from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig, conf_dir

BASES = {"gpt", "gpt3"}
MODELS = sorted(
    path.stem for path in (conf_dir() / "model").glob("[!_]*.yaml") if path.stem not in BASES
)
NANO = ("model.n_layers=4", "train.n_tokens=2_000_000", "train.global_batch_size=16")
"""Words that pin the default model's size, so that tuning it moves no test of the planner."""
CPU = ("cluster.devices_per_node=2", "cluster.device.name=test CPU", "cluster.device.memory_gb=12")


@cache
def composed(*overrides: str) -> RunConfig:
    """The configuration of `overrides`; a cluster that is not named is two CPU workers of 12 GB,
    text pairs are unread."""
    if any(text.startswith("model=transformer") for text in overrides) and not any(
        text.startswith("data") for text in overrides
    ):
        overrides = ("data=text_pairs", "data.path=unread.tsv", *overrides)
    if not any(text.startswith("model=") for text in overrides):
        overrides = (*NANO, *overrides)
    described = any(text.startswith("cluster") for text in overrides)
    return compose(overrides if described else (*overrides, *CPU))
