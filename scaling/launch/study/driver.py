"""A study from its declaration to its results: what the process at the user's terminal does with
many runs.

Each trial is an ordinary run in a directory of its own; the workers are kept from one to the next
(`pool.py`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from scaling.channel.messages import Began
from scaling.checkpoint.branch import reached
from scaling.config.run_config import RunConfig
from scaling.data.corpus import Corpus
from scaling.data.preflight import check_inputs, check_lengths
from scaling.errors import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_STOPPED,
    PlanError,
    ScalingError,
)
from scaling.launch.attempt import Attempt
from scaling.launch.console import starting_text
from scaling.launch.entry import worker_entry
from scaling.launch.ray.pool import Slot, WorkerPool
from scaling.launch.run import prepare_corpus
from scaling.launch.signals import StopSignals
from scaling.launch.study.console import StudyConsole, Tally
from scaling.launch.summary import count_ahead, training_s
from scaling.laws.from_runs import allows_a_law
from scaling.metrics import names
from scaling.metrics.record import read_metrics
from scaling.metrics.sinks import back_fill
from scaling.metrics.wandb_sink import log_results
from scaling.planner.cost.lengths import lengths
from scaling.planner.machines.detect import check_available, n_devices
from scaling.runs.files import disk_error
from scaling.runs.lock import DriverLock
from scaling.screen import output_console, visible
from scaling.studies.labels import labels
from scaling.studies.remaining import study_table
from scaling.studies.results import Row, result_rows, results_table, write_results
from scaling.studies.trials import Standing, Study, Trial, declare, standing_of
from scaling.units import counted, format_duration, number_text

_POLL_S = 0.1


def drive_study(jobs: Sequence[tuple[RunConfig, tuple[str, ...]]]) -> int:
    """List, and unless `dry_run`, run the trials of these configurations; returns the exit code,
    raises ScalingError.

    0 all are finished; 1 some failed too often, all others are finished; 75 stopped, the same
    command goes on.
    """
    console = output_console()
    if jobs[0][0].study.is_search:
        return _drive_search(jobs, console)
    study = declare(jobs)
    standings = _standings(study)
    console.print(study_table(study, standings))
    _refuse(study)
    _check_inputs(
        trial.config for trial in study.trials if standings[trial.identity].state != "finished"
    )
    if study.base.dry_run:
        return EXIT_FINISHED
    with _holding(study):
        standings |= _mended(study, standings, console)
        _back_fill(study, standings, console)
        return _Runner(study, standings, console).run()


def _drive_search(jobs: Sequence[tuple[RunConfig, tuple[str, ...]]], console: Console) -> int:
    from scaling.launch.search.tune import declare_search, drawn_study, run_search, search_lines

    study = declare_search(jobs)
    for line in search_lines(study):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if study.trials:
        console.print(study_table(study, _standings(study)))
    _check_inputs([study.base])
    if study.base.dry_run:
        return EXIT_FINISHED
    with _holding(study):
        _back_fill(study, _standings(study), console)
        code = run_search(study, console)
        study = drawn_study(study)
        _report(study, _standings(study), console)
    return code


def _check_inputs(configs: Iterable[RunConfig]) -> None:
    """Whether the data of all trials are there, each once. Raises ConfigError, DataError."""
    for config in {
        repr((c.data, c.tokenizer, c.train.seq_len, c.objective)): c for c in configs
    }.values():
        check_inputs(config)


def _standings(study: Study) -> dict[str, Standing]:
    return {trial.identity: standing_of(trial) for trial in study.trials}


def _mended(study: Study, standings: dict[str, Standing], console: Console) -> dict[str, Standing]:
    """How trials stand whose records were damaged, now that these are set aside."""
    found = {}
    for trial in study.trials:
        if standings[trial.identity].state == "damaged":
            try:
                with trial.run_dir.lock():
                    told = trial.run_dir.mend()
            except ScalingError as error:
                told = [str(error)]
            for text in told:
                console.print(f"{trial.name}: {text}", highlight=False, markup=False)
            found[trial.identity] = standing_of(trial)
    return found


@contextlib.contextmanager
def _holding(study: Study) -> Iterator[None]:
    """The study's directory, with its lock. Raises RunDirError, or ConfigError where the cluster is
    not here."""
    check_available(study.base)
    try:
        study.directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error("create", study.directory, error) from error
    with DriverLock(study.directory / "driver.lock").hold():
        yield


def _back_fill(study: Study, standings: dict[str, Standing], console: Console) -> None:
    """Give the logger what it lacks of the trials that earlier commands have finished."""
    if study.base.logger.kind == "none":
        return
    called = labels(study.trials)
    for trial in study.trials:
        if standings[trial.identity].state == "finished":
            with trial.run_dir.lock():
                back_fill(
                    trial.config,
                    trial.run_dir.path,
                    partial(_print_labelled, console, called[trial.name]),
                )


def _print_labelled(console: Console, label: str, text: str) -> None:
    _print(console, f"{label}: {text}")


def _print(console: Console, text: str) -> None:
    console.print(visible(text), highlight=False, markup=False, soft_wrap=True)


def _report(study: Study, standings: dict[str, Standing], console: Console) -> list[Row]:
    """Write, print and send the results."""
    rows = result_rows(study, standings)
    path = write_results(rows, study.directory)
    if rows:
        console.print(results_table(study, rows))
    say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    if study.base.logger.kind == "wandb":
        logger = study.base.logger
        grouped = logger.model_copy(update={"group": logger.group or study.name})
        log_results(study.base.model_copy(update={"logger": grouped}), study.directory, rows, say)
    say(f"Results: {path}")
    return rows


def _refuse(study: Study) -> None:
    """Raise PlanError where a trial cannot be planned: the whole study is refused before anything
    of it is started."""
    refused = study.refused
    if refused:
        first = refused[0].refused
        assert first is not None
        more = (
            f" ({len(refused)} of {len(study.trials)} trials are refused)"
            if len(refused) > 1
            else ""
        )
        raise PlanError(f"{refused[0].name}: {first.what}{more}", first.where, first.fix)


class _Shown:
    """Shows one trial's messages among those of the others; its progress is in the table."""

    def __init__(self, say: Callable[[str], None], label: str) -> None:
        self._say, self._label = say, label

    def show(self, progress: dict[str, Any]) -> None: ...

    def say(self, text: str) -> None:
        self._say(f"{self._label}: {text}")

    def began(self, message: Began) -> None: ...


