"""What a step is made of: this rank's micro-batches, a learning rate and random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from scaling.batch import Batch
from scaling.checkpoint.state import TrainState, seed_step
from scaling.config.run_config import RunConfig
from scaling.data.objective import make_batch_for
from scaling.data.read.loader import Loader
from scaling.data.read.stream import Sequences
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.parallel.grid import Ranks
from scaling.planner.run_plan import RunPlan
from scaling.train.control import COMPUTING, Clock
from scaling.train.schedule import lr_after


class Batches(Protocol):
    """Iterates over (micro-batches, data position after the step). `last_wait_s`: seconds for which
    the last one kept its consumer waiting."""

    last_wait_s: float

    def __iter__(self) -> Iterator[tuple[Sequence[Batch], int]]: ...


class Uncondemned:
    """Batches without those whose global batch begins at a condemned sequence: they are read and
    dropped."""

    def __init__(self, batches: Batches, condemned: Sequence[int], global_batch_size: int) -> None:
        self._batches, self._global_batch_size = batches, global_batch_size
        self._condemned = frozenset(condemned)
        self.last_wait_s = 0.0

    def __iter__(self) -> Iterator[tuple[Sequence[Batch], int]]:
        wait_s = 0.0
        for micro_batches, next_sequence in self._batches:
            wait_s += self._batches.last_wait_s
            if next_sequence - self._global_batch_size not in self._condemned:
                self.last_wait_s, wait_s = wait_s, 0.0
                yield micro_batches, next_sequence


@dataclass(frozen=True)
class Step:
    """next_sequence: the data position after it. n_tokens: of the global batch. data_wait_s: how
    long training waited for the batch."""

    micro_batches: Sequence[Batch]
    next_sequence: int
    n_tokens: int
    lr: float
    data_wait_s: float


class Steps:
    """The steps of one rank from a state on, up to step `end`."""

    def __init__(
        self,
        batches: Batches,
        *,
        end: int,
        n_tokens: int,
        lr_after: Callable[[int], float],
        seed: Callable[[int], None],
        clock: Clock,
    ) -> None:
        self._batches, self._iterator = batches, iter(batches)
        self.end, self._n_tokens, self._lr_after = end, n_tokens, lr_after
        self._seed, self._clock = seed, clock

    def after(self, state: TrainState) -> Step:
        """The step that follows `state`, whose random numbers are seeded from here on."""
        micro_batches, next_sequence = next(self._iterator)
        self._clock.at(COMPUTING, state.step)
        # Each step has its own seed, so there is no random state to save or to restore.
        self._seed(state.step)
        lr = self._lr_after(state.n_tokens + self._n_tokens)
        return Step(micro_batches, next_sequence, self._n_tokens, lr, self._batches.last_wait_s)


@contextlib.contextmanager
def open_steps(
    config: RunConfig,
    plan: RunPlan,
    ranks: Ranks,
    stream: Sequences,
    tokenizer: Tokenizer,
    state: TrainState,
    *,
    end: int,
    clock: Clock,
    on_event: Callable[..., None],
) -> Iterator[Steps]:
    """The steps after `state`, read ahead by threads. on_event(kind, **fields) receives
    "data_stalled"."""

    def on_stall(waited_s: float, shards: list[str]) -> None:
        on_event("data_stalled", rank=ranks.rank, waited_s=round(waited_s, 1), shards=shards)

    global_batch_size = config.train.global_batch_size
    with Loader(
        stream,
        make_batch=make_batch_for(config, tokenizer),
        global_batch_size=global_batch_size,
        dp_rank=ranks.dp_rank,
        dp=ranks.dp,
        micro_batch_size=plan.layout.micro_batch_size,
        start_sequence=state.next_sequence,
        workers=config.data.loader_workers,
        on_stall=on_stall,
        stall_after_s=config.data.stall_after_s,
    ) as loader:
        yield Steps(
            Uncondemned(loader, state.condemned, global_batch_size),
            end=end,
            n_tokens=plan.tokens_per_step,
            lr_after=lr_after(config, plan),
            # Tensor parallel ranks hold parts of the same activations: one seed for all of them.
            seed=lambda step: seed_step(config.train.seed, step, ranks.rank // ranks.tp),
            clock=clock,
        )
