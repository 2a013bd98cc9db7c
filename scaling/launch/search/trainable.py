"""A trial of a search as Ray Tune sees it: it trains an ordinary run from one stop to the next, on
warm workers of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from scaling.channel.base import decode_error
from scaling.checkpoint.branch import take_over
from scaling.checkpoint.store import newest_step
from scaling.config.run_config import RunConfig
from scaling.data.corpus import Corpus
from scaling.errors import DivergedError, LaunchError, ScalingError
from scaling.launch.blame import Troubles
from scaling.launch.entry import worker_entry
from scaling.launch.ray.channel import KvChannel
from scaling.launch.ray.pool import GroupLaunch, leaves_nothing, meeting_place, start_worker
from scaling.launch.run import open_run
from scaling.launch.summary import finish
from scaling.metrics import names
from scaling.metrics.record import read_metrics
from scaling.planner.budget import tokens_per_step
from scaling.planner.layout import Layout
from scaling.planner.run_plan import RunPlan, make_plan
from scaling.runs.directory import RunDir
from scaling.runs.startup import begin, mark
from scaling.studies.generators import changed
from scaling.studies.search_space import PARENT
from scaling.studies.trials import place

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


class RunTrainable(tune.Trainable):
    """`config` is what was drawn. A checkpoint of Tune's is a pointer to one of the run's own."""

    def setup(self, config: dict[str, Any], spec: SearchSpec) -> None:  # type: ignore[override]  # by tune.with_parameters
        self._spec, self._base = spec, RunConfig.model_validate(spec.base)
        self._start_workers()
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next trial, or this one with other values, on the workers that are warm already."""
        self._begin(new_config)
        return True

    def _start_workers(self) -> None:
        self._workers = [start_worker(self._base.cluster) for _ in range(self._spec.n_ranks)]
        self._places = ray.get([worker.warm.remote() for worker in self._workers])

    def _begin(self, values: dict[str, Any]) -> None:
        self._values = {key: value for key, value in values.items() if key != PARENT}
        self._parent, self._step, self._first = values.get(PARENT), 0, True

    def _config(self) -> RunConfig:
        config = changed(self._base, self._values | {PARENT: self._parent})
        return place(config, Path(self._spec.directory))

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
        run_dir, plan = RunDir.for_config(config), make_plan(config)
        run_dir.create()
        target, self._first, diverged = self._target(run_dir), False, False
        with run_dir.lock():
            run_dir.mend()
            loss = _known_loss(run_dir, target)
            if loss is None or (target >= plan.n_steps and run_dir.read_summary() is None):
                try:
                    loss = self._train(config, plan, run_dir, target)
                except ScalingError as error:
                    run_dir.failed(error)
                    if not isinstance(error, DivergedError):
                        raise
                    diverged = True  # which is an answer: these values are as bad as can be
        if loss is not None:
            self._step = target
        judged = WORST if loss is None or not math.isfinite(loss) else min(loss, WORST)
        where = {
            "run": run_dir.path.name,
            "parent": self._parent,
            "n_tokens": self._step * tokens_per_step(config),
        }
        return {
            names.VAL_LOSS: judged,
            "done": diverged or self._step >= plan.n_steps,
            "values": json.dumps(self._values),
            **where,
        }

    def _train(
        self, config: RunConfig, plan: RunPlan, run_dir: RunDir, target: int
    ) -> float | None:
        """The held-out loss at `target`; None where the search was stopped before. Raises
        ScalingError."""
        open_run(run_dir, config, plan)
        if self._parent is not None:
            trunk, step = self._parent.split("@")
            (parent,) = Path(self._spec.directory).glob(f"*-{trunk[:8]}")
            take_over(RunDir(parent), run_dir, config, int(step))
        marks = begin()
        for stage in ("composed", "prepared"):
            mark(marks, stage)
        spec = {
            "config": config.model_dump(),
            "plan": plan.to_dict(),
            "run_dir": str(run_dir.path),
            "corpus_dir": self._spec.corpus_dir,
            "skipped_shards": self._spec.skipped,
            "until_step": target,
            "startup": marks,
        }
        session = Path(self._spec.session) if self._spec.session else None
        meeting = (
            meeting_place(self._workers[0], self._places[0], session)
            if self._spec.n_ranks > 1
            else ""
        )
        launch = GroupLaunch(
            worker_entry, spec, self._workers, self._places, meeting, self._over_after(plan.layout)
        )
        result = self._watch(launch, run_dir.path.name)
        run_dir.settle_account()
        if result["step"] < target:
            run_dir.event("stopped", step=result["step"], reason="the search was stopped")
            return None
        if result["finished"]:
            finish(
                config,
                plan,
                run_dir,
                Corpus.open(self._spec.corpus_dir, self._spec.skipped),
                result,
            )
        return _known_loss(run_dir, target)

    def _over_after(self, layout: Layout) -> Callable[[bool], None]:
        """What a run of this layout leaves to do: new workers in place of those that are not as
        new."""

        def over(sound: bool) -> None:
            if not (sound and leaves_nothing(layout)):
                self.cleanup()
                self._start_workers()

        return over

    def _watch(self, launch: GroupLaunch, run: str) -> dict[str, Any]:
        """Pass progress on to the driver, and its wish to stop to the workers."""
        driver = KvChannel(f"{self._spec.prefix}/{self.trial_id}", 0)
        everyone = KvChannel(self._spec.prefix, 0)
        troubles, fatal = Troubles(self._spec.n_ranks), list[ScalingError]()
        while True:
            over = launch.done(_POLL_S)
            for kind, message in launch.receive():
                if kind == "progress":
                    driver.send(kind, message | {"run": run})
                elif kind == "fatal":
                    fatal.append(decode_error(message))
                elif kind in ("crashed", "hung"):
                    troubles.add(kind, message)
            if everyone.stop_requested():
                launch.request_stop()
            if over:
                break
        try:
            return launch.result()
        except LaunchError as error:
            trouble = troubles.verdict()
            if fatal:
                raise fatal[0] from error
            if trouble is not None:
                raise LaunchError(trouble.text, None, trouble.fix) from error
            raise

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
    """The held-out loss at `step`, where the run has passed it and could go on from there."""
    if not run_dir.metrics.exists() or (newest_step(run_dir.checkpoints) or 0) < step:
        return None
    records = read_metrics(run_dir.metrics, only=(names.STEP, names.VAL_LOSS))
    losses = [r[names.VAL_LOSS] for r in records if r[names.STEP] == step and names.VAL_LOSS in r]
    return losses[-1] if losses else None
