"""What one rank does: assemble stream, engine, checkpoints and records, and hand them to the
loop."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from scaling.batch import IGNORED, Batch
from scaling.channel.base import Channel, Heartbeat
from scaling.channel.failure import report as report_error
from scaling.channel.messages import decode
from scaling.checkpoint.pace import Pace
from scaling.checkpoint.saver import Checkpointer
from scaling.checkpoint.state import TrainState, seed_step
from scaling.config.run_config import RunConfig
from scaling.data.corpus import EVAL_SPLIT, Corpus
from scaling.data.objective import make_batch_for
from scaling.data.read.loader import Loader
from scaling.data.read.stream import Sequences
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.engine.base import Engine
from scaling.engine.build import build_engine
from scaling.inference.prompts import complete
from scaling.inference.sampling import generate
from scaling.model import GenerativeModel
from scaling.parallel.exchange import Group, gather_json, share_json
from scaling.parallel.grid import Ranks
from scaling.planner.cost.failures import hours_between_failures, with_experience
from scaling.planner.cost.money import CHECKPOINT_BYTES_PER_PARAM
from scaling.planner.layout import Layout
from scaling.planner.overflow import explain_overflow
from scaling.planner.run_plan import RunPlan
from scaling.runs.directory import RunDir
from scaling.runs.goodput import EVALUATING, STOPPED, n_failures
from scaling.runs.startup import mark
from scaling.train.agreement import Agreement
from scaling.train.batches import Uncondemned
from scaling.train.books import Opening
from scaling.train.clock import EVALUATED, Clock
from scaling.train.guard import Guard, check_end, check_left_out
from scaling.train.loop import train
from scaling.train.preemption import Preemption
from scaling.train.recorder import Recorder
from scaling.train.recovery import Recovery
from scaling.train.schedule import lr_at
from scaling.train.watchdog import Watchdog
from scaling.worker.spec import WorkerSpec

_WRITING_PATIENCE = 6
"""How much longer a rank that has written its part of a checkpoint waits for the others than in
training: assumption."""


def run_worker(
    spec: WorkerSpec, ranks: Ranks, channel: Channel, *, rendezvous: str
) -> dict[str, Any]:
    """Train this rank's part of the run until its end or until asked to stop; collective over all
    ranks.

    rendezvous: init_method of torch.distributed (file:// or env://), unused by a single rank.
    Returns what the driver reports: {"finished", "step", "sample", "reason"}, the same on every
    rank but for the sample, the first's only. Raises ScalingError for what a user can mend.
    """
    config, plan = spec.on(ranks.world_size)
    layout = plan.layout
    ranks = ranks.laid_out(tp=layout.tp, pp=layout.pp, cp=layout.cp)
    with ExitStack() as cleanup, _explained(config, layout):
        clock = Clock()
        cleanup.callback(
            Watchdog(clock, channel, spec.run_dir, ranks.rank, config.cluster.hang_s).close
        )
        device = _prepare_device(config, ranks)
        groups = cleanup.enter_context(_process_groups(config, layout, ranks, device, rendezvous))
        corpus = Corpus.open(spec.corpus_dir, spec.skipped_shards)
        engine = cleanup.enter_context(closing(build_engine(config, layout, ranks, device)))
        mark(spec.startup, "engine_ready")
        training = _Training.begin(
            spec, config, plan, ranks, channel, clock, groups, corpus, engine, cleanup
        )
        state = training.run()
        finished = state.step >= plan.n_steps
        clock.enter(EVALUATING)
        clock.at(EVALUATED, state.step)
        sample = _sample(config, plan, training.tokenizer, engine) if finished else None
        reason = "the notice that machines are taken back" if training.preemption.ends_run else None
        return {"finished": finished, "step": state.step, "sample": sample, "reason": reason}


@dataclass(frozen=True)
class _Training:
    """The parts of one rank's training, and how they are handed to the loop. state: from which it
    begins."""

    state: TrainState
    config: RunConfig
    plan: RunPlan
    last_step: int
    ranks: Ranks
    corpus: Corpus
    tokenizer: Tokenizer
    stream: Sequences
    engine: Engine
    guard: Guard
    checkpoints: Checkpointer
    recorder: Recorder
    clock: Clock
    agreement: Agreement
    preemption: Preemption
    heartbeat: Heartbeat | None
    report: Callable[..., None]

    @staticmethod
    def begin(
        spec: WorkerSpec,
        config: RunConfig,
        plan: RunPlan,
        ranks: Ranks,
        channel: Channel,
        clock: Clock,
        groups: tuple[Group, Group],
        corpus: Corpus,
        engine: Engine,
        cleanup: ExitStack,
    ) -> _Training:
        """Take up the newest checkpoint, and open the books. Collective over the ranks."""
        run_dir, tokenizer = RunDir(spec.run_dir), corpus.load_tokenizer()
        report = _event_reporter(run_dir, channel, ranks)
        checkpoints = Checkpointer(
            run_dir.checkpoints,
            config,
            plan.layout,
            corpus_fingerprint=corpus.fingerprint,
            ranks=ranks,
            group=groups[0],
            writing_group=groups[1],
            on_event=report,
            pace=_pace(config, plan, run_dir) if ranks.is_first else None,
            record=run_dir.metrics,
            content_fingerprint=corpus.content_fingerprint,
            corpus_changes=lambda: run_dir.corpus_changes(corpus.facts()),
        )
        cleanup.callback(checkpoints.close)
        restored = checkpoints.restore(engine)  # refuses another corpus, and so another tokenizer
        condemned = share_json(run_dir.condemned() if ranks.is_first else [], groups[0])
        processes = gather_json([socket.gethostname(), os.getpid()], groups[0])
        heartbeat, recorder = _open_heartbeat(channel, ranks, cleanup), Recorder()
        if heartbeat is not None:
            run_dir.write_tokenizer(tokenizer.to_bytes())
            run_dir.write_corpus(corpus.facts())
            opening = Opening(
                config,
                plan,
                run_dir,
                channel,
                heartbeat,
                spec.startup,
                clock,
                checkpoints.workers,
                processes,
            )
            recorder = opening.recorder(restored, corpus.mixing(config), cleanup)
        preemption = Preemption(
            channel,
            clock,
            world_size=ranks.world_size,
            sizes=spec.sizes,
            grace_s=config.cluster.grace_s,
            write_s=lambda: checkpoints.longest_write_s,
            on_event=report,
        )
        stream = cleanup.enter_context(corpus.stream(config, "train"))
        # first of all
        cleanup.push(
            lambda _, error, __: (
                report_error(error, channel, spec.run_dir, ranks.rank) if error else None
            )
        )
        return _Training(
            (restored or TrainState()).without(condemned),
            config,
            plan,
            min(plan.n_steps, spec.until_step or plan.n_steps),
            ranks,
            corpus,
            tokenizer,
            stream,
            engine,
            Guard(config.train, report),
            checkpoints,
            recorder,
            clock,
            Agreement(groups[0]),
            preemption,
            heartbeat,
            report,
        )

    def run(self) -> TrainState:
        """Train to the end, or until asked to stop, going back where the guard wants it."""
        recovery = Recovery(
            self.config.train, self.engine, self.guard, self.checkpoints, self.recorder, self.report
        )
        state = recovery.run(self.run_from, self.state)
        if state.step >= self.last_step:
            skipped_steps = self.agreement.of_first(state.skipped_steps)
            check_left_out(self.config.train, replace(state, skipped_steps=skipped_steps))
        if state.step >= self.plan.n_steps:
            self._check_end(state)
        return state

    def _check_end(self, state: TrainState) -> None:
        """Evaluate a finished run of which no evaluation is recorded. Raises DivergedError for a
        loss that is not finite."""
        recorded = self.recorder.val_loss_at(state.step)
        if self.agreement.any(self.ranks.is_first and recorded is None)[0]:
            self._evaluator()(state)
        elif self.agreement.any(recorded is not None and not math.isfinite(recorded))[0]:
            check_end(state.step, math.nan if recorded is None else recorded)

    def _evaluator(self) -> Callable[[TrainState], None]:
        return _evaluator(
            self.config,
            self.plan,
            self.corpus,
            self.tokenizer,
            self.engine,
            self.ranks,
            self.recorder,
            self.clock,
            self.last_step,
        )

    def run_from(self, state: TrainState) -> TrainState:
        """Train from `state` to the end, or until asked to stop. Raises RollBack."""
        config, plan, ranks = self.config, self.plan, self.ranks
        with _open_loader(
            config, plan, self.tokenizer, self.stream, ranks, state, self.report
        ) as loader:
            return train(
                self.engine,
                Uncondemned(loader, state.condemned, config.train.global_batch_size),
                state,
                n_steps=self.last_step,
                tokens_per_step=plan.tokens_per_step,
                lr_after=_schedule(config, plan),
                begin_step=lambda step: seed_step(config.train.seed, step, ranks.rank // ranks.tp),
                evaluate=self._evaluator(),
                guard=self.guard,
                checkpoints=self.checkpoints,
                recorder=self.recorder,
                clock=self.clock,
                agreement=self.agreement,
                preemption=self.preemption,
                stop_requested=lambda: self.heartbeat is not None and self.heartbeat.stop_requested,
            )


@contextlib.contextmanager
def _explained(config: RunConfig, layout: Layout) -> Iterator[None]:
    """A device's overflow, in the plan's words."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise explain_overflow(config, layout, str(error)) from error


def _prepare_device(config: RunConfig, ranks: Ranks) -> torch.device:
    if config.cluster.device.kind == "gpu":
        device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        return device
    torch.set_num_threads(config.cluster.threads_per_worker)
    return torch.device("cpu")


@contextlib.contextmanager
def _process_groups(
    config: RunConfig, layout: Layout, ranks: Ranks, device: torch.device, rendezvous: str
) -> Iterator[tuple[Group, Group]]:
    """Starts the default process group; gives gloo groups for small things: one for training, one
    for who writes checkpoints."""
    if ranks.world_size == 1 and layout.engine != "deepspeed":
        yield None, None
        return
    timeout, alone = timedelta(seconds=config.cluster.timeout_s), ranks.world_size == 1
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=None if alone else rendezvous,
        store=dist.HashStore() if alone else None,  # DeepSpeed wants a group of one, too
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timeout,
    )
    try:
        if alone:
            yield None, None
        else:
            group = (
                dist.new_group(backend="gloo", timeout=timeout)
                if device.type == "cuda"
                else dist.group.WORLD
            )
            yield group, dist.new_group(backend="gloo", timeout=_WRITING_PATIENCE * timeout)
    finally:
        dist.destroy_process_group()


