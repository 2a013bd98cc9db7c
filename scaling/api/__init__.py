"""The functions that `import scaling` offers to notebooks and scripts; the commands call them too.

Composing, planning and fitting need neither torch nor Ray nor DeepSpeed, so every function imports
what it uses when it is called. Only `Run.metrics` and `Study.results` load pandas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scaling.api.arguments import named
from scaling.api.law_handle import FittedLaws, fit_law, predict_from
from scaling.api.run_handle import Picture, Run, open_run
from scaling.api.study_handle import Study, open_study
from scaling.api.trained_handle import TrainedSource, find_trained
from scaling.errors import ConfigError

if TYPE_CHECKING:
    from scaling.config.run_config import RunConfig
    from scaling.planner.run_plan import RunPlan

__all__ = [
    "FittedLaws",
    "Picture",
    "Run",
    "Study",
    "TrainedSource",
    "compose",
    "find_trained",
    "fit_law",
    "make_plan",
    "open_run",
    "open_study",
    "predict_from",
    "start",
]


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """Compose the configuration of these overrides (GROUP=OPTION, KEY=VALUE), as `python -m
    scaling.run` does.

    Raises ConfigError, which names the key, the value and what would work.
    """
    from scaling.composition.compose import compose as composed

    if isinstance(overrides, str):
        fix = f"Pass a list of words: scaling.compose({overrides.split()!r})."
        raise ConfigError("overrides is one text", "scaling.compose", fix)
    with named("scaling.compose"):
        return composed(overrides)


def make_plan(config: RunConfig) -> RunPlan:
    """Plan a run: what is trained, how, and its predicted cost. Starts nothing.

    Raises PlanError where no legal layout fits.
    """
    from scaling.planner.machines.detect import resolve_cluster
    from scaling.planner.measured.calibrate import scale_of
    from scaling.planner.run_plan import make_plan as planned

    with named("scaling.make_plan"):
        config = resolve_cluster(config)
        return planned(config, time_scale=scale_of(config))


def start(config: RunConfig) -> Run:
    """Train `config` until it ends or is stopped; returns its run in both cases.

    The same call continues a stopped run. An interrupt of the kernel (Ctrl-C) writes a checkpoint
    and stops. Raises the ScalingError that `python -m scaling.run` prints.
    """
    from scaling.launch.run import drive
    from scaling.runs.directory import RunDir

    if config.dry_run:
        fix = "Use scaling.make_plan(config), or compose without dry_run=true."
        raise ConfigError("dry_run=true starts nothing", "scaling.start", fix)
    if config.study.kind != "none":
        fix = f"Run python -m scaling.run -m study={config.study.kind}, then scaling.open_study."
        raise ConfigError(f"study={config.study.kind} makes many runs", "scaling.start", fix)
    with named("scaling.start"):
        drive(config)
    return Run(RunDir.for_config(config).path)
