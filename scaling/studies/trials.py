"""The trials of a study. Each is an ordinary run, known by its semantic hash, on the devices that
its plan needs.

Trials have no numbers. The state of a trial is read from its run directory, whatever the
directory's name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from scaling.checkpoint.store import newest_step
from scaling.config.run_config import ClusterConfig, RunConfig
from scaling.config.study import StudyConfig
from scaling.errors import ConfigError, PlanError, RunDirError, ScalingError
from scaling.planner.cost.counts import count
from scaling.planner.machines.detect import n_devices, resolve_cluster
from scaling.planner.run_plan import RunPlan, Shapes, make_plan
from scaling.runs.directory import RunDir
from scaling.runs.events import state_after
from scaling.studies.generators import Branch, Draft, generate

State = Literal["new", "begun", "failed", "stopped", "pruned", "finished", "given up", "damaged"]


@dataclass(frozen=True)
class Trial:
    """One run of a study. varied: the keys that differ between the study's trials, with this
    trial's values.

    refused: why the trial cannot be planned; `plan` is None then.
    """

    config: RunConfig
    plan: RunPlan | None
    refused: ScalingError | None
    branch: Branch | None
    varied: Mapping[str, Any]

    @cached_property
    def identity(self) -> str:
        return self.config.semantic_hash

    @cached_property
    def run_dir(self) -> RunDir:
        return RunDir.for_config(self.config)

    @property
    def name(self) -> str:
        return self.run_dir.path.name

    @property
    def n_tokens(self) -> int:
        assert self.config.train.n_tokens is not None, "validation resolves it"
        return self.config.train.n_tokens

    @cached_property
    def flops(self) -> int:
        """FLOPs of the whole run, including those of its trunk."""
        return count(self.config).flops_per_token * self.n_tokens


@dataclass(frozen=True)
class Study:
    """A declared study: its directory and its trials."""

    config: StudyConfig
    directory: Path
    base: RunConfig
    trials: tuple[Trial, ...]

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def refused(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.refused is not None)


def declare(jobs: Sequence[tuple[RunConfig, tuple[str, ...]]]) -> Study:
    """Declare the study of these configurations, each with the words that composed it. Raises
    ConfigError."""
    resolved, shapes = _Clusters(), Shapes()
    base = resolved.of(jobs[0][0])
    directory = study_directory(base)
    for config, _ in jobs:
        _refuse_another(base, resolved.of(config))
    drafts = [draft for config, words in jobs for draft in generate(config, words)]
    # Equal trials are one run; reversed twice, so that the first of them keeps its place.
    drafts = list({draft.config.semantic_hash: draft for draft in reversed(drafts)}.values())[::-1]
    placed = [
        replace(draft, config=in_directory(resolved.of(draft.config), directory))
        for draft in drafts
    ]
    varied = differences([draft.config for draft in placed])
    shares = fair_devices([draft.config for draft in placed], n_devices(base))
    trials = tuple(
        _planned(
            draft, shares[number], {key: values[number] for key, values in varied.items()}, shapes
        )
        for number, draft in enumerate(placed)
    )
    return Study(base.study, directory, base, trials)


class _Clusters:
    """Clusters as `resolve_cluster` fills them; each is resolved once."""

    def __init__(self) -> None:
        self._known: dict[str, ClusterConfig] = {}

    def of(self, config: RunConfig) -> RunConfig:
        key = config.cluster.model_dump_json()
        if key not in self._known:
            self._known[key] = resolve_cluster(config).cluster
        return config.model_copy(update={"cluster": self._known[key]})


def study_directory(config: RunConfig) -> Path:
    """<run.root>/<name of the study>. Raises ConfigError for a name that is not a directory's."""
    name = config.study.directory_name
    if not name.strip() or "/" in name or name.startswith("."):
        fix = "Use letters, digits, '-', '_' and '.', beginning with a letter or digit."
        raise ConfigError(f"study.name={name!r} cannot be a directory's name", "study.name", fix)
    return RunDir(config.run.root).path / name


def _refuse_another(base: RunConfig, config: RunConfig) -> None:
    """Refuse jobs that differ in cluster, study or run root: a study has one of each."""
    for key, ours, theirs in (
        ("cluster", base.cluster.model_dump(), config.cluster.model_dump()),
        ("study", base.study.model_dump(), config.study.model_dump()),
        ("run.root", base.run.root, config.run.root),
    ):
        if ours != theirs:
            raise ConfigError(
                f"a study has one {key}, and this command sweeps over it",
                "from the command line",
                "Run one study for each.",
            )


