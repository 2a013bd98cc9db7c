"""The order that the driver gives to every rank. Imports no torch, since the driver writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from scaling.config.recorded import RECORDED
from scaling.config.run_config import RunConfig
from scaling.planner.run_plan import RunPlan, make_plan
from scaling.planner.world_sizes import with_devices
from scaling.runs.startup import Marks, begin


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What the driver hands to every rank. All paths are absolute, and the configuration has its
    cluster resolved.

    plan: as the driver chose it and wrote it into plan.json. until_step: step after which to
    evaluate, save and pause before the run's end; None: no pause. sizes: world sizes that the run
    may have, ascending; fewer than two where it keeps its plan's.
    """

    config: RunConfig
    plan: RunPlan
    run_dir: str
    corpus_dir: str
    skipped_shards: tuple[str, ...] = ()
    until_step: int | None = None
    startup: Marks = field(default_factory=begin)
    sizes: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which any process can unpickle before it imports this package."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {
            "config": self.config.model_dump(),
            "plan": self.plan.to_dict(),
            "skipped_shards": list(self.skipped_shards),
            "sizes": list(self.sizes),
        }

    @classmethod
    def from_dict(cls, spec: Mapping[str, Any]) -> Self:
        """The spec that `to_dict` wrote."""
        read: dict[str, Any] = {
            "config": RunConfig.model_validate(spec["config"], context=RECORDED),
            "plan": RunPlan.from_dict(spec["plan"]),
            "skipped_shards": tuple(spec["skipped_shards"]),
            "sizes": tuple(spec["sizes"]),
        }
        return cls(**{**spec, **read})

    def on(self, world_size: int) -> tuple[RunConfig, RunPlan]:
        """The configuration and the plan for this world size: as ordered, unless an elastic resize
        changed it. Raises PlanError."""
        if world_size == self.plan.layout.world_size or len(self.sizes) < 2:
            return self.config, self.plan
        config = with_devices(self.config, world_size)
        return config, make_plan(config, time_scale=self.plan.time_scale)
