"""What the driver of a search does between two decisions of Ray Tune: note what was drawn, show
what runs, pass on a stop."""

from __future__ import annotations

import json
from typing import Any

from ray import tune

from scaling.channel.messages import Message, Progress, Remark
from scaling.launch.ray.channel import KvInbox
from scaling.launch.signals import StopSignals
from scaling.launch.study.console import StudyConsole, Tally
from scaling.metrics import names
from scaling.runs.directory import RunDir
from scaling.studies.labels import label
from scaling.studies.search_space import PARENT, read_drawn, write_drawn
from scaling.studies.trials import Study
from scaling.units import format_count


class _Here:
    """Tune pickles what it is given, for a restoration that we do not use: nothing of ours goes
    along."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Stopper(_Here, tune.Stopper):
    """Ends the search when a signal has come."""

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._signals.received is not None


class Watcher(_Here, tune.Callback):
    """prefix: of the keys by which trials and driver talk (`trainable.SearchSpec`)."""

    def __init__(
        self, study: Study, prefix: str, signals: StopSignals, shown: StudyConsole
    ) -> None:
        self._study, self._prefix, self._signals, self._shown = study, prefix, signals, shown
        self._drawn = read_drawn(study.directory)
        self._labels = {
            entry["run"]: _called(entry["run"], entry["values"]) for entry in self._drawn
        }
        self._progress: dict[str, dict[str, Any]] = {}
        self._names: dict[str, str] = {}
        self._runs: dict[str, str] = {}
        self._told = False

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        before, self._runs[trial.trial_id] = self._runs.get(trial.trial_id), result["run"]
        self._names[trial.trial_id] = self._labels[result["run"]] = _called(
            result["run"], json.loads(result["values"])
        )
        if before is not None and before != result["run"]:
            self._stop(before, f"{result['run']} continues from a better one in its place")
        entry = {
            "values": json.loads(result["values"]),
            "parent": result["parent"],
            "run": result["run"],
        }
        entry["member"] = trials.index(trial)
        if entry["run"] not in {known["run"] for known in self._drawn}:
            self._drawn.append(entry)
            write_drawn(self._study.directory, self._drawn)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        if not result or self._signals.received:
            return
        run_dir = RunDir(self._study.directory / result["run"])
        n_tokens = format_count(result["n_tokens"])
        judged = (
            f"{self._names[trial.trial_id]}: loss {result[names.VAL_LOSS]:.4f} after "
            f"{n_tokens} tokens"
        )
        if run_dir.state() == "finished":
            self._shown.say(f"{judged}, finished")
            return
        self._stop(result["run"], f"study={self._study.config.kind} lets it go no further")
        self._shown.say(f"{judged}, goes no further")

    def _stop(self, run: str, reason: str) -> None:
        run_dir = RunDir(self._study.directory / run)
        if run_dir.state() not in ("pruned", "finished"):
            run_dir.event("pruned", reason=reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lines = str(trial.get_error() or "").strip().splitlines()
        self._shown.say(
            f"{self._names.get(trial.trial_id, trial.trial_id)}: failed: "
            f"{lines[-1] if lines else 'no reason given'}"
        )

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._signals.received and not self._told:
            self._told = True
            KvInbox(self._prefix).request_stop(self._signals.received)
            self._shown.say(
                f"{self._signals.by}: writing checkpoints and stopping; "
                f"Ctrl-C{self._signals.again} leaves at once."
            )
        running = [trial.trial_id for trial in trials if trial.status == "RUNNING"]
        for trial_id in running:
            for message in KvInbox(f"{self._prefix}/{trial_id}").receive():
                self._take(trial_id, message)
        self._show(trials, running)

    def _take(self, trial_id: str, message: Message) -> None:
        if isinstance(message, Progress):
            run = message.fields["run"]
            self._progress[trial_id] = message.fields
            self._names[trial_id] = self._labels.get(run, run)
        elif isinstance(message, Remark) and message.run is not None:
            self._shown.say(f"{self._labels.get(message.run, message.run)}: {message.line}")

    def _show(self, trials: list[Any], running: list[str]) -> None:
        done = sum(trial.status == "TERMINATED" for trial in trials)
        failed = sum(trial.status == "ERROR" for trial in trials)
        waiting = max(0, self._study.config.n_trials - done - failed - len(running))
        rows = {
            self._names.get(trial_id, trial_id): self._progress.get(trial_id, {})
            for trial_id in running
        }
        self._shown.show(rows, Tally(self._study.config.n_trials, done, failed, waiting))


def _called(run: str, values: dict[str, Any]) -> str:
    """What a person calls a trial: the values that were drawn for it, and the hash of its
    configuration."""
    return label(
        {key: value for key, value in values.items() if key != PARENT}, run.rpartition("-")[2]
    )