def _event_reporter(run_dir: RunDir, channel: Channel, ranks: Ranks) -> Callable[..., None]:
    """Notes an event and tells the driver of it, on the first rank."""
    if not ranks.is_first:
        return lambda kind, **fields: None

    def report(kind: Any, **fields: Any) -> None:
        run_dir.event(kind, world_size=ranks.world_size, **fields)
        channel.send(decode(kind, fields))

    return report


def _pace(config: RunConfig, plan: RunPlan, run_dir: RunDir) -> Pace | None:
    """The clock for checkpoints, where they are due by time."""
    checkpoint, cluster, layout = config.checkpoint, config.cluster, plan.layout
    if checkpoint.every_steps is not None or checkpoint.every == "end":
        return None
    expected_hours = hours_between_failures(cluster, layout.world_size)
    events, seconds = run_dir.read_events(), run_dir.seconds()
    hours = (sum(seconds.values()) - seconds[STOPPED]) / 3600
    hours_between = with_experience(expected_hours, hours=hours, n_failures=n_failures(events))
    own_bytes = CHECKPOINT_BYTES_PER_PARAM * plan.counts.n_params / layout.world_size
    return Pace(checkpoint.every_minutes, hours_between, own_bytes)


def _open_heartbeat(channel: Channel, ranks: Ranks, cleanup: ExitStack) -> Heartbeat | None:
    if not ranks.is_first:
        return None
    heartbeat = Heartbeat(channel)
    cleanup.callback(heartbeat.close)
    return heartbeat


