"""Many trials on workers that are kept from one to the next (`ray/pool.py`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from scaling.channel.messages import Began
from scaling.data.corpus import Corpus
from scaling.data.preflight import check_lengths, check_tokenizer
from scaling.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_STOPPED, ScalingError
from scaling.launch.attempt import Attempt
from scaling.launch.console import starting_text
from scaling.launch.entry import worker_entry
from scaling.launch.ray.pool import Slot, WorkerPool
from scaling.launch.run import prepare_corpus
from scaling.launch.signals import StopSignals
from scaling.launch.study.console import StudyConsole, Tally
from scaling.launch.study.report import report
from scaling.launch.study.trunks import Trunks
from scaling.launch.summary import count_ahead, training_s
from scaling.laws.from_runs import allows_a_law
from scaling.metrics import names
from scaling.metrics.record import read_metrics
from scaling.planner.cost.lengths import lengths
from scaling.planner.machines.detect import n_devices
from scaling.studies.labels import labels
from scaling.studies.results import result_rows, write_results
from scaling.studies.trials import Standing, Study, Trial, standing_of
from scaling.terminal import print_line
from scaling.units import counted, format_duration, number_text

_POLL_S = 0.1


class _Shown:
    """Shows one trial's messages among those of the others; its progress is in the table."""

    def __init__(self, say: Callable[[str], None], label: str) -> None:
        self._say, self._label = say, label

    def show(self, progress: dict[str, Any]) -> None: ...

    def say(self, text: str) -> None:
        self._say(f"{self._label}: {text}")

    def began(self, message: Began) -> None: ...


@dataclass(frozen=True)
class Running:
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


class Runner:
    """Starts what fits, watches what runs, and writes down what came of it, until nothing is left
    or a signal comes."""

    def __init__(self, study: Study, standings: dict[str, Standing], console: Console) -> None:
        self._study, self._standings, self._console = study, standings, console
        self._trunks = Trunks(study, standings)
        self._waiting = sorted(
            (trial for trial in study.trials if self._is_open(trial)),
            key=lambda trial: -trial.flops,
        )
        self._labels = labels(study.trials)
        self._running: dict[str, Running] = {}
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
        rows = report(self._study, self._standings, self._console)
        self._print_end(time.monotonic() - began_s)
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
                pool.poll()  # first: where Ray has lost a process, nothing else may be asked of it
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
            check_tokenizer(trial.config, Corpus.open(*self._corpora[key]))
            self._long_enough.add(shape)

    def _corpus_key(self, trial: Trial) -> str:
        return repr((trial.config.data, trial.config.tokenizer))

    def _start_what_fits(self, pool: WorkerPool) -> None:
        for trial in list(self._waiting):
            assert trial.plan is not None
            if (trunk := self._trunks.failed_under(trial)) is not None:
                self._waiting.remove(trial)
                self._standings[trial.identity] = Standing(
                    "failed", trouble=f"its trunk {trunk.name} failed"
                )
            elif self._trunks.may_start(trial):
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

    def _start(self, trial: Trial, slots: list[Slot], pool: WorkerPool) -> None:
        assert trial.plan is not None
        plan, label, now_s = trial.plan, self._labels[trial.name], time.time()
        # The workers are warm: the way to the first step begins here, not with the command.
        marks = {"command": now_s, "composed": now_s, "prepared": now_s}
        attempt = Attempt(trial.config, plan, _Shown(self._say, label), marks)
        try:
            with ExitStack() as held:
                held.enter_context(attempt)
                trunk = self._trunks.trunk_of(trial)
                if trunk is not None and trial.branch is not None:
                    attempt.open(trunk=trunk.run_dir, at_step=trial.branch.step)
                else:
                    attempt.open()
                attempt.launch(
                    lambda spec: pool.launch(worker_entry, spec.to_dict(), plan.layout, slots),
                    self._corpora[self._corpus_key(trial)],
                )
                self._running[trial.identity] = Running(trial, label, attempt, held.pop_all())
        except ScalingError as error:
            self._standings[trial.identity] = Standing("failed", trouble=str(error))
            self._say(f"{label}: {error}")

    def _settle(self, running: Running, console: StudyConsole) -> None:
        """Note how a trial ended; one that failed goes to the end of the queue while it may be
        tried again."""
        trial, attempt, label = running.trial, running.attempt, running.label
        del self._running[trial.identity]
        # the error is an event of the run by then, and reported below
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

    def _left_before(self, running: Running) -> float:
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
        print_line(self._console, text)

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

    def _print_end(self, wall_s: float) -> None:
        say = self._say
        for trial in self._study.trials:
            standing = self._standings[trial.identity]
            if standing.state in ("failed", "given up", "damaged"):
                failures = counted(standing.failures, "failure")
                say(
                    f"{self._labels[trial.name]}: {standing.state} after {failures}: "
                    f"{standing.trouble}"
                )
        if self._training_s:
            share = self._training_s / wall_s / n_devices(self._study.base)
            say(
                f"{format_duration(wall_s)}, of whose device time {100 * share:.1f} % went into "
                "training steps."
            )
        if any(standing.state == "given up" for standing in self._standings.values()):
            most = self._study.config.max_attempts
            say(f"Trials given up are tried again with study.max_attempts above {most}.")
        if self._stopping:
            say(f"{self._signals.event.capitalize()}; the same command continues from there.")
        elif allows_a_law(self._study.directory):
            say(f"A law through them: python -m scaling.fit study={self._study.directory}")
