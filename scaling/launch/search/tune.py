"""ASHA and PBT by Ray Tune, Bayesian search by Optuna, with tokens as the time; the trials are
ordinary runs.

Tune decides who continues and what is drawn; it keeps nothing that we need. The runs' own records
are what a repeated command replays: a trial that has passed a stop answers at once with what it
measured there."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from scaling.config.run_config import RunConfig
from scaling.config.study import Choices, Range
from scaling.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_STOPPED, ConfigError
from scaling.launch.console import starting_text
from scaling.launch.ray.cluster import RayCluster
from scaling.launch.ray.connection import Connection
from scaling.launch.ray.tempdir import remove_tree
from scaling.launch.ray.warm_worker import resources_of
from scaling.launch.run import prepare_corpus
from scaling.launch.signals import StopSignals
from scaling.launch.study.console import StudyConsole
from scaling.metrics import names
from scaling.planner.budget import tokens_per_step
from scaling.planner.machines.detect import n_devices, resolve_cluster
from scaling.planner.run_plan import make_plan
from scaling.runs.directory import RunDir
from scaling.studies.generators import Branch, Draft, changed
from scaling.studies.search_space import (
    PARENT,
    Values,
    clipped,
    population,
    read_drawn,
    renumbered,
    space_of,
    stops,
    write_drawn,
)
from scaling.studies.trials import (
    Study,
    Trial,
    differences,
    in_directory,
    on_fewest_devices,
    study_directory,
)
from scaling.terminal import print_line
from scaling.units import counted, format_count, format_duration, format_flops

_ENVIRONMENT = {
    "TUNE_DISABLE_SIGNAL_CAPTURE": "1",  # signals are ours: they checkpoint first
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def declare_search(jobs: Sequence[tuple[RunConfig, tuple[str, ...]]]) -> Study:
    """A study whose trials are still to be drawn. Raises ConfigError, or PlanError for a trial that
    has no layout."""
    base = resolve_cluster(jobs[0][0])
    if len(jobs) > 1:
        fix = "Give the values as a space: study.space={KEY:[a,b]}."
        raise ConfigError(
            f"study={base.study.kind} cannot be combined with a sweep: it draws its values itself",
            "from the command line",
            fix,
        )
    space_of(base)
    make_plan(trial_base(base))
    return drawn_study(Study(base.study, study_directory(base), base, ()))


def search_lines(study: Study) -> Iterator[str]:
    """What a search may take, for the person who starts it."""
    base = trial_base(study.base)
    plan, config = make_plan(base), study.config
    most = config.n_trials * plan.flops
    tokens = ", ".join(format_count(step * plan.tokens_per_step) for step in stops(base))
    n_trials = counted(config.n_trials, "trial")
    yield (
        f"Search {study.name} ({config.kind}): {n_trials} of {base.name}, looked at after "
        f"{tokens} tokens"
    )
    for key, choices in space_of(study.base).items():
        yield f"  {key}: {choices.model_dump() if isinstance(choices, Range) else list(choices)}"
    usd = "unknown" if plan.usd is None else f"{config.n_trials * plan.usd:,.2f}"
    hours = (
        "unknown"
        if plan.hours is None
        else format_duration(3600 * config.n_trials * plan.hours * plan.layout.world_size)
    )
    yield (
        f"  at most {format_flops(most)}, device time {hours}, USD {usd}; each on "
        f"{counted(plan.layout.world_size, 'device')}"
    )


def drawn_study(study: Study) -> Study:
    """The study with the trials that have been drawn so far as its trials."""
    base, directory = study.base, study.directory
    drafts = [_draft(entry, base, directory) for entry in read_drawn(directory)]
    varied = differences([draft.config for draft in drafts]) if drafts else {}
    rows = []
    for number, draft in enumerate(drafts):
        values = {key: column[number] for key, column in varied.items()}
        rows.append(Trial(draft.config, make_plan(draft.config), None, draft.branch, values))
    return replace(study, trials=tuple(rows))


def _draft(entry: dict[str, Any], base: RunConfig, directory: Path) -> Draft:
    config = changed(trial_base(base), entry["values"] | {PARENT: entry["parent"]})
    branch = None
    if entry["parent"] is not None:
        trunk, step = entry["parent"].split("@")
        branch = Branch(trunk, int(step))
    return Draft(in_directory(config, directory), branch)


def trial_base(base: RunConfig) -> RunConfig:
    """What all trials share: on the devices of one trial, keeping a checkpoint of every stop."""
    narrowed, _ = on_fewest_devices(base, max(1, n_devices(base) // base.study.n_trials))
    checkpoint = narrowed.checkpoint.model_copy(update={"keep_steps": tuple(stops(base))})
    return narrowed.model_copy(update={"checkpoint": checkpoint})


def run_search(study: Study, console: Console) -> int:
    """Search until all trials are done or stopped, or a signal comes; returns the exit code. Raises
    ScalingError."""
    if study.config.kind == "bayesian" or study.config.sampler == "optuna":
        _require_optuna()
    space, base = space_of(study.base), trial_base(study.base)
    plan = make_plan(base)
    with ExitStack() as cleanup:
        run_dir = RunDir(study.directory)
        # which a signal interrupts: it may take long
        corpus_dir, skipped = prepare_corpus(base, run_dir, console)
        signals = cleanup.enter_context(StopSignals())
        cluster = RayCluster(
            study.base.cluster,
            n_devices(study.base),
            helpers=n_devices(study.base),
            debug=base.scaling.debug,
        )
        print_line(console, starting_text(study.base, n_devices(study.base), study=True))
        os.environ.update(_ENVIRONMENT)
        connection = cleanup.enter_context(Connection(cluster))
        signals.renew()
        shown = cleanup.enter_context(StudyConsole(console))
        from scaling.launch.search.trainable import SearchSpec

        spec = SearchSpec(
            base.model_dump(),
            str(study.directory),
            str(corpus_dir),
            skipped,
            stops(base),
            study.config.kind == "pbt",
            plan.layout.world_size,
            f"scaling/{uuid.uuid4().hex}",
            str(cluster.session) if cluster.session else None,
        )
        # Tune waits a minute for a store that has died; signals belong to this thread.
        return connection.watch(
            lambda: _tune(study, base, space, spec, signals, shown), signals.renew
        )


def _tune(
    study: Study,
    base: RunConfig,
    space: dict[str, Choices],
    spec: Any,
    signals: StopSignals,
    shown: StudyConsole,
) -> int:
    from ray import tune

    from scaling.launch.search.callbacks import Stopper, Watcher
    from scaling.launch.search.trainable import RunTrainable

    cpus, gpus = resources_of(base.cluster)
    bundle: dict[str, float] = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
    trainable = tune.with_resources(
        tune.with_parameters(RunTrainable, spec=spec),
        tune.PlacementGroupFactory([{}, *(bundle for _ in range(spec.n_ranks))]),
    )
    watch = Watcher(study, spec.prefix, signals, shown)
    storage = study.directory / ".ray"
    drawn = renumbered(read_drawn(study.directory))
    write_drawn(study.directory, drawn)
    begun = [entry["values"] | {PARENT: entry["parent"]} for entry in population(drawn)][
        : study.config.n_trials
    ]
    random.seed(study.config.seed)  # PBT draws from the global generators
    np.random.seed(study.config.seed)
    try:
        result = tune.Tuner(
            trainable,
            param_space={key: _domain(choices) for key, choices in space.items()} | {PARENT: None},
            tune_config=tune.TuneConfig(
                metric=None if study.config.kind == "pbt" else names.VAL_LOSS,
                mode=None if study.config.kind == "pbt" else "min",
                scheduler=_scheduler(base, study, space),
                search_alg=_sampler(study, begun),
                num_samples=study.config.n_trials,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=uuid.uuid4().hex,
                storage_path=str(storage),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=study.config.max_attempts - 1),
                callbacks=[watch],
                stop=Stopper(signals),
            ),
        ).fit()
    finally:
        remove_tree(storage)
    if signals.received:
        return EXIT_STOPPED
    return EXIT_FAILED if result.num_errors else EXIT_FINISHED


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        fix = "Install it: pip install -c constraints.txt -e '.[search]'."
        raise ConfigError(
            "Optuna is not installed", "study=bayesian and study.sampler=optuna draw with it", fix
        ) from error


def _domain(choices: Choices) -> Any:
    """The values to draw from, as Tune's own type."""
    from ray import tune

    if not isinstance(choices, Range):
        return tune.choice(list(choices))
    low, high = choices.low, choices.high
    if choices.integer:
        return (tune.lograndint if choices.log else tune.randint)(int(low), int(high) + 1)
    return (tune.loguniform if choices.log else tune.uniform)(low, high)