def _open_loader(
    config: RunConfig,
    plan: RunPlan,
    tokenizer: Tokenizer,
    stream: Sequences,
    ranks: Ranks,
    state: TrainState,
    report_event: Callable[..., None],
) -> Loader:
    def on_stall(waited_s: float, shards: list[str]) -> None:
        report_event("data_stalled", rank=ranks.rank, waited_s=round(waited_s, 1), shards=shards)

    return Loader(
        stream,
        make_batch=make_batch_for(config, tokenizer),
        global_batch_size=config.train.global_batch_size,
        dp_rank=ranks.dp_rank,
        dp=ranks.dp,
        micro_batch_size=plan.layout.micro_batch_size,
        start_sequence=state.next_sequence,
        workers=config.data.loader_workers,
        on_stall=on_stall,
        stall_after_s=config.data.stall_after_s,
    )


def _schedule(config: RunConfig, plan: RunPlan) -> Callable[[int], float]:
    def lr_after(n_tokens_seen: int) -> float:
        return lr_at(
            config.schedule,
            peak_lr=config.optim.lr,
            n_tokens_seen=n_tokens_seen,
            n_tokens=plan.n_tokens,
            warmup_tokens=plan.warmup_tokens,
            decay_tokens=plan.decay_tokens,
        )

    return lr_after


