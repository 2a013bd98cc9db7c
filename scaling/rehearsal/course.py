"""The course of a drill: the unbroken run, the broken one, their comparison and the report."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial

from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig
from scaling.errors import EXIT_FAILED, EXIT_FINISHED, ConfigError, PlanError
from scaling.metrics.record import read_metrics
from scaling.planner.machines.detect import n_devices, resolve_cluster
from scaling.planner.run_plan import make_plan
from scaling.planner.world_sizes import with_devices
from scaling.rehearsal.cluster import Nodes
from scaling.rehearsal.compare import compare
from scaling.rehearsal.drill import Drill
from scaling.rehearsal.options import RUN_DEFAULTS, DrillOptions, new_directory
from scaling.rehearsal.outcome import Outcome
from scaling.rehearsal.report import Report, allowed_difference, print_report
from scaling.runs.directory import RunDir
from scaling.runs.files import write_json
from scaling.runs.goodput import PRODUCTIVE, goodput
from scaling.terminal import output_console, print_line
from scaling.units import counted, format_duration

_STEPS_PER_KILL = 4
"""Steps between kills on average, so that the run recovers before the next: assumption."""


def rehearse(options: DrillOptions, run_words: Sequence[str], words: Sequence[str]) -> int:
    """Do the drill; returns the exit code, raises ScalingError. words: as typed, for the report."""
    console = output_console(markup=False)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    config = resolve_cluster(compose([*RUN_DEFAULTS, *run_words]))
    n_steps = make_plan(config).n_steps
    _check(config, options, n_steps)
    directory = new_directory(options)
    with ExitStack() as cleanup:
        all_words, nodes = [*RUN_DEFAULTS, *run_words], None
        if options.nodes:
            nodes = cleanup.enter_context(
                Nodes(options.nodes, directory, config.cluster.threads_per_worker)
            )
            all_words += _cluster_words(config, nodes, options.nodes)
            config = resolve_cluster(compose(all_words))
        say = partial(print_line, console)
        drill = Drill(options, all_words, config, _sizes(config), directory, seed, nodes, say)
        console.print(
            f"Training unbroken, {counted(n_steps, 'step')}; "
            f"its output is in {directory}/unbroken.log"
        )
        unbroken = drill.unbroken()
        seconds = unbroken.seconds()
        console.print(
            f"That took {format_duration(sum(seconds.values()))}. "
            f"Now with {counted(options.kills, 'kill')}, seed {seed}."
        )
        outcome = drill.broken(n_steps, seconds[PRODUCTIVE] / max(1, options.kills) / 3600)
    report = _report(config, words, options, seed, outcome, unbroken, drill.run_dir("broken"))
    path = directory / "report.json"
    write_json(path, report.to_dict())
    print_report(console, report, str(path))
    return EXIT_FINISHED if report.passed else EXIT_FAILED


def _check(config: RunConfig, options: DrillOptions, n_steps: int) -> None:
    if config.dry_run:
        raise ConfigError(
            "a drill trains",
            "dry_run=true",
            "Leave it out; python -m scaling.run dry_run=true shows the plan.",
        )
    if n_steps < _STEPS_PER_KILL * (options.kills + options.resizes):
        raise ConfigError(
            f"a run of {counted(n_steps, 'step')} is too short for "
            f"{counted(options.kills, 'kill')} and {counted(options.resizes, 'resize')}",
            "kills, resizes, train.n_tokens",
            f"Leave {_STEPS_PER_KILL} steps for each at least.",
        )
    if options.nodes and (config.cluster.device.kind != "cpu" or config.cluster.kind != "embedded"):
        raise ConfigError(
            f"nodes={options.nodes} imitates machines of CPU workers, "
            f"and this is cluster={config.cluster.name} with {config.cluster.device.kind}s",
            "nodes",
            "Use nodes=0: then workers, controller and driver are killed where they run.",
        )


def _cluster_words(config: RunConfig, nodes: Nodes, n_nodes: int) -> list[str]:
    """The imitated machines, as the run sees them."""
    device = config.cluster.device
    return [
        "cluster=existing",
        f"cluster.address={nodes.address}",
        f"cluster.n_nodes={n_nodes}",
        "cluster.devices_per_node=1",
        "cluster.min_devices=1",
        f"cluster.device.kind={device.kind}",
        "cluster.device.name=imitated machine",
        f"cluster.device.memory_gb={device.memory_gb}",
    ]


def _sizes(config: RunConfig) -> list[int]:
    """Numbers of workers on this machine that make a legal plan, of those that the run's own plan
    has room for."""
    if config.cluster.kind != "embedded" or config.cluster.n_nodes > 1:
        return [make_plan(config).layout.world_size]
    sizes = []
    for size in range(1, n_devices(config) + 1):
        with suppress(PlanError):
            if make_plan(with_devices(config, size)).layout.world_size == size:
                sizes.append(size)
    return sizes


def _report(
    config: RunConfig,
    words: Sequence[str],
    options: DrillOptions,
    seed: int,
    outcome: Outcome,
    unbroken: RunDir,
    broken: RunDir,
) -> Report:
    sizes = [
        event["world_size"]
        for event in broken.read_events()
        if event["kind"] in ("start", "resume")
    ]
    before = [
        event["world_size"]
        for event in unbroken.read_events()
        if event["kind"] in ("start", "resume")
    ]
    seconds = broken.seconds()
    return Report(
        command=list(words),
        seed=seed,
        n_kills_wanted=options.kills,
        kills=outcome.kills,
        resizes=outcome.resizes,
        starts=outcome.starts,
        world_sizes=sizes,
        comparison=compare(
            read_metrics(unbroken.metrics),
            read_metrics(broken.metrics),
            config.train.global_batch_size,
        ),
        allowed=allowed_difference(config, [*before, *sizes]),
        seconds=seconds,
        goodput=goodput(seconds),
        goodput_unbroken=goodput(unbroken.seconds()),
    )
