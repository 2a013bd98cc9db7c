"""Hydra's multirun as a study: the sweeper makes the jobs, and the launcher hands all of them to
the command at once.

Hydra finds plugins in the namespace package `hydra_plugins`, and imports this at every start: it
must stay light.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

# here, not in hydra_parts: Hydra executes this module anew before it loads this plugin
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from scaling.composition.hydra_parts import ConfigLoaderImpl, Override, OverridesParser

Job = tuple[DictConfig, tuple[str, ...]]
"""A composed configuration, and the words that composed it."""


class StudySweeper(BasicSweeper):
    """The product of all that is swept, in one batch. Nothing is written beside the study, and each
    job is composed once."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.hydra_context is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(
            [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        )
        (jobs,) = self.split_arguments(overrides, None)
        return [self.launcher.launch(jobs, initial_job_idx=0)]


class StudyLauncher(Launcher):
    """Calls the `study` of the task function, which is given every job; it packs them onto one
    cluster (scaling.launch.ray.pool)."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self._loader = hydra_context.config_loader
        self._config = config
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._groups: dict[str, bool] = {}
        self._study: Callable[[list[Job]], None] | None = getattr(task_function, "study", None)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        if self._study is None:
            raise HydraException("this command runs one configuration, not many: leave -m out")
        parser = OverridesParser.create(config_loader=self._loader)
        jobs = [
            (self._composed(parser.parse_overrides(list(words))), tuple(words))
            for words in job_overrides
        ]
        self._study(jobs)
        return [
            JobReturn(overrides=words, cfg=config, status=JobStatus.COMPLETED)
            for config, words in jobs
        ]

    def _composed(self, overrides: Sequence[Override]) -> DictConfig:
        """What Hydra composes of these words. Files are read once for all jobs that choose the same
        ones."""
        files = tuple(one.input_line or "" for one in overrides if self._chooses(one))
        if files not in self._bases:
            base = self._loader.load_sweep_config(self._config, list(files))
            with read_write(base), open_dict(base):
                del base["hydra"]  # of Hydra's own, which a command does not see
            self._bases[files] = base
        config: DictConfig = copy.deepcopy(self._bases[files])
        ConfigLoaderImpl._apply_overrides_to_config(
            [one for one in overrides if not self._chooses(one)], config
        )
        return config

    def _chooses(self, override: Override) -> bool:
        """Whether it chooses a file, or is of Hydra's own section; else it sets a value."""
        key = override.key_or_group
        if key not in self._groups:
            assert isinstance(self._loader, ConfigLoaderImpl)
            self._groups[key] = key.partition(".")[
                0
            ] == "hydra" or self._loader.repository.group_exists(key)
        return self._groups[key]


for _group, _class in (("hydra/launcher", StudyLauncher), ("hydra/sweeper", StudySweeper)):
    ConfigStore.instance().store(
        group=_group,
        name="study",
        node={"_target_": f"{_class.__module__}.{_class.__name__}"}
        | ({"max_batch_size": None, "params": None} if _class is StudySweeper else {}),
        provider="scaling",
    )