def in_directory(config: RunConfig, directory: Path) -> RunConfig:
    """`config` as an ordinary run in the study's directory. A run that is already there keeps its
    name."""
    found = sorted(path.name for path in directory.glob(f"*-{config.run_id}") if path.is_dir())
    name = found[0].removesuffix(f"-{config.run_id}") if found else config.run.name
    logger = config.logger.model_copy(update={"group": config.logger.group or directory.name})
    run = config.run.model_copy(update={"root": str(directory), "name": name, "resume": "auto"})
    # The run's own config.yaml is that of a single run: `scaling.run` continues it without a study.
    alone = StudyConfig(kind="none", max_attempts=config.study.max_attempts)
    return config.model_copy(
        update={"run": run, "logger": logger, "study": alone, "dry_run": False}
    )


def _planned(draft: Draft, least: int, varied: Mapping[str, Any], shapes: Shapes) -> Trial:
    try:
        config, plan = on_fewest_devices(draft.config, least, shapes)
        RunDir.for_config(config)
    except ScalingError as error:
        return Trial(draft.config, None, error, draft.branch, varied)
    return Trial(config, plan, None, draft.branch, varied)


def fair_devices(configs: Sequence[RunConfig], devices: int) -> list[int]:
    """The fewest devices for each run: its share of all FLOPs, rounded to a power of two.

    So the largest run does not continue on one device after all others have finished. Many equal
    runs get one device each.
    """
    flops = [count(config).flops_per_token * (config.train.n_tokens or 0) for config in configs]
    return [
        min(devices, 2 ** max(0, round(math.log2(devices * own / sum(flops))))) for own in flops
    ]


def on_fewest_devices(
    config: RunConfig, least: int = 1, shapes: Shapes | None = None
) -> tuple[RunConfig, RunPlan]:
    """Plan the configuration on the fewest devices of its cluster that hold it, but at least
    `least`.

    Many small runs side by side lose no time to communication. Raises PlanError where the whole
    cluster is too small.
    """
    total, refusal, tried = n_devices(config), None, min(least, n_devices(config))
    while True:
        narrowed = _narrowed(config, tried)
        try:
            plan = make_plan(narrowed, shapes=shapes)
        except PlanError as error:
            refusal = error
        else:
            return _narrowed(config, plan.layout.world_size), plan
        if tried == total:
            raise refusal
        tried = min(total, 2 * tried)  # powers of two, as batches and layouts divide


def _narrowed(config: RunConfig, devices: int) -> RunConfig:
    """Limit the cluster to `devices`; whole nodes, where one node is not enough."""
    cluster = config.cluster
    per_node = cluster.devices_per_node or 1
    shape = {"n_nodes": max(1, devices // per_node), "devices_per_node": min(devices, per_node)}
    return config.model_copy(update={"cluster": cluster.model_copy(update=shape)})


def differences(configs: Sequence[RunConfig]) -> dict[str, list[Any]]:
    """The dotted keys whose semantic values differ between these configurations, with each one's
    value (None: absent)."""
    flat = [dict(_leaves(config.semantic())) for config in configs]
    keys = dict.fromkeys(key for leaves in flat for key in leaves)
    columns = {key: [leaves.get(key) for leaves in flat] for key in keys}
    return {
        key: values
        for key, values in columns.items()
        if any(value != values[0] for value in values)
    }


def _leaves(tree: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, inner in tree.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    else:
        yield name, tree


@dataclass(frozen=True)
class Standing:
    """The state of a trial, its number of failures, and the step from which it continues.

    begun: it has started, has not ended, and continues from its last checkpoint. given up: it
    failed study.max_attempts times. stopped: by Ctrl-C; the same command continues it. pruned: a
    search ended it early.
    """

    state: State
    failures: int = 0
    step: int = 0
    trouble: str | None = None


def standing_of(trial: Trial) -> Standing:
    run_dir = trial.run_dir
    try:
        events, summary = run_dir.read_events(), run_dir.read_summary()
        state = state_after(events)
    except RunDirError as error:
        return Standing("damaged", trouble=error.what)
    step = newest_step(run_dir.checkpoints) or 0
    if state == "finished" and summary is not None:
        return Standing("finished", 0, step)
    failures = [event for event in events if event["kind"] == "failed"]
    trouble = str(failures[-1].get("reason")) if failures else None
    if len(failures) >= trial.config.study.max_attempts:
        return Standing("given up", len(failures), step, trouble)
    if state in ("failed", "stopped", "pruned"):
        return Standing(state, len(failures), step, trouble)
    return Standing("begun" if events else "new", len(failures), step, trouble)