@dataclass(frozen=True)
class _Running:
    """A trial at work. held: leaving it ends the attempt."""

    trial: Trial
    label: str
    attempt: Attempt
    held: ExitStack

    @property
    def trained_device_s(self) -> float:
        """Device seconds of the steps of this attempt."""
        metrics = self.trial.run_dir.metrics
        if self.attempt.began_step is None or not metrics.exists():
            return 0.0
        records = read_metrics(metrics, only=(names.STEP, names.STEP_TIME_S))
        spent_s = training_s(records, first_step=self.attempt.began_step)
        return spent_s * self.attempt.plan.layout.world_size


class _Runner:
    """Starts what fits, watches what runs, and writes down what came of it, until nothing is left
    or a signal comes."""

    def __init__(self, study: Study, standings: dict[str, Standing], console: Console) -> None:
        self._study, self._standings, self._console = study, standings, console
        self._waiting = sorted(
            (trial for trial in study.trials if self._is_open(trial)),
            key=lambda trial: -trial.flops,
        )
        self._labels = labels(study.trials)
        self._running: dict[str, _Running] = {}
        self._corpora: dict[str, tuple[Path | str, list[str]]] = {}
        self._long_enough = set[tuple[str, str]]()
        self._stopping = False
        self._signals: StopSignals
        self._flops = float(sum(self._left(trial) for trial in self._waiting))
        self._flops_done = self._training_s = 0.0

    def _is_open(self, trial: Trial) -> bool:
        return self._standings[trial.identity].state not in ("finished", "given up", "damaged")

    def _left(self, trial: Trial) -> float:
        """FLOPs still to be done of a trial."""
        assert trial.plan is not None
        step = max(
            self._standings[trial.identity].step,
            trial.branch.step if trial.branch is not None else 0,
        )
        return trial.flops * max(0.0, 1 - step / trial.plan.n_steps)

    def run(self) -> int:
        began_s = time.monotonic()
        if self._waiting:
            write_results(result_rows(self._study, self._standings), self._study.directory)
            self._work()
        rows = _report(self._study, self._standings, self._console)
        self._tell(time.monotonic() - began_s)
        if self._stopping:
            return EXIT_STOPPED
        return EXIT_FINISHED if all(row["state"] == "finished" for row in rows) else EXIT_FAILED

    def _work(self) -> None:
        base = self._study.base
        with ExitStack() as cleanup:
            for trial in self._waiting:
                self._prepare(trial)  # which a signal interrupts: it may take long
            signals = self._signals = cleanup.enter_context(StopSignals())
            slots = base.study.trials_per_device
            self._say(starting_text(base, slots * n_devices(base), study=True))
            pool = cleanup.enter_context(
                WorkerPool(base.cluster, n_devices(base), slots=slots, debug=base.scaling.debug)
            )
            console = cleanup.enter_context(StudyConsole(self._console))
            cleanup.push(self._leave)
            while self._waiting or self._running:
                signals.renew()
                if signals.received and not self._stopping:
                    self._stop(signals, console)
                pool.poll()
                over = [running for running in self._running.values() if running.attempt.poll()]
                self._start_what_fits(pool)
                for running in over:
                    self._settle(running, console)
                console.show(
                    {r.label: r.attempt.progress for r in self._running.values()}, self._tally()
                )
                time.sleep(_POLL_S)

    def _leave(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """End what still runs where an error ends the study."""
        while self._running:
            _, running = self._running.popitem()
            # what a dying cluster raises here must not hide the error that ends the study
            with contextlib.suppress(Exception):
                running.held.__exit__(kind, error, trace)

    def _prepare(self, trial: Trial) -> None:
        """The corpus that a trial reads, which most share."""
        key = self._corpus_key(trial)
        if key not in self._corpora:
            trial.run_dir.create()
            found = self._corpora[key] = prepare_corpus(trial.config, trial.run_dir, self._console)
            if trial.config.objective.kind == "causal_lm":  # of others each run has its own
                count_ahead(trial.config, Corpus.open(*found))
        elif (shape := (key, repr(lengths(trial.config)))) not in self._long_enough:
            check_lengths(trial.config, Corpus.open(*self._corpora[key]))
            self._long_enough.add(shape)

    def _corpus_key(self, trial: Trial) -> str:
        return repr((trial.config.data, trial.config.tokenizer))

    def _start_what_fits(self, pool: WorkerPool) -> None:
        for trial in list(self._waiting):
            assert trial.plan is not None
            if self._trunk_failed(trial):
                self._waiting.remove(trial)
                trunk = self._trunk_of(trial)
                assert trunk is not None
                self._standings[trial.identity] = Standing(
                    "failed", trouble=f"its trunk {trunk.name} failed"
                )
            elif self._may_start(trial):
                slots = pool.room(
                    trial.plan.layout.world_size, whole=not self._shares_device(trial)
                )
                if slots is not None:
                    self._waiting.remove(trial)
                    self._start(trial, slots, pool)

    def _shares_device(self, trial: Trial) -> bool:
        """Whether its memory leaves room for the other trials of a device."""
        assert trial.plan is not None
        return trial.plan.device_holds(self._study.config.trials_per_device)

    def _trunk_of(self, trial: Trial) -> Trial | None:
        if trial.branch is None:
            return None
        return next(
            (other for other in self._study.trials if other.identity == trial.branch.trunk), None
        )

    def _may_start(self, trial: Trial) -> bool:
        """A branch waits for its trunk's checkpoint, and no longer than the trunk may still write
        it."""
        trunk = self._trunk_of(trial)
        if trunk is None or trial.branch is None or self._standings[trial.identity].step:
            return True
        return (
            reached(trunk.run_dir, trial.branch.step)
            or self._standings[trunk.identity].state == "finished"
        )

    def _trunk_failed(self, trial: Trial) -> bool:
        trunk = self._trunk_of(trial)
        return (
            trunk is not None
            and self._standings[trunk.identity].state in ("given up", "damaged")
            and not self._may_start(trial)
        )

    def _start(self, trial: Trial, slots: list[Slot], pool: WorkerPool) -> None:
        assert trial.plan is not None
        plan, label, now_s = trial.plan, self._labels[trial.name], time.time()
        # The workers are warm: the way to the first step begins here, not with the command.
        marks = {"command": now_s, "composed": now_s, "prepared": now_s}
        attempt = Attempt(trial.config, plan, _Shown(self._say, label), marks)
        try:
            with ExitStack() as held:
                held.enter_context(attempt)
                trunk = self._trunk_of(trial)
                if trunk is not None and trial.branch is not None:
                    attempt.open(trunk=trunk.run_dir, at_step=trial.branch.step)
                else:
                    attempt.open()
                attempt.launch(
                    lambda spec: pool.launch(worker_entry, spec.to_dict(), plan.layout, slots),
                    self._corpora[self._corpus_key(trial)],
                )
                self._running[trial.identity] = _Running(trial, label, attempt, held.pop_all())
        except ScalingError as error:
            self._standings[trial.identity] = Standing("failed", trouble=str(error))
            self._say(f"{label}: {error}")

    def _settle(self, running: _Running, console: StudyConsole) -> None:
        """Note how a trial ended; one that failed goes to the end of the queue while it may be
        tried again."""
        trial, attempt, label = running.trial, running.attempt, running.label
        del self._running[trial.identity]
        # the error is an event of the run by then, and told below
        with contextlib.suppress(ScalingError), running.held:
            result = attempt.result()
            self._training_s += running.trained_device_s
            if result["finished"]:
                attempt.finish(result)
            else:
                attempt.stopped(result, self._signals.received, self._signals.received_s)
        standing = self._standings[trial.identity] = standing_of(trial)
        if standing.state == "finished":
            self._flops_done += self._left_before(running)
            loss = (trial.run_dir.read_summary() or {}).get("val_loss")
            console.say(f"{label}: finished, loss {number_text(loss, '.4f')}")
        elif standing.state in ("failed", "given up"):
            most = trial.config.study.max_attempts
            console.say(
                f"{label}: failed ({standing.failures} of at most {most}): {standing.trouble}"
            )
            if standing.state == "failed" and not self._stopping:
                self._waiting.append(trial)

    def _left_before(self, running: _Running) -> float:
        step = running.attempt.began_step or 0
        return running.trial.flops * (1 - step / running.attempt.plan.n_steps)

    def _stop(self, signals: StopSignals, console: StudyConsole) -> None:
        self._stopping = True
        self._waiting.clear()
        for running in self._running.values():
            running.attempt.stop()
        console.say(
            f"{signals.by}: writing checkpoints and stopping; Ctrl-C{signals.again} leaves at once."
        )

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _tally(self) -> Tally:
        states = [standing.state for standing in self._standings.values()]
        done = self._flops_done
        for running in self._running.values():
            attempt = running.attempt
            if attempt.progress and attempt.began_step is not None:
                steps = attempt.progress["step"] - attempt.began_step
                done += running.trial.flops * steps / attempt.plan.n_steps
        return Tally(
            len(states),
            states.count("finished"),
            sum(state in ("given up", "damaged") for state in states),
            len(self._waiting),
            self._flops,
            done,
        )

    def _tell(self, wall_s: float) -> None:
        say = self._say
        for trial in self._study.trials:
            standing = self._standings[trial.identity]
            if standing.state in ("failed", "given up", "damaged"):
                failures = counted(standing.failures, "failure")
                say(
                    f"{self._labels[trial.name]}: {standing.state} after {failures}: {standing.trouble}"
                )
        if self._training_s:
            share = self._training_s / wall_s / n_devices(self._study.base)
            say(
                f"{format_duration(wall_s)}, of whose device time {100 * share:.1f} % went into training steps."
            )
        if any(standing.state == "given up" for standing in self._standings.values()):
            most = self._study.config.max_attempts
            say(f"Trials given up are tried again with study.max_attempts above {most}.")
        if self._stopping:
            say(f"{self._signals.event.capitalize()}; the same command goes on from there.")
        elif allows_a_law(self._study.directory):
            say(f"A law through them: python -m scaling.fit study={self._study.directory}")
