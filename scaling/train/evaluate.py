"""The loss on held-out text: which sequences, when, and what a run must end with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from scaling.batch import IGNORED, Batch
from scaling.checkpoint.state import TrainState
from scaling.config.run_config import RunConfig
from scaling.data.corpus import EVAL_SPLIT, Corpus
from scaling.data.objective import make_batch_for
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.engine.base import Engine
from scaling.parallel.grid import Ranks
from scaling.planner.run_plan import RunPlan
from scaling.runs.goodput import EVALUATING
from scaling.train.control import EVALUATED, Agreement, Clock
from scaling.train.guard import check_end
from scaling.train.recorder import Recorder


@dataclass(frozen=True)
class HeldOut:
    """This rank's batches of the first `train.eval_sequences` held-out sequences, the same for
    every layout. n_bytes: length of the text of every rank's targets."""

    batches: list[Batch]
    n_bytes: int

    @staticmethod
    def read(
        config: RunConfig, plan: RunPlan, corpus: Corpus, tokenizer: Tokenizer, ranks: Ranks
    ) -> HeldOut:
        with corpus.stream(config, EVAL_SPLIT) as stream:
            n_sequences = min(config.train.eval_sequences, stream.n_sequences)
            ks_N = np.arange(n_sequences)
            whole = make_batch_for(config, tokenizer)(stream.read(ks_N), ks_N)
        targets = whole.targets_BT[whole.targets_BT != IGNORED].numpy()
        n_bytes = int(tokenizer.token_bytes[targets].sum())
        return HeldOut(_batches_of(whole, ranks, plan.layout.micro_batch_size), n_bytes)


def _batches_of(whole: Batch, ranks: Ranks, micro_batch_size: int) -> list[Batch]:
    """This rank's batches, as many and as large as every other rank's: rows that fill up the last
    ones have no targets."""
    n_sequences = len(whole.tokens_BT)
    micro_batch_size = min(micro_batch_size, -(-n_sequences // ranks.dp))
    per_rank = -(-n_sequences // (ranks.dp * micro_batch_size)) * micro_batch_size
    batches = []
    for start in range(ranks.dp_rank * per_rank, (ranks.dp_rank + 1) * per_rank, micro_batch_size):
        rows = np.arange(start, start + micro_batch_size)
        # Rows beyond the last sequence repeat it, and count for nothing.
        batch = whole.rows(torch.from_numpy(np.minimum(rows, n_sequences - 1)))
        batch.targets_BT[torch.from_numpy(rows >= n_sequences)] = IGNORED
        batches.append(batch)
    return batches


@dataclass(frozen=True)
class Evaluator:
    """Evaluates after every `every` steps, after step `pause`, and after `n_steps`, the run's
    last."""

    engine: Engine
    held_out: HeldOut
    recorder: Recorder
    clock: Clock
    every: int | None
    pause: int
    n_steps: int

    def __call__(self, state: TrainState) -> None:
        """Evaluate where it is due. Raises DivergedError where a run ends with a loss that is not
        finite."""
        self.clock.at(EVALUATED, state.step)
        if state.step == self.pause or (self.every is not None and state.step % self.every == 0):
            with self.clock.doing(EVALUATING):
                result = self.engine.evaluate(self.held_out.batches)
                self.recorder.evaluation(state, result, self.held_out.n_bytes)
            if state.step == self.n_steps:
                check_end(state.step, result.loss)


def evaluate_end(
    state: TrainState,
    evaluator: Callable[[], Evaluator],
    recorder: Recorder,
    agreement: Agreement,
    ranks: Ranks,
) -> None:
    """Evaluate a finished run whose record has no evaluation of its last step. Raises DivergedError
    for a loss that is not finite."""
    recorded = recorder.val_loss_at(state.step)
    if agreement.any(ranks.is_first and recorded is None)[0]:
        evaluator()(state)
    elif agreement.any(recorded is not None and not math.isfinite(recorded))[0]:
        check_end(state.step, math.nan if recorded is None else recorded)
