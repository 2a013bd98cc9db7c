"""The training loop."""

from __future__ import annotations

from collections.abc import Callable

from scaling.checkpoint.saver import Checkpointer
from scaling.checkpoint.state import TrainState
from scaling.engine.base import Engine
from scaling.train.control import Control
from scaling.train.guard import Guard
from scaling.train.recorder import Recorder
from scaling.train.steps import Steps


def train(
    engine: Engine,
    steps: Steps,
    state: TrainState,
    *,
    evaluate: Callable[[TrainState], None],
    guard: Guard,
    checkpoints: Checkpointer,
    recorder: Recorder,
    control: Control,
) -> TrainState:
    """Minimise the loss up to the last of `steps`, or until asked to stop; end with a checkpoint.

    Raises CheckpointError at the step after a checkpoint could not be written, and RollBack or
    DivergedError where the guard rejects a step, before anything of that step is recorded or saved.
    """

    def save(state: TrainState) -> TrainState:
        with control.saving(state):
            state = recorder.settle(guard.settle(state))
            recorder.checkpoint(state, checkpoints.save(engine, state))
        return state

    while state.step < steps.end:
        decision = control.decide(state)  # one collective: every rank does the same
        if decision.stop:
            break
        if decision.save:
            state = save(state)
        with control.step(state, again=state.step < recorder.reached_step) as timing:
            step = steps.after(state)
            result = engine.step(step.micro_batches, step.lr, guard.limits(state))
            state = state.advance(next_sequence=step.next_sequence, n_tokens=step.n_tokens)
        state = guard.after_step(state, result)
        state = recorder.step(state, result, step, timing.step_time_s)
        evaluate(state)
    control.end()
    if state.step and checkpoints.last_step != state.step:
        state = save(state)
    checkpoints.wait()
    return state
