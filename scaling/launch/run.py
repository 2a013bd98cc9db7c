"""The command `run`: one run from its configuration to its summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from scaling.checkpoint.store import newest_step
from scaling.composition.extension import Trunk, rewarmed_from, shorter_runs, trunk_of
from scaling.config.run_config import RunConfig
from scaling.data.corpus import Corpus
from scaling.data.preflight import check_inputs, check_lengths, check_tokenizer
from scaling.data.prepare.cached import ensure_corpus
from scaling.errors import EXIT_FINISHED, EXIT_STOPPED, ConfigError, DataError
from scaling.launch.attempt import Attempt
from scaling.launch.base import InProcessLaunch, Launch
from scaling.launch.console import ProgressLine, starting_text
from scaling.launch.signals import StopSignals
from scaling.launch.summary import print_summary
from scaling.metrics.sinks import back_fill
from scaling.planner.machines.detect import check_available, resolve_cluster
from scaling.planner.measured.calibrate import scale_of
from scaling.planner.run_plan import RunPlan, make_plan
from scaling.planner.show.plan import plan_table
from scaling.planner.world_sizes import elastic_sizes
from scaling.runs.directory import RunDir
from scaling.runs.startup import Marks, begin, mark
from scaling.screen import visible
from scaling.terminal import print_line
from scaling.units import format_count
from scaling.worker.spec import WorkerSpec

_POLL_S = 0.2


def drive(config: RunConfig) -> int:
    """Plan, and unless `dry_run`, train until the end or until asked to stop. Returns the exit
    code; raises ScalingError."""
    marks = begin()
    mark(marks, "composed")
    console = Console()
    config = resolve_cluster(config)
    plan, sizes = make_plan(config, time_scale=scale_of(config)), elastic_sizes(config)
    run_dir = RunDir.for_config(config)
    console.print(plan_table(config, plan, run_dir.path))
    if len(sizes) > 1:
        counts = " or ".join(str(size) for size in sizes)
        console.print(f"Elastic: can run on {counts} devices, as they come and go.")
    _say_extension(config, plan, run_dir, console)
    if config.dry_run:
        check_inputs(config)
        _check_source(config, console)
        return EXIT_FINISHED
    check_available(config)
    # Before there is a directory of a run that cannot be. The records of one that is there may be
    # damaged, and are read after the attempt has mended them.
    if not run_dir.path.exists():
        check_inputs(config)
        _check_source(config, console)
    has_begun = newest_step(run_dir.checkpoints) is not None
    trunk = None if has_begun else trunk_of(config)
    progress = ProgressLine(console, planned=plan.time is not None)
    with Attempt(config, plan, progress, marks) as attempt:
        summary = run_dir.read_summary()
        if run_dir.state() == "finished" and summary is not None:
            _show_finished(console, config, plan, run_dir, summary)
            return EXIT_FINISHED
        _open(attempt, trunk)
        return _train(attempt, sizes, progress, console, marks)


def _open(attempt: Attempt, trunk: Trunk | None) -> None:
    """Open the attempt, at a copy of the trunk's checkpoint where there is one. Raises ConfigError
    where none of its checkpoints is sound: the run would begin afresh without a word."""
    if trunk is None:
        attempt.open()
        return
    attempt.open(trunk=RunDir(trunk.path), at_step=trunk.step)
    if newest_step(attempt.run_dir.checkpoints) is None:
        raise ConfigError(
            f"no checkpoint of {trunk.path.name} up to step {trunk.step} is sound",
            "train.extend",
            "Restore one from a copy.",
        )


def _say_extension(config: RunConfig, plan: RunPlan, run_dir: RunDir, console: Console) -> None:
    """Say from where an extended run continues, or that a shorter finished run could be
    extended."""
    texts = []
    if run_dir.path.exists():
        return
    for path, n_tokens in shorter_runs(config):
        texts.append(
            f"A finished run of {format_count(n_tokens)} tokens is equal to this one up to its "
            "end: "
            f"{path.name}. To continue from it, add train.extend={path.name}."
        )
    if (trunk := trunk_of(config)) is not None:
        texts.append(f"Goes on from {trunk.path.name} after step {trunk.step} of {plan.n_steps}.")
        if start := rewarmed_from(config):
            texts.append(
                f"The cosine of schedule=cosine ended there: its rate is warmed up again after "
                f"{format_count(start)} tokens, and falls to the end of this run."
            )
    for text in texts:
        print_line(console, text)


def _check_source(config: RunConfig, console: Console) -> None:
    """Print what of the source of the initial weights is not used. Raises ScalingError for weights
    that do not fit."""
    if config.init_from.source is None:
        return
    from scaling.weights.initial import check_source  # torch, which a plan does without

    for note in check_source(config):
        print_line(console, note)


def _show_finished(
    console: Console, config: RunConfig, plan: RunPlan, run_dir: RunDir, summary: dict[str, Any]
) -> None:
    console.print("This run is finished; nothing is left to do.", highlight=False)
    print_summary(console, run_dir, summary)
    if run_dir.read_plan() is None:
        run_dir.write_plan(plan.to_dict())
    back_fill(config, run_dir.path, partial(print_line, console))


def _train(
    attempt: Attempt, sizes: Sequence[int], progress: ProgressLine, console: Console, marks: Marks
) -> int:
    config, plan = attempt.config, attempt.plan
    # A signal interrupts this, for it may take long; StopSignals come after it.
    corpus = prepare_corpus(config, attempt.run_dir, console)
    with StopSignals() as signals:
        mark(marks, "prepared")
        with progress:
            progress.waiting(starting_text(config, plan.layout.world_size))
            attempt.launch(_launch, corpus, sizes=sizes)
            while not attempt.poll(_POLL_S):
                signals.renew()
                if signals.received and not attempt.stopping:
                    _stop(attempt, signals, progress)
            result = attempt.result()
        if not result["finished"]:
            attempt.stopped(result, signals.received, signals.received_s)
            _say_stopped(console, signals, result)
            return EXIT_STOPPED
    print_summary(console, attempt.run_dir, attempt.finish(result))
    return EXIT_FINISHED


def _stop(attempt: Attempt, signals: StopSignals, progress: ProgressLine) -> None:
    attempt.stop()
    if attempt.began_step is not None:
        progress.say(
            f"{signals.by}: writing a checkpoint and stopping; "
            f"Ctrl-C{signals.again} leaves at once."
        )


def _say_stopped(console: Console, signals: StopSignals, result: dict[str, Any]) -> None:
    verb = "Stopped" if signals.event == "stopped" else "Preempted"
    reason = signals.by or result["reason"]
    if result["step"] is None:
        console.print(
            f"{verb} before the first step by {reason}; the same command continues from there.",
            highlight=False,
        )
    else:
        console.print(
            f"{verb} at step {result['step']} by {reason}; the same command continues from there.",
            highlight=False,
        )


def prepare_corpus(
    config: RunConfig, run_dir: RunDir, console: Console
) -> tuple[Path | str, list[str]]:
    """The prepared corpus, and the damaged shards to leave out. Raises DataError where
    `data.on_bad_shard` is fail."""
    directory = ensure_corpus(config.data, config.tokenizer, _corpus_reporter(console))
    # A shard left out makes another corpus, so what is damaged inside must be known before the
    # first step.
    corpus = Corpus.open(directory)
    bad = corpus.check("train", full=config.data.on_bad_shard == "skip")
    bad_held_out = corpus.check("val")
    if bad_held_out or (bad and config.data.on_bad_shard == "fail"):
        first, count = (bad_held_out + bad)[0], len(bad_held_out + bad)
        raise DataError(
            f"{count} of {corpus.n_shards} shards of {directory} missing or damaged, first "
            f"{first.name}: {first.reason}",
            f"data={config.data.kind}",
            "Restore them or prepare the corpus again; data.on_bad_shard=skip trains without bad "
            "training shards.",
        )
    for shard in bad:
        run_dir.event("shard_skipped", shard=shard.name, reason=shard.reason)
        text = visible(f"Training without shard {shard.name}: {shard.reason}")
        console.print(text, highlight=False, markup=False)
    skipped = [shard.name for shard in bad]
    check_lengths(config, Corpus.open(directory, skipped))
    check_tokenizer(config, Corpus.open(directory, skipped))
    return directory, skipped


def _corpus_reporter(console: Console) -> Callable[[str, float | None], None]:
    """Print each stage of the corpus's preparation once, however often its share is reported."""
    seen: set[str] = set()

    def report(text: str, share: float | None) -> None:
        if text not in seen:
            seen.add(text)
            console.print(visible(f"Corpus: {text}"), highlight=False, markup=False)

    return report


def _launch(spec: WorkerSpec) -> Launch:
    from scaling.launch.entry import worker_entry

    config, order = spec.config, spec.to_dict()
    if spec.plan.layout.world_size == 1 and config.cluster.kind == "embedded":
        return InProcessLaunch(worker_entry, order)
    from scaling.launch.ray.trainer import RayLaunch

    return RayLaunch(worker_entry, order, config.cluster, spec.sizes, debug=config.scaling.debug)
