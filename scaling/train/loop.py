"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable

from scaling.checkpoint.saver import Checkpointer
from scaling.checkpoint.state import TrainState
from scaling.engine.base import Engine
from scaling.runs.goodput import CHECKPOINTING, PRODUCTIVE, RECOMPUTING
from scaling.train.agreement import Agreement
from scaling.train.batches import Batches
from scaling.train.clock import AGREEING, COMPUTING, EVALUATED, READING, RECORDING, SAVING, Clock
from scaling.train.guard import Guard
from scaling.train.preemption import Preemption
from scaling.train.recorder import Recorder


def train(
    engine: Engine,
    batches: Batches,
    state: TrainState,
    *,
    n_steps: int,
    tokens_per_step: int,
    lr_after: Callable[[int], float],
    begin_step: Callable[[int], None],
    evaluate: Callable[[TrainState], None],
    guard: Guard,
    checkpoints: Checkpointer,
    recorder: Recorder,
    clock: Clock,
    agreement: Agreement,
    preemption: Preemption,
    stop_requested: Callable[[], bool],
) -> TrainState:
    """Minimise the loss for `n_steps` steps in all, or until asked to stop; ends with a checkpoint
    of where it stands.

    lr_after: tokens seen after a step -> its learning rate. begin_step: seeds the random generators
    of a step. stop_requested: as this rank sees it. Raises CheckpointError at the step after a
    checkpoint could not be written, and RollBack or DivergedError where the guard says so, before
    anything of that step is recorded or saved.
    """

    def save(state: TrainState) -> TrainState:
        clock.at(SAVING, state.step)
        with clock.doing(CHECKPOINTING):
            state = recorder.settle(guard.settle(state))
            recorder.checkpoint(state, checkpoints.save(engine, state))
        preemption.saved()
        return state

    steps = iter(batches)
    while state.step < n_steps:
        clock.at(AGREEING, state.step)
        timely = checkpoints.timely or preemption.save_wanted
        stop, failed, timely, look = agreement.any(
            stop_requested(), checkpoints.failed, timely, preemption.look_wanted
        )
        if failed:
            checkpoints.wait()
        if look:
            preemption.look()
        if stop or preemption.ends_run:
            break
        if checkpoints.due(state, timely=timely):
            state = save(state)
        clock.enter(RECOMPUTING if state.step < recorder.reached_step else PRODUCTIVE)
        clock.at(READING, state.step)
        begun_s = time.perf_counter()
        micro_batches, next_sequence = next(steps)
        clock.at(COMPUTING, state.step)
        begin_step(state.step)
        lr = lr_after(state.n_tokens + tokens_per_step)
        result = engine.step(micro_batches, lr, guard.limits(state))
        state = state.advance(next_sequence=next_sequence, n_tokens=tokens_per_step)
        step_time_s = time.perf_counter() - begun_s
        clock.stepped(step_time_s)
        clock.at(RECORDING, state.step)
        state = guard.after_step(state, result)
        state = recorder.step(
            state, result, lr=lr, step_time_s=step_time_s, data_wait_s=batches.last_wait_s
        )
        clock.at(EVALUATED, state.step)
        evaluate(state)
    clock.enter(CHECKPOINTING)
    if state.step and checkpoints.last_step != state.step:
        state = save(state)
    checkpoints.wait()
    return state
