"""One rank's training, assembled: stream, engine, checkpoints and records, handed to the loop."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from scaling.channel.base import Channel
from scaling.channel.failure import report as report_error
from scaling.channel.messages import decode
from scaling.checkpoint.pace import pace_of
from scaling.checkpoint.saver import Checkpointer
from scaling.checkpoint.state import TrainState
from scaling.config.run_config import RunConfig
from scaling.data.corpus import Corpus
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.engine.base import Engine
from scaling.engine.build import build_engine, prepare_device
from scaling.parallel.exchange import Group, broadcast_json, gather_json
from scaling.parallel.grid import Ranks
from scaling.parallel.world import process_groups
from scaling.planner.layout import Layout
from scaling.planner.overflow import explain_overflow
from scaling.planner.run_plan import RunPlan
from scaling.runs.directory import RunDir
from scaling.runs.goodput import EVALUATING
from scaling.runs.startup import mark
from scaling.train.books import Opening
from scaling.train.control import EVALUATED, Agreement, Clock, Control, Preemption
from scaling.train.evaluate import Evaluator, HeldOut, evaluate_end
from scaling.train.guard import Guard, check_left_out
from scaling.train.loop import train
from scaling.train.recorder import Recorder
from scaling.train.recovery import Recovery
from scaling.train.sample import make_sample
from scaling.train.steps import open_steps
from scaling.train.watchdog import Watchdog
from scaling.worker.spec import WorkerSpec

Groups = tuple[Group, Group]
"""gloo groups over all ranks: one for training, one for the threads that write checkpoints."""


def run_worker(
    spec: WorkerSpec, ranks: Ranks, channel: Channel, *, rendezvous: str
) -> dict[str, Any]:
    """Train on this rank until the run's end or until asked to stop; collective over all ranks.

    rendezvous: init_method of torch.distributed (file:// or env://); a single rank does not use it.
    Returns what the driver reports: {"finished", "step", "sample", "reason"}, the same on every
    rank. Raises ScalingError for what a user can mend.
    """
    config, plan = spec.on(ranks.world_size)
    layout = plan.layout
    ranks = ranks.laid_out(tp=layout.tp, pp=layout.pp, cp=layout.cp)
    with ExitStack() as cleanup, _explained(config, layout):
        clock = Clock()
        watchdog = Watchdog(clock, channel, spec.run_dir, ranks.rank, config.cluster.hang_s)
        cleanup.callback(watchdog.close)
        device = prepare_device(config, ranks)
        groups = cleanup.enter_context(
            process_groups(
                ranks,
                device,
                rendezvous=rendezvous,
                timeout_s=config.cluster.timeout_s,
                always=layout.engine == "deepspeed",
            )
        )
        corpus = Corpus.open(spec.corpus_dir, spec.skipped_shards)
        engine = cleanup.enter_context(closing(build_engine(config, layout, ranks, device)))
        mark(spec.startup, "engine_ready")
        tokenizer = corpus.load_tokenizer()
        rank = _Rank(spec, config, plan, ranks, channel, clock, corpus, tokenizer, cleanup)
        state, reason = rank.train(groups, engine)
        finished = state.step >= plan.n_steps
        clock.enter(EVALUATING)
        clock.at(EVALUATED, state.step)
        sample = make_sample(config, plan, tokenizer, engine) if finished else None
        return {"finished": finished, "step": state.step, "sample": sample, "reason": reason}


@dataclass(frozen=True)
class _Rank:
    """What the objects of one rank's training are made from. cleanup: closes them, the newest
    first."""

    spec: WorkerSpec
    config: RunConfig
    plan: RunPlan
    ranks: Ranks
    channel: Channel
    clock: Clock
    corpus: Corpus
    tokenizer: Tokenizer
    cleanup: ExitStack

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.spec.run_dir)

    def train(self, groups: Groups, engine: Engine) -> tuple[TrainState, str | None]:
        """Take up the newest checkpoint and train; the last state, and why the ranks themselves
        ended the run early, if they did."""
        config, plan, ranks, clock = self.config, self.plan, self.ranks, self.clock
        last_step = min(plan.n_steps, self.spec.until_step or plan.n_steps)
        checkpoints = self._checkpointer(groups)
        restored = checkpoints.restore(engine)  # refuses another corpus, and so another tokenizer
        # A rollback may be newer than the checkpoint: events.jsonl lists what it left out.
        condemned = broadcast_json(self.run_dir.condemned() if ranks.is_first else [], groups[0])
        recorder = self._recorder(groups[0], checkpoints.workers, restored)
        control = self._control(Agreement(groups[0]), checkpoints, recorder)
        stream = self.cleanup.enter_context(self.corpus.stream(config, "train"))
        # Pushed last, so it runs first: the driver has the error before anything is torn down.
        self.cleanup.push(self._report_error)
        guard = Guard(config.train, self.report)

        def evaluator() -> Evaluator:
            held_out = HeldOut.read(config, plan, self.corpus, self.tokenizer, ranks)
            every = config.train.eval_every
            return Evaluator(engine, held_out, recorder, clock, every, last_step, plan.n_steps)

        def train_from(state: TrainState) -> TrainState:
            with open_steps(
                config,
                plan,
                ranks,
                stream,
                self.tokenizer,
                state,
                end=last_step,
                clock=clock,
                on_event=self.report,
            ) as steps:
                return train(
                    engine,
                    steps,
                    state,
                    evaluate=evaluator(),
                    guard=guard,
                    checkpoints=checkpoints,
                    recorder=recorder,
                    control=control,
                )

        recovery = Recovery(config.train, engine, guard, checkpoints, recorder, self.report)
        state = recovery.run(train_from, (restored or TrainState()).without(condemned))
        if state.step >= last_step:
            n_skipped = control.agreement.of_first(state.skipped_steps)
            check_left_out(config.train, replace(state, skipped_steps=n_skipped))
        if state.step >= plan.n_steps:
            evaluate_end(state, evaluator, recorder, control.agreement, ranks)
        return state, control.reason

    def report(self, kind: Any, **fields: Any) -> None:
        """Write an event and report it to the driver, from the first rank only."""
        if self.ranks.is_first:
            self.run_dir.event(kind, world_size=self.ranks.world_size, **fields)
            self.channel.send(decode(kind, fields))

    def _report_error(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            report_error(error, self.channel, self.spec.run_dir, self.ranks.rank)

    def _checkpointer(self, groups: Groups) -> Checkpointer:
        run_dir, corpus = self.run_dir, self.corpus
        checkpoints = Checkpointer(
            run_dir.checkpoints,
            self.config,
            self.plan.layout,
            corpus_fingerprint=corpus.fingerprint,
            ranks=self.ranks,
            group=groups[0],
            writing_group=groups[1],
            on_event=self.report,
            pace=pace_of(self.config, self.plan, run_dir) if self.ranks.is_first else None,
            record=run_dir.metrics,
            content_fingerprint=corpus.content_fingerprint,
            corpus_changes=lambda: run_dir.corpus_changes(corpus.facts()),
        )
        self.cleanup.callback(checkpoints.close)
        return checkpoints

    def _recorder(self, group: Group, workers: str, restored: TrainState | None) -> Recorder:
        processes = gather_json([socket.gethostname(), os.getpid()], group)
        if not self.ranks.is_first:
            return Recorder()
        opening = Opening(
            self.config,
            self.plan,
            self.run_dir,
            self.channel,
            self.spec.startup,
            self.clock,
            workers,
            processes,
        )
        return opening.recorder(restored, self.corpus, self.tokenizer, self.cleanup)

    def _control(
        self, agreement: Agreement, checkpoints: Checkpointer, recorder: Recorder
    ) -> Control:
        preemption = Preemption(
            self.channel,
            self.clock,
            world_size=self.ranks.world_size,
            sizes=self.spec.sizes,
            grace_s=self.config.cluster.grace_s,
            write_s=lambda: checkpoints.longest_write_s,
            on_event=self.report,
        )
        return Control(
            self.clock, agreement, preemption, checkpoints, lambda: recorder.stop_requested
        )


@contextlib.contextmanager
def _explained(config: RunConfig, layout: Layout) -> Iterator[None]:
    """Explain a device's overflow by the plan."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise explain_overflow(config, layout, str(error)) from error
