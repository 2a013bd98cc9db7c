"""`python -m scaling.rehearse`: a drill. Trains once unbroken, once with processes killed at
random, and compares the two."""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from types import FrameType

from rich.console import Console

from scaling.commands.cli import reported
from scaling.commands.options import EXIT_INTERRUPTED, read_options
from scaling.composition.compose import compose, keys
from scaling.composition.flags import FLAGS, answered
from scaling.config.run_config import RunConfig
from scaling.config.spelling import no_flag
from scaling.errors import EXIT_FAILED, EXIT_FINISHED, ConfigError, PlanError
from scaling.metrics.record import read_metrics
from scaling.planner.machines.detect import n_devices, resolve_cluster
from scaling.planner.run_plan import make_plan
from scaling.planner.world_sizes import with_devices
from scaling.rehearsal.cluster import Nodes
from scaling.rehearsal.compare import compare
from scaling.rehearsal.drill import Drill, Outcome
from scaling.rehearsal.options import DrillOptions, new_directory, split_words
from scaling.rehearsal.report import Report, allowed_difference, print_report
from scaling.runs.directory import RunDir
from scaling.runs.files import write_json
from scaling.runs.goodput import PRODUCTIVE, goodput
from scaling.screen import print_help
from scaling.units import counted, format_duration

HELP = """\
python -m scaling.rehearse [kills=N] [KEY=VALUE] ... [GROUP=OPTION] ...

Shows that a run survives: it is trained once unbroken, and once while its processes (workers, Ray Train's
controller, Ray's node process, the driver) are killed at random steps and it is stopped and started again with
other numbers of workers. Reports sequences that were repeated or skipped, the greatest difference of losses, the
seconds that a kill costs, and goodput. Everything but the drill's own keys is for the run, as for
python -m scaling.run.

  python -m scaling.rehearse model=gpt_nano kills=20
  python -m scaling.rehearse model=gpt_nano kills=50 resizes=0        equal bit for bit on a CPU
  python -m scaling.rehearse model=gpt_nano kills=10 nodes=3          machines of a cluster die, too, and come back

Exit codes: 0 passed; 1 not; 2 configuration wrong; 130 interrupted.

Keys of the drill and their defaults
"""
RUN_DEFAULTS = (
    "train.log_every=1",
    "train.sample_tokens=0",
    "logger=none",
    "cluster.max_failures=1000",
)
"""A record of every step is what is compared. The run may fail as often as the drill wants."""
_STEPS_PER_KILL = 4
"""On average, so that one is recovered from before the next: assumption."""


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if answered(words, lambda: print_help(HELP + "\n".join(_keys()))):
        return EXIT_FINISHED
    codes: list[int] = []
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with reported(codes, debug=False):
            codes.append(rehearse(words))
    except KeyboardInterrupt:
        print(
            "Interrupted: the run and the drill's machines are stopped, and their record stays.",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    return max(codes)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM as Ctrl-C, so that nothing which was started is left behind."""
    raise KeyboardInterrupt


def _keys() -> Iterator[str]:
    for name, field in DrillOptions.model_fields.items():
        default = "" if field.default is None else field.default
        yield f"  {f'{name}={default}':<20} {field.description}"


def rehearse(words: Sequence[str]) -> int:
    """Do the drill; the exit code. Raises ScalingError."""
    flag = next((number for number, word in enumerate(words) if word.startswith("-")), None)
    if flag is not None:
        raise no_flag(words, flag, [*DrillOptions.model_fields, *keys()], FLAGS)
    own, run_words = split_words(words)
    options, console = read_options(DrillOptions, own), Console(highlight=False, markup=False)
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
        drill = Drill(
            options, all_words, config, _sizes(config), directory, seed, nodes, console.print
        )
        console.print(
            f"Training unbroken, {counted(n_steps, 'step')}; its output is in {directory}/unbroken.log"
        )
        unbroken = drill.unbroken()
        seconds = unbroken.seconds()
        console.print(
            f"That took {format_duration(sum(seconds.values()))}. Now with {counted(options.kills, 'kill')}, seed {seed}."
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
            f"a run of {counted(n_steps, 'step')} is too short for {counted(options.kills, 'kill')} and "
            f"{counted(options.resizes, 'resize')}",
            "kills, resizes, train.n_tokens",
            f"Leave {_STEPS_PER_KILL} steps for each at least.",
        )
    if options.nodes and (config.cluster.device.kind != "cpu" or config.cluster.kind != "embedded"):
        raise ConfigError(
            f"nodes={options.nodes} imitates machines of CPU workers, and this is cluster={config.cluster.name} with "
            f"{config.cluster.device.kind}s",
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


if __name__ == "__main__":
    sys.exit(main())
