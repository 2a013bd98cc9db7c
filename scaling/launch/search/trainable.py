"""A trial of a search as Ray Tune sees it: it trains an ordinary run from one stop to the next, on
warm workers of its own."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from scaling.channel.base import Channel
from scaling.channel.messages import Began, Progress, Remark
from scaling.checkpoint.store import newest_step
from scaling.config.run_config import RunConfig
from scaling.errors import DivergedError
from scaling.launch.attempt import Attempt
from scaling.launch.entry import worker_entry
from scaling.launch.ray.channel import KvChannel
from scaling.launch.ray.group import GroupLaunch
from scaling.launch.ray.warm_worker import leaves_nothing, meeting_address, start_worker
from scaling.metrics import names
from scaling.metrics.record import read_metrics
from scaling.planner.budget import tokens_per_step
from scaling.planner.layout import Layout
from scaling.planner.run_plan import make_plan
from scaling.runs.directory import RunDir
from scaling.studies.generators import changed
from scaling.studies.search_space import PARENT
from scaling.studies.trials import in_directory
from scaling.worker.spec import WorkerSpec

WORST = 1e6
"""Loss of a run that has none to show: schedulers order numbers, and would not know what to make of
a NaN."""
_POLL_S = 0.2
_POINTER = "run.json"


@dataclass(frozen=True)
class SearchSpec:
    """What all trials of a search share. base is narrowed to a trial's devices; `prefix` is where
    trials and driver meet.

    stops: steps at which a trial pauses to be judged. jumps: whether one that is begun again is
    judged where it stands only. session: directory on a single machine where ranks meet, else None.
    """

    base: dict[str, Any]
    directory: str
    corpus_dir: str
    skipped: list[str]
    stops: list[int]
    jumps: bool
    n_ranks: int
    prefix: str
    session: str | None


class _ToDriver:
    """Shows an attempt's messages at the search's driver, under the name of its run."""

    def __init__(self, driver: Channel, config: RunConfig) -> None:
        self._driver, self._run = driver, RunDir.for_config(config).path.name

    def show(self, progress: dict[str, Any]) -> None:
        self._driver.send(Progress(progress | {"run": self._run}))

    def say(self, text: str) -> None:
        self._driver.send(Remark(text, self._run))

    def began(self, message: Began) -> None: ...


class RunTrainable(tune.Trainable):
    """`config` is what was drawn. A checkpoint of Tune's is a pointer to one of the run's own."""

    # spec comes by tune.with_parameters
    def setup(self, config: dict[str, Any], spec: SearchSpec) -> None:  # type: ignore[override]
        self._spec, self._base = spec, RunConfig.model_validate(spec.base)
        self._start_workers()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial, or this one with other values, on the workers that are warm already."""
        self._begin(new_config)
        return True

    def _start_workers(self) -> None:
        self._workers = [start_worker(self._base.cluster) for _ in range(self._spec.n_ranks)]
        self._locations = ray.get([worker.warm.remote() for worker in self._workers])

    def _begin(self, values: dict[str, Any]) -> None:
        self._values = {key: value for key, value in values.items() if key != PARENT}
        self._parent, self._step, self._first = values.get(PARENT), 0, True

    def _config(self) -> RunConfig:
        config = changed(self._base, self._values | {PARENT: self._parent})
        return in_directory(config, Path(self._spec.directory))

    def _target(self, run_dir: RunDir) -> int:
        """The next stop; of a population that is begun again the last one that the member has
        passed, where it stands now."""
        ahead = [step for step in self._spec.stops if step > self._step]
        if self._spec.jumps and self._first:
            passed = [step for step in ahead if _known_loss(run_dir, step) is not None]
            return passed[-1] if passed else ahead[0]
        return ahead[0]

    def step(self) -> dict[str, Any]:
        config = self._config()
        plan = make_plan(config)
        now_s = time.time()
        # The workers are warm: the way to the first step begins here.
        marks = {"command": now_s, "composed": now_s, "prepared": now_s}
        display = _ToDriver(KvChannel(f"{self._spec.prefix}/{self.trial_id}", 0), config)
        attempt, diverged = Attempt(config, plan, display, marks), False
        try:
            with attempt:
                target, self._first = self._target(attempt.run_dir), False
                loss = _known_loss(attempt.run_dir, target)
                unfinished = attempt.run_dir.read_summary() is None
                if loss is None or (target >= plan.n_steps and unfinished):
                    loss = self._train(attempt, target)
        except DivergedError:  # which is an answer: these values are as bad as can be
            loss, diverged = None, True
        if loss is not None:
            self._step = target
        judged = WORST if loss is None or not math.isfinite(loss) else min(loss, WORST)
        where = {
            "run": attempt.run_dir.path.name,
            "parent": self._parent,
            "n_tokens": self._step * tokens_per_step(config),
        }
        return {
            names.VAL_LOSS: judged,
            "done": diverged or self._step >= plan.n_steps,
            "values": json.dumps(self._values),
            **where,
        }

    def _train(self, attempt: Attempt, target: int) -> float | None:
        """The held-out loss at `target`; None where the search was stopped before. Raises
        ScalingError."""
        if self._parent is not None:
            trunk, step = self._parent.split("@")
            (parent,) = Path(self._spec.directory).glob(f"*-{trunk[:8]}")
            attempt.open(trunk=RunDir(parent), at_step=int(step))
        else:
            attempt.open()
        attempt.launch(
            self._launch,
            (self._spec.corpus_dir, self._spec.skipped),
            until_step=target,
        )
        search = KvChannel(self._spec.prefix, 0)
        while not attempt.poll(_POLL_S):
            if not attempt.stopping and search.stop_requested():
                attempt.stop()
        result = attempt.result()
        if result["step"] < target:
            attempt.stopped(result, search.stop_signal())
            return None
        if result["finished"]:
            attempt.finish(result)
        else:
            attempt.run_dir.settle_account()  # the run pauses at a stop of the search
        return _known_loss(attempt.run_dir, target)

    def _launch(self, spec: WorkerSpec) -> GroupLaunch:
        session = Path(self._spec.session) if self._spec.session else None
        alone = self._spec.n_ranks == 1
        meeting = "" if alone else meeting_address(self._workers[0], self._locations[0], session)
        over = self._over_after(spec.plan.layout)
        order = spec.to_dict()
        return GroupLaunch(worker_entry, order, self._workers, self._locations, meeting, over)

    def _over_after(self, layout: Layout) -> Callable[[bool], None]:
        """What a run of this layout leaves to do: new workers in place of those that are not as
        new."""

        def over(sound: bool) -> None:
            if not (sound and leaves_nothing(layout)):
                self.cleanup()
                self._start_workers()

        return over

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        config = self._config()
        pointer = {
            "run": f"{config.semantic_hash}@{self._step}",
            "values": self._values,
            "parent": self._parent,
        }
        (Path(checkpoint_dir) / _POINTER).write_text(json.dumps(pointer))

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        """Go on where the checkpoint's run stands: with its own values as that run, with others as
        one that branches from it."""
        pointer = json.loads((Path(checkpoint_dir) / _POINTER).read_text())
        self._parent = pointer["parent"] if pointer["values"] == self._values else pointer["run"]
        self._step, self._first = int(pointer["run"].split("@")[1]), False

    def cleanup(self) -> None:
        with ExitStack() as ended:
            for worker in self._workers:
                ended.callback(ray.kill, worker, no_restart=True)


def _known_loss(run_dir: RunDir, step: int) -> float | None:
    """The held-out loss at `step`, where the run has passed it and could continue from there."""
    if not run_dir.metrics.exists() or (newest_step(run_dir.checkpoints) or 0) < step:
        return None
    records = read_metrics(run_dir.metrics, only=(names.STEP, names.VAL_LOSS))
    losses = [r[names.VAL_LOSS] for r in records if r[names.STEP] == step and names.VAL_LOSS in r]
    return losses[-1] if losses else None
