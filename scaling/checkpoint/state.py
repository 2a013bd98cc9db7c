"""The training state, all that resuming needs beside weights and optimiser states: step, tokens and
data position.

There is no random state to save: every step seeds its own generators from (seed, step, rank). So
dropout after a resume equals that of a run that never stopped.
"""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from scaling.errors import CheckpointError


@dataclass(frozen=True)
class TrainState:
    """The state of training between two steps.

    next_sequence: the data position, in sequences consumed. loss_sum, grad_norm_sum, n_logged: sums
    since the last record, so that a record's means do not depend on where the run was interrupted.
    skipped_steps: updates left out since the start. skipped_in_a_row: updates left out in the
    newest steps. recent_losses, recent_grad_norms: the steps by which the next is judged, oldest
    first (`train.on_spike`). condemned: first sequence of each global batch that is left out for
    good.
    """

    step: int = 0
    n_tokens: int = 0
    next_sequence: int = 0
    loss_sum: float = 0.0
    grad_norm_sum: float = 0.0
    n_logged: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    recent_losses: tuple[float, ...] = ()
    recent_grad_norms: tuple[float, ...] = ()
    condemned: tuple[int, ...] = ()

    def advance(self, *, next_sequence: int, n_tokens: int) -> TrainState:
        """The state after one more step of `n_tokens` tokens."""
        return replace(
            self, step=self.step + 1, n_tokens=self.n_tokens + n_tokens, next_sequence=next_sequence
        )

    def without(self, first_sequences: Iterable[int]) -> TrainState:
        """The state with the global batches that begin at these sequences left out from here
        on."""
        return replace(self, condemned=tuple(sorted({*self.condemned, *first_sequences})))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> TrainState:
        """The state in a manifest. Raises CheckpointError for one of another version, or one that
        is damaged."""
        unknown = sorted(fields.keys() - TrainState.__dataclass_fields__.keys())
        if unknown:
            raise CheckpointError(
                f"the checkpoint's training state has {unknown[0]!r}, which this version does not"
                " know"
            )
        check_state(fields)
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        return TrainState(**known)


_LARGEST = 2**63 - 1
"""The largest whole number that a data position can hold."""


def check_state(fields: dict[str, Any]) -> None:
    """Raise CheckpointError where a known field holds what no training state can; unknown fields
    are ignored."""
    for name, default in TrainState().to_dict().items():
        value = fields.get(name, default)
        whole = isinstance(default, int) or name == "condemned"
        numbers = value if isinstance(default, tuple) else [value]
        if not isinstance(numbers, list | tuple) or not all(
            _fits(number, whole) for number in numbers
        ):
            raise CheckpointError(
                f"the checkpoint's training state is damaged: {name} is {reprlib.repr(value)}"
            )


def _fits(number: Any, whole: bool) -> bool:
    if whole:
        return type(number) is int and 0 <= number <= _LARGEST
    return type(number) in (int, float)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators (dropout) for one rank and one step."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    # 63 bits, so that the seed fits into a signed integer.
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
