"""Records of steps: means over an interval, throughput, and progress for the person waiting."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from scaling.channel.base import Heartbeat
from scaling.checkpoint.state import TrainState
from scaling.engine.base import EvalResult, StepResult
from scaling.metrics import names
from scaling.metrics.record import MetricLog
from scaling.metrics.throughput import ThroughputMeter
from scaling.planner.run_plan import RunPlan
from scaling.train.ledger import Ledger
from scaling.train.steps import Step


class Recorder:
    """Receives what the loop reports about its steps; this one, for every rank but the first,
    ignores it.

    reached_step: where the run stood before its last failure, as far as is known.
    """

    reached_step = 0

    @property
    def stop_requested(self) -> bool:
        """Whether the driver asks for an end, as far as this rank knows."""
        return False

    def step(
        self, state: TrainState, result: StepResult, step: Step, step_time_s: float
    ) -> TrainState:
        """Record the step that led to `state`; returns the state with the interval's sums."""
        return state

    def evaluation(self, state: TrainState, result: EvalResult, n_bytes: int) -> None:
        """Record an evaluation of `n_bytes` bytes of held-out text."""

    def val_loss_at(self, step: int) -> float | None:
        """The held-out loss of `step`, if that is the record's last step and has one."""
        return None

    def checkpoint(self, state: TrainState, stall_s: float) -> None:
        """Record a checkpoint of `state`, for which training waited `stall_s`."""

    def rewind(self, state: TrainState, reached_step: int) -> None:
        """Drop what was recorded after `state`, after a rollback from `reached_step`."""

    def settle(self, state: TrainState) -> TrainState:
        """`state` with the sums that are still on the device, as a checkpoint needs it."""
        return state


class FirstRankRecorder(Recorder):
    """Writes metrics.jsonl and feeds the heartbeat. Losses stay on the device until a record or a
    checkpoint needs them."""

    def __init__(
        self,
        log: MetricLog,
        meter: ThroughputMeter,
        heartbeat: Heartbeat,
        plan: RunPlan,
        *,
        ledger: Ledger,
        log_every: int,
        wall_s: float,
        on_first_step: Callable[[TrainState], None],
        data_values: Callable[[int], dict[str, float]] = lambda next_sequence: {},
    ) -> None:
        self._log, self._meter, self._heartbeat, self._plan = log, meter, heartbeat, plan
        self._ledger = ledger
        self.reached_step = ledger.reached_step
        self._log_every, self._data_values = log_every, data_values
        self._on_first_step: Callable[[TrainState], None] | None = on_first_step
        self._started_s = time.monotonic() - wall_s
        self._sums: torch.Tensor | None = None
        self._pending = 0
        self._stall_s = 0.0
        self._rates: dict[str, float] = {}
        self._shown: dict[str, float] = {}

    @property
    def stop_requested(self) -> bool:
        return self._heartbeat.stop_requested

    def _position(self, state: TrainState) -> tuple[int, int, float, float]:
        flops = self._plan.counts.flops_per_token * state.n_tokens
        return state.step, state.n_tokens, flops, time.monotonic() - self._started_s

    def step(
        self, state: TrainState, result: StepResult, step: Step, step_time_s: float
    ) -> TrainState:
        # Summed on the device: reading the numbers here would wait for the step at every step.
        own = torch.stack([result.loss, result.grad_norm, result.skipped]).double()
        self._sums = own if self._sums is None else self._sums + own
        if self._on_first_step is not None:
            result.loss.item()  # the step has ended only when the device has computed it
            self._on_first_step(state)
            self._on_first_step = None
        self._pending += 1
        self._ledger.step(state.step)
        self._meter.step(step.n_tokens, step_time_s, step.data_wait_s)
        if state.step % self._log_every == 0 or state.step == self._plan.n_steps:
            state = self._record(self.settle(state), step.lr)
        plan = self._plan
        where = {
            "step": state.step,
            "n_steps": plan.n_steps,
            "n_tokens": state.n_tokens,
            "n_tokens_total": plan.n_tokens,
        }
        rate = self._meter.recent_tokens_per_s
        self._heartbeat.progress(**where, lr=step.lr, recent_tokens_per_s=rate, **self._shown)
        return state

    def settle(self, state: TrainState) -> TrainState:
        if self._sums is None:
            return state
        loss, grad_norm, skipped = self._sums.tolist()
        pending, self._sums, self._pending = self._pending, None, 0
        return replace(
            state,
            loss_sum=state.loss_sum + loss,
            grad_norm_sum=state.grad_norm_sum + grad_norm,
            n_logged=state.n_logged + pending,
            skipped_steps=state.skipped_steps + int(skipped),
        )

    def _record(self, state: TrainState, lr: float) -> TrainState:
        loss = state.loss_sum / state.n_logged
        rates = self._meter.take()
        values = {
            names.TRAIN_LOSS: loss,
            names.TRAIN_LR: lr,
            names.TRAIN_GRAD_NORM: state.grad_norm_sum / state.n_logged,
            names.TRAIN_TOKENS: state.n_tokens,
            names.TRAIN_SEQUENCES: state.next_sequence,
            names.TRAIN_SKIPPED_STEPS: state.skipped_steps,
            **rates,
            names.MEMORY_PEAK_GB: peak_memory_bytes() / 1e9,
            names.RUN_GOODPUT: self._ledger.goodput,
            names.RUN_RESTARTS: self._ledger.restarts,
            names.RUN_WORLD_SIZE: self._plan.layout.world_size,
            **self._data_values(state.next_sequence),
        }
        if self._stall_s:
            values[names.CHECKPOINT_STALL_S], self._stall_s = self._stall_s, 0.0
        self._log.record(*self._position(state), values)
        self._shown = {
            "loss": loss,
            **{k: v for k, v in rates.items() if k in (names.TOKENS_PER_S, names.DEVICE_MFU)},
        }
        return replace(state, loss_sum=0.0, grad_norm_sum=0.0, n_logged=0)

    def evaluation(self, state: TrainState, result: EvalResult, n_bytes: int) -> None:
        # exp of more than 709 overflows a float.
        values = {names.VAL_LOSS: result.loss, names.VAL_PPL: math.exp(min(result.loss, 700.0))}
        if n_bytes:
            values[names.VAL_BITS_PER_BYTE] = result.nats / math.log(2) / n_bytes
        self._log.record(*self._position(state), values)

    def val_loss_at(self, step: int) -> float | None:
        return (
            self._log.last_values.get(names.VAL_LOSS) if step == self._log.recorded_step else None
        )

    def checkpoint(self, state: TrainState, stall_s: float) -> None:
        self._stall_s += stall_s

    def rewind(self, state: TrainState, reached_step: int) -> None:
        self._log.rewind(state.step)
        self._meter.take()
        self._sums, self._pending = None, 0
        self._ledger.step(reached_step)
        self.reached_step = self._ledger.reached_step


def peak_memory_bytes() -> int:
    """Peak memory of this process: the GPU's, as its allocator counts it, or else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