def _evaluator(
    config: RunConfig,
    plan: RunPlan,
    corpus: Corpus,
    tokenizer: Tokenizer,
    engine: Engine,
    ranks: Ranks,
    recorder: Recorder,
    clock: Clock,
    last_step: int,
) -> Callable[[TrainState], None]:
    """Evaluate where it is due: the first `train.eval_sequences` held-out sequences, the same for
    every layout."""
    with corpus.stream(config, EVAL_SPLIT) as stream:
        n_sequences = min(config.train.eval_sequences, stream.n_sequences)
        ks_N = np.arange(n_sequences)
        whole = make_batch_for(config, tokenizer)(stream.read(ks_N), ks_N)
    n_bytes = int(
        tokenizer.token_bytes[whole.targets_BT[whole.targets_BT != IGNORED].numpy()].sum()
    )
    batches = _eval_batches(whole, ranks, plan.layout.micro_batch_size)
    every = config.train.eval_every

    def evaluate(state: TrainState) -> None:
        if state.step == last_step or (every is not None and state.step % every == 0):
            with clock.doing(EVALUATING):
                result = engine.evaluate(batches)
                recorder.evaluation(state, result, n_bytes)
            if state.step == plan.n_steps:
                check_end(state.step, result.loss)

    return evaluate


def _eval_batches(whole: Batch, ranks: Ranks, micro_batch_size: int) -> list[Batch]:
    """This rank's batches, as many and as large as every other rank's: rows that fill up the last
    ones have no targets."""
    n_sequences = len(whole.tokens_BT)
    micro_batch_size = min(micro_batch_size, -(-n_sequences // ranks.dp))
    per_rank = -(-n_sequences // (ranks.dp * micro_batch_size)) * micro_batch_size
    batches = []
    for start in range(ranks.dp_rank * per_rank, (ranks.dp_rank + 1) * per_rank, micro_batch_size):
        rows = np.arange(start, start + micro_batch_size)
        batch = whole.rows(torch.from_numpy(np.minimum(rows, n_sequences - 1)))
        batch.targets_BT[torch.from_numpy(rows >= n_sequences)] = IGNORED
        batches.append(batch)
    return batches


_SAMPLE_MEMORY = 0.1
"""Part of a device that gathered weights may take for a sample: assumption. scaling.generate has no
limit."""


def _sample(config: RunConfig, plan: RunPlan, tokenizer: Tokenizer, engine: Engine) -> str | None:
    """What the model makes of the prompt; every rank generates the same tokens. None of a sharded
    model that is too large."""
    train, memory_gb = config.train, config.cluster.device.memory_gb
    if not train.sample_tokens or (config.objective.kind == "seq2seq" and not train.sample_prompt):
        return None
    layout = plan.layout
    gathered = layout.zero_stage == 3 or layout.tp * layout.pp > 1
    if gathered and memory_gb and 4 * plan.counts.n_params > _SAMPLE_MEMORY * memory_gb * 1e9:
        return None

    def sampled(
        model: GenerativeModel, prompt: Sequence[int], source: Sequence[int] | None
    ) -> list[int]:
        return generate(
            model,
            prompt,
            train.sample_tokens,
            source_ids=source,
            seed=train.seed,
            context_limit=train.seq_len,
            eos_id=tokenizer.eot_id,
        )

    return complete(config, engine.whole_model().eval(), tokenizer, train.sample_prompt, sampled)
