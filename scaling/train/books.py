"""The first rank's books, opened when a group of workers begins: the record, its sinks, and the
account of time."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from scaling.channel.base import Channel, Heartbeat
from scaling.channel.messages import Began, RecordGap, Remark
from scaling.checkpoint.fence import Fence
from scaling.checkpoint.state import TrainState
from scaling.checkpoint.store import FENCE
from scaling.config.run_config import RunConfig
from scaling.data.corpus import Corpus
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.metrics.record import MetricLog
from scaling.metrics.sinks import make_sinks
from scaling.metrics.throughput import ThroughputMeter
from scaling.planner.run_plan import RunPlan
from scaling.runs.directory import RunDir
from scaling.runs.goodput import RESTARTING, STARTING
from scaling.runs.startup import Marks, mark, since_command
from scaling.train.control import Clock
from scaling.train.ledger import Ledger
from scaling.train.recorder import FirstRankRecorder


@dataclass(frozen=True)
class Opening:
    """What the books need. workers: the group's name, as the fence gave it. processes: host and pid
    of every rank."""

    config: RunConfig
    plan: RunPlan
    run_dir: RunDir
    channel: Channel
    startup: Marks
    clock: Clock
    workers: str
    processes: list[list[str | int]]

    def recorder(
        self, restored: TrainState | None, corpus: Corpus, tokenizer: Tokenizer, cleanup: ExitStack
    ) -> FirstRankRecorder:
        """Continue from `restored`, or begin. Raises RunDirError."""
        heartbeat = Heartbeat(self.channel)
        cleanup.callback(heartbeat.close)
        self.run_dir.write_tokenizer(tokenizer.to_bytes())
        self.run_dir.write_corpus(corpus.facts())
        step = restored.step if restored else None
        sinks = make_sinks(self.config, self.run_dir.path, step, self._notice)
        log = MetricLog(self.run_dir.metrics, sinks, self._check)
        cleanup.callback(log.close)
        recorded_step = log.last_step()  # before `resume` drops records after the checkpoint
        wall_s = log.resume(step)
        if restored is not None:
            self._report_gaps(log, restored)
        ledger = self._ledger(restored, recorded_step, heartbeat, cleanup)
        self.channel.send(Began(step or 0, self.plan.layout.world_size))
        return FirstRankRecorder(
            log,
            self._meter(),
            heartbeat,
            self.plan,
            ledger=ledger,
            log_every=self.config.train.log_every,
            wall_s=wall_s,
            on_first_step=self._first_step,
            data_values=corpus.mixing(self.config),
        )

    def _report_gaps(self, log: MetricLog, restored: TrainState) -> None:
        """Report where records before the checkpoint are missing: nobody can write them again."""
        noted = {
            (event["first_step"], event["last_step"])
            for event in self.run_dir.read_events()
            if event["kind"] == "record_gap"
        }
        gaps = [RecordGap(first, last, partly=True) for first, last in log.gaps]
        wanted = restored.step - restored.n_logged
        if log.recorded_step < wanted:
            gaps.append(RecordGap(log.recorded_step + 1, wanted))
        for gap in gaps:
            steps = (gap.first_step, gap.last_step)
            if steps not in noted:  # a gap inside stays, and is met at every resumption
                first, last = steps
                self.run_dir.event(
                    "record_gap", step=restored.step, first_step=first, last_step=last
                )
                self.channel.send(gap)

    def _ledger(
        self,
        restored: TrainState | None,
        recorded_step: int,
        heartbeat: Heartbeat,
        cleanup: ExitStack,
    ) -> Ledger:
        """Settle the account of the workers before, write where this group begins, and keep its
        account from there."""
        step = restored.step if restored else 0
        self.run_dir.settle_account()
        ledger = Ledger(self.run_dir, self.workers, self.clock, self._notice, self._check)
        # The ledger keeps the largest step as the one reached, and the last as the present one.
        ledger.step(recorded_step)
        ledger.step(step)
        self.run_dir.event(
            "resume" if restored else "start",
            step=step,
            world_size=self.plan.layout.world_size,
            workers=self.workers,
            command_s=self.startup["command"],
            reached_step=ledger.reached_step,
            processes=self.processes,
        )
        self.clock.begin(RESTARTING if ledger.restarts else STARTING)
        heartbeat.also(ledger.beat)
        cleanup.callback(lambda: ledger.beat(last=True))
        return ledger

    def _check(self) -> None:
        """Raise SupersededError if another group of workers has the run."""
        Fence(self.run_dir.checkpoints / FENCE).check(self.workers)

    def _notice(self, text: str) -> None:
        self.channel.send(Remark(text))

    def _meter(self) -> ThroughputMeter:
        device = self.config.cluster.device
        peak_tflops = (
            device.peak_tflops_bf16 if self.config.dtype == "bf16" else device.peak_tflops_fp32
        )
        return ThroughputMeter(
            self.plan.counts.flops_per_token,
            self.plan.layout.world_size,
            peak_tflops * 1e12 if peak_tflops is not None else None,
        )

    def _first_step(self, state: TrainState) -> None:
        mark(self.startup, "first_step")
        self.run_dir.event("first_step", step=state.step, startup_s=since_command(self.startup))
