"""Going back to the last good checkpoint, and on from there without the sequences of a bad step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from scaling.checkpoint.saver import Checkpointer
from scaling.checkpoint.state import TrainState
from scaling.config.run_config import TrainConfig
from scaling.engine.base import Engine
from scaling.errors import DivergedError
from scaling.train.guard import Guard, RollBack
from scaling.train.recorder import Recorder


@dataclass
class Recovery:
    """Trains, and goes back whenever the guard asks for it. Every method is collective over the
    ranks.

    on_event(kind, **fields) receives "rolled_back", on the first rank.
    """

    train: TrainConfig
    engine: Engine
    guard: Guard
    checkpoints: Checkpointer
    recorder: Recorder
    on_event: Callable[..., None]
    _returns: Counter[int] = field(default_factory=Counter)

    def run(self, train_from: Callable[[TrainState], TrainState], state: TrainState) -> TrainState:
        """Train to the end. train_from: trains from a state, which the engine holds."""
        if self.guard.rolls_back and self.checkpoints.last_step is None:
            self.checkpoints.save(self.engine, state)  # the initial weights, to go back to
        while True:
            try:
                return train_from(state)
            except RollBack as bad:
                state = self._go_back(bad).without([*state.condemned, bad.first_sequence])

    def _go_back(self, bad: RollBack) -> TrainState:
        """Restore the last checkpoint; returns its state. Raises DivergedError if that has been
        tried too often."""
        self.checkpoints.wait()  # the newest may still be on its way to the disk
        restored = self.checkpoints.restore(self.engine)
        assert restored is not None, "`run` saves one before the first step"
        end = bad.first_sequence + self.train.global_batch_size
        # Counted for each checkpoint: a newer one means that training has got further.
        self._returns[restored.step] += 1
        if self._returns[restored.step] > self.train.max_rollbacks:
            raise DivergedError(
                f"step {bad.step} on sequences {bad.first_sequence} to {end - 1} is bad too"
                f" ({bad.reason}), after {self.train.max_rollbacks} rollbacks to step"
                f" {restored.step}",
                "train.max_rollbacks",
                f"Remove the checkpoint of step {restored.step} to go back further, or begin a run"
                " with a smaller optim.lr.",
            )
        self.on_event(
            "rolled_back",
            step=restored.step,
            from_step=bad.step,
            sequences=[bad.first_sequence, end],
            reason=bad.reason,
        )
        self.recorder.rewind(restored, reached_step=bad.step)
        return restored