def _scheduler(base: RunConfig, study: Study, space: dict[str, Choices]) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining

    step = tokens_per_step(base)
    marks = [at * step for at in stops(base)]
    if study.config.kind == "asha":
        factor = study.config.reduction_factor
        return ASHAScheduler(
            time_attr="n_tokens", grace_period=marks[0], max_t=marks[-1], reduction_factor=factor
        )
    if study.config.kind == "pbt":
        # A list is walked along by PBT, one place at a time; a range is perturbed, and kept within
        # its ends here.
        mutations = {
            key: _domain(choices) if isinstance(choices, Range) else list(choices)
            for key, choices in space.items()
        }
        return PopulationBasedTraining(
            time_attr="n_tokens",
            metric=names.VAL_LOSS,
            mode="min",
            perturbation_interval=marks[0],
            hyperparam_mutations=mutations,
            custom_explore_fn=lambda values: clipped(values, space),
            log_config=False,
        )
    return FIFOScheduler()


def _sampler(study: Study, begun: list[Values]) -> Any:
    from ray.tune.search.basic_variant import BasicVariantGenerator

    config = study.config
    if config.kind == "bayesian" or config.sampler == "optuna":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        begun = [{key: value for key, value in values.items() if key != PARENT} for values in begun]
        return OptunaSearch(points_to_evaluate=begun or None, seed=config.seed)
    return BasicVariantGenerator(points_to_evaluate=begun or None, random_state=config.seed)
