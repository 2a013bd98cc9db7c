"""Hydra's multirun as a study: the sweeper makes the jobs, and the launcher hands all of them to
the command at once.

Hydra finds plugins in the namespace package `hydra_plugins`, and imports this at every start: it
must stay light.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

# here, not in hydra_parts: Hydra executes this module again before it loads this plugin
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from scaling.composition.hydra_parts import ConfigLoaderImpl, OverridesParser

if TYPE_CHECKING:
    from scaling.composition.jobs import Composed

Job = tuple["Composed", tuple[str, ...]]
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
        self._study: Callable[[list[Job]], None] | None = getattr(task_function, "study", None)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from scaling.composition.jobs import Jobs

        if self._study is None:
            raise HydraException("this command runs one configuration, not many: leave -m out")
        assert isinstance(self._loader, ConfigLoaderImpl)
        composing = Jobs(self._loader, self._config)
        jobs = [(composing.composed(words), tuple(words)) for words in job_overrides]
        self._study(jobs)
        return [JobReturn(overrides=words, status=JobStatus.COMPLETED) for _, words in jobs]


for _group, _class in (("hydra/launcher", StudyLauncher), ("hydra/sweeper", StudySweeper)):
    ConfigStore.instance().store(
        group=_group,
        name="study",
        node={"_target_": f"{_class.__module__}.{_class.__name__}"}
        | ({"max_batch_size": None, "params": None} if _class is StudySweeper else {}),
        provider="scaling",
    )
