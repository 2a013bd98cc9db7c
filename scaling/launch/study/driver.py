"""A study from its declaration to its results: what the process at the user's terminal does with
many runs.

Each trial is an ordinary run in a directory of its own; the workers are kept from one to the next
(`pool.py`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from scaling.channel.base import decode_error
from scaling.checkpoint.branch import reached, take_over
from scaling.config.run_config import RunConfig
from scaling.data.corpus import Corpus
from scaling.data.preflight import check_inputs, check_lengths
from scaling.errors import (
    EXIT_FAILED,
    EXIT_FINISHED,
    EXIT_STOPPED,
    LaunchError,
    PlanError,
    ScalingError,
    SupersededError,
)
from scaling.launch.blame import Troubles
from scaling.launch.console import starting_text
from scaling.launch.entry import worker_entry
from scaling.launch.ray.pool import GroupLaunch, Slot, WorkerPool
from scaling.launch.run import open_run, prepare_corpus
from scaling.launch.signals import StopSignals
from scaling.launch.study.console import StudyConsole, Tally
from scaling.launch.summary import count_ahead, draw_curve, finish, training_s
from scaling.launch.watch import told
from scaling.laws.from_runs import allows_a_law
from scaling.metrics import names
from scaling.metrics.record import read_metrics
from scaling.metrics.sinks import back_fill
from scaling.metrics.wandb_sink import log_results
from scaling.planner.cost.lengths import lengths
from scaling.planner.machines.detect import check_available, n_devices
from scaling.runs.files import disk_error
from scaling.runs.lock import DriverLock
from scaling.screen import output_console
from scaling.studies.results import Row, result_rows, results_table, write_results
from scaling.studies.table import labels, study_table
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
    console.print(text, highlight=False, markup=False, soft_wrap=True)


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


class _Attempt:
    """One trial on its way through the pool. Entered, it holds the run directory's lock."""

    def __init__(
        self,
        trial: Trial,
        corpus: tuple[Path | str, list[str]],
        slots: list[Slot],
        pool: WorkerPool,
        label: str,
    ) -> None:
        assert trial.plan is not None
        self.trial, self.plan, self.progress = trial, trial.plan, dict[str, Any]()
        self.began_step: int | None = None
        self.label = label
        corpus_dir, skipped = corpus
        self._corpus = Corpus.open(corpus_dir, skipped)
        self._fatal: ScalingError | None = None
        self._troubles = Troubles(self.plan.layout.world_size)
        run_dir = trial.run_dir
        self.began_s = now_s = time.time()
        spec = {
            "config": trial.config.model_dump(),
            "plan": self.plan.to_dict(),
            "run_dir": str(run_dir.path),
            "corpus_dir": str(corpus_dir),
            "skipped_shards": skipped,
            "startup": {"command": now_s, "composed": now_s, "prepared": now_s},
        }
        self.launch: GroupLaunch = pool.launch(worker_entry, spec, self.plan.layout, slots)

    def over(self, console: StudyConsole) -> bool:
        """Whether the workers have ended; passes on what they say."""
        over = self.launch.done(0.0)
        for kind, message in self.launch.receive():
            if kind == "progress":
                self.progress = message
            elif kind == "began":
                self.began_step = message["step"]
            elif kind == "fatal":
                self._fatal = self._fatal or decode_error(message)
            elif kind in ("crashed", "hung"):
                self._troubles.add(kind, message)
            else:
                told(kind, message, lambda text: console.say(f"{self.label}: {text}"))
        return over

    def result(self) -> dict[str, Any]:
        """What the first rank returned. Raises the first error in the workers' own words."""
        try:
            return self.launch.result()
        except LaunchError as error:
            trouble = self._troubles.verdict()
            if self._fatal is not None:
                raise self._fatal from error
            if trouble is not None:
                raise LaunchError(trouble.text, None, trouble.fix) from error
            raise

    def complete(self, result: dict[str, Any]) -> None:
        """Write the end of a finished run."""
        finish(self.trial.config, self.plan, self.trial.run_dir, self._corpus, result)

    @property
    def trained_device_s(self) -> float:
        """Seconds that its own steps took, over its devices; those of earlier commands are not
        among them."""
        if self.began_step is None:
            return 0.0
        records = read_metrics(self.trial.run_dir.metrics, only=(names.STEP, names.STEP_TIME_S))
        return training_s(records, first_step=self.began_step) * self.plan.layout.world_size


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
        self._running: dict[str, tuple[_Attempt, ExitStack]] = {}
        self._corpora: dict[str, tuple[Path | str, list[str]]] = {}
        self._long_enough = set[tuple[str, str]]()
        self._stopping = False
        self._stopped_as: Literal["stopped", "preempted"] = "preempted"
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
            signals = cleanup.enter_context(StopSignals())
            slots = base.study.trials_per_device
            self._say(starting_text(base, slots * n_devices(base), study=True))
            pool = cleanup.enter_context(
                WorkerPool(base.cluster, n_devices(base), slots=slots, debug=base.scaling.debug)
            )
            console = cleanup.enter_context(StudyConsole(self._console))
            while self._waiting or self._running:
                signals.renew()
                if signals.received and not self._stopping:
                    self._stop(signals, console)
                pool.poll()
                over = [attempt for attempt, _ in self._running.values() if attempt.over(console)]
                self._start_what_fits(pool)
                for attempt in over:
                    self._settle(attempt, console)
                console.show(
                    {a.label: a.progress for a, _ in self._running.values()}, self._tally()
                )
                time.sleep(_POLL_S)

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
        held = ExitStack()
        try:
            run_dir = trial.run_dir.create()
            held.enter_context(run_dir.lock())
            for text in run_dir.mend():
                self._say(f"{trial.name}: {text}")
            assert trial.plan is not None
            open_run(run_dir, trial.config, trial.plan)
            if (trunk := self._trunk_of(trial)) is not None and trial.branch is not None:
                take_over(trunk.run_dir, run_dir, trial.config, trial.branch.step)
            attempt = _Attempt(
                trial, self._corpora[self._corpus_key(trial)], slots, pool, self._labels[trial.name]
            )
        except ScalingError as error:
            held.close()
            self._standings[trial.identity] = Standing("failed", trouble=str(error))
            self._say(f"{self._labels[trial.name]}: {error}")
            return
        self._running[trial.identity] = attempt, held

    def _settle(self, attempt: _Attempt, console: StudyConsole) -> None:
        """Note how a trial ended; one that failed goes to the end of the queue while it may be
        tried again."""
        trial = attempt.trial
        _, held = self._running.pop(trial.identity)
        with held:
            try:
                trial.run_dir.settle_account()
                result = attempt.result()
                trial.run_dir.settle_account()
                self._training_s += attempt.trained_device_s
                if result["finished"]:
                    attempt.complete(result)
                else:
                    reason, step = "the study was stopped", result["step"]
                    trial.run_dir.event(
                        self._stopped_as, step=step, reason=reason, command_s=attempt.began_s
                    )
                    draw_curve(trial.config, trial.run_dir)
            except ScalingError as error:
                # the run is another driver's, and stands as that says
                with contextlib.suppress(SupersededError):
                    trial.run_dir.failed(error, command_s=attempt.began_s)
            standing = self._standings[trial.identity] = standing_of(trial)
        if standing.state == "finished":
            self._flops_done += self._left_before(attempt)
            loss = (trial.run_dir.read_summary() or {}).get("val_loss")
            console.say(f"{attempt.label}: finished, loss {number_text(loss, '.4f')}")
        elif standing.state in ("failed", "given up"):
            most = trial.config.study.max_attempts
            console.say(
                f"{attempt.label}: failed ({standing.failures} of at most {most}): {standing.trouble}"
            )
            if standing.state == "failed" and not self._stopping:
                self._waiting.append(trial)

    def _left_before(self, attempt: _Attempt) -> float:
        return attempt.trial.flops * (1 - (attempt.began_step or 0) / attempt.plan.n_steps)

    def _stop(self, signals: StopSignals, console: StudyConsole) -> None:
        self._stopping, self._stopped_as = True, signals.event
        self._waiting.clear()
        for attempt, _ in self._running.values():
            attempt.launch.request_stop()
        console.say(
            f"{signals.by}: writing checkpoints and stopping; Ctrl-C{signals.again} leaves at once."
        )

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _tally(self) -> Tally:
        states = [standing.state for standing in self._standings.values()]
        done = self._flops_done
        for attempt, _ in self._running.values():
            if attempt.progress and attempt.began_step is not None:
                done += (
                    attempt.trial.flops
                    * (attempt.progress["step"] - attempt.began_step)
                    / attempt.plan.n_steps
                )
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
            say(f"{self._stopped_as.capitalize()}; the same command goes on from there.")
        elif allows_a_law(self._study.directory):
            say(f"A law through them: python -m scaling.fit study={self._study.directory}")
