"""The guard against bad steps: losses and gradient norms that are not finite, or that spike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch

from scaling.checkpoint.state import TrainState
from scaling.config.run_config import TrainConfig
from scaling.engine.base import Limits, StepResult
from scaling.errors import DivergedError

_LEAST_DEVIATION = 0.01
"""Least standard deviation, as a fraction of the mean, so that a ripple in a calm stretch is no
spike: assumption."""

Policy = Literal["ignore", "skip", "rollback", "fail"]


class RollBack(Exception):
    """Asks to undo the step that led to `step`, on the global batch that begins at
    `first_sequence`."""

    def __init__(self, step: int, first_sequence: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step, self.first_sequence, self.reason = step, first_sequence, reason


class Guard:
    """Judges every step by `train.on_nonfinite` and `train.on_spike`. Every rank judges alike,
    since the results of a step are equal on all.

    A spike is a loss or a gradient norm more than `spike_sigmas` standard deviations above the mean
    of the last `spike_window` steps without a spike; those are part of the training state.
    on_event(kind, **fields) receives "step_skipped". Where the engine only leaves out updates that
    are not finite, results stay on the device until `settle`. More than `max_skips` updates left
    out in a row end the run.
    """

    def __init__(self, train: TrainConfig, on_event: Callable[..., None]) -> None:
        self._train = train
        self._on_event = on_event
        self._watches_spikes = train.on_spike != "ignore"
        self._pending: list[tuple[int, int, torch.Tensor]] = []

    @property
    def rolls_back(self) -> bool:
        return "rollback" in (self._train.on_nonfinite, self._train.on_spike)

    def limits(self, state: TrainState) -> Limits | None:
        """Limits beyond which the engine leaves the next update out; None where spikes are not left
        out, or the window is not full."""
        return self._limits(state) if self._train.on_spike == "skip" else None

    def _limits(self, state: TrainState) -> Limits | None:
        if len(state.recent_losses) < self._train.spike_window:
            return None
        return Limits(
            loss=self._limit(state.recent_losses), grad_norm=self._limit(state.recent_grad_norms)
        )

    def _limit(self, recent: Sequence[float]) -> float:
        mean = statistics.fmean(recent)
        return mean + self._train.spike_sigmas * max(
            statistics.pstdev(recent, mean), _LEAST_DEVIATION * abs(mean)
        )

    def after_step(self, state: TrainState, result: StepResult) -> TrainState:
        """Judge the step that led to `state`; returns it with what the next steps are judged by.

        Raises RollBack or DivergedError, by the policy.
        """
        first_sequence = state.next_sequence - self._train.global_batch_size
        self._pending.append(
            (
                state.step,
                first_sequence,
                torch.stack([result.loss, result.grad_norm, result.skipped]),
            )
        )
        # Reading a result waits for the device, so results are read only as often as is needed.
        at_once = self._watches_spikes or self._train.on_nonfinite != "skip"
        # A run of skipped updates must end the run in time, so no more than max_skips wait.
        wait = min(self._train.log_every, self._train.max_skips)
        return self.settle(state) if at_once or len(self._pending) >= wait else state

    def settle(self, state: TrainState) -> TrainState:
        """Judge the steps that are not judged yet."""
        if self._pending:
            values = torch.stack([values for _, _, values in self._pending]).tolist()
            pending, self._pending = self._pending, []
            for (step, first_sequence, _), (loss, grad_norm, _) in zip(
                pending, values, strict=True
            ):
                state = self._judge(state, step, first_sequence, loss, grad_norm)
        return state

    def _judge(
        self, state: TrainState, step: int, first_sequence: int, loss: float, grad_norm: float
    ) -> TrainState:
        policy, reason = self._verdict(state, loss, grad_norm)
        if reason is None:
            return self._remember(state, loss, grad_norm)
        sequences = [first_sequence, first_sequence + self._train.global_batch_size]
        if policy == "rollback":
            raise RollBack(step, first_sequence, reason)
        if policy == "fail":
            raise _diverged(step, sequences, reason)
        self._on_event("step_skipped", step=step, sequences=sequences, reason=reason)
        state = replace(state, skipped_in_a_row=state.skipped_in_a_row + 1)
        if state.skipped_in_a_row > self._train.max_skips:
            raise _too_many_skips(step, state.skipped_in_a_row, self._train.max_skips, reason)
        return state

    def _verdict(
        self, state: TrainState, loss: float, grad_norm: float
    ) -> tuple[Policy, str | None]:
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return self._train.on_nonfinite, f"its {name} is {value}"
        limits = self._limits(state) if self._watches_spikes else None
        if limits is not None:
            for name, value, limit in (
                ("loss", loss, limits.loss),
                ("gradient norm", grad_norm, limits.grad_norm),
            ):
                if value > limit:
                    usual = (
                        f"{self._train.spike_sigmas:g} standard deviations above the"
                        f" {self._train.spike_window} steps before"
                    )
                    return (
                        self._train.on_spike,
                        f"its {name} of {value:.6g} is beyond {limit:.6g}, {usual}",
                    )
        return "ignore", None

    def _remember(self, state: TrainState, loss: float, grad_norm: float) -> TrainState:
        if state.skipped_in_a_row:
            state = replace(state, skipped_in_a_row=0)
        if not self._watches_spikes:
            return state
        keep = self._train.spike_window
        losses, norms = (
            (*state.recent_losses, loss)[-keep:],
            (*state.recent_grad_norms, grad_norm)[-keep:],
        )
        return replace(state, recent_losses=losses, recent_grad_norms=norms)


def _diverged(step: int, sequences: list[int], reason: str) -> DivergedError:
    first, end = sequences
    return DivergedError(
        f"step {step} on sequences {first} to {end - 1} has been given up: {reason}",
        "train.on_nonfinite or train.on_spike is fail",
        "The same command with rollback in its place continues from the last checkpoint without"
        " these sequences, and with skip without the update. If the run diverges again, begin one"
        " with a smaller optim.lr or a longer warm-up, under another name.",
    )


def _too_many_skips(step: int, n_skips: int, most: int, reason: str) -> DivergedError:
    return DivergedError(
        f"the updates of the last {n_skips} steps were left out, up to step {step}, and {most} in a"
        f" row is the most: {reason}",
        f"train.max_skips={most}",
        "Begin a run with a smaller optim.lr or a longer warm-up. The same command with"
        " train.on_nonfinite=rollback (or train.on_spike=rollback) continues from the last"
        " checkpoint without these sequences, which helps where they are the cause; a larger"
        " train.max_skips only waits longer.",
    )


def check_end(step: int, val_loss: float) -> None:
    """Raise DivergedError where a run ends with a held-out loss that is not finite."""
    if not math.isfinite(val_loss):
        raise DivergedError(
            f"the held-out loss after the last step, {step}, is {val_loss}: the weights are of no"
            " use",
            "train/loss in metrics.jsonl shows since when",
            "Begin a run with a smaller optim.lr or a longer warm-up. The same command with"
            " train.on_nonfinite=rollback continues from the last checkpoint.",
        )


def check_left_out(train: TrainConfig, state: TrainState) -> None:
    """Raise DivergedError where a run ends with most of its updates left out. state: the first
    rank's, which alone counts them."""
    if 2 * state.skipped_steps <= state.step:
        return
    other = " Where they are spikes, raise train.spike_sigmas." if train.on_spike == "skip" else ""
    raise DivergedError(
        f"{state.skipped_steps} of all {state.step} updates were left out, which is more than half:"
        " the weights are hardly trained",
        "step_skipped in events.jsonl says which, and why",
        f"Begin a run with a smaller optim.lr or a longer warm-up.{other}",
    )
