"""What is learnt from a sequence: sequences -> `Batch`, by a registry of objectives.

An objective is a function of an array of sequences (B, T + 1) alone. One that hides or corrupts tokens derives its
randomness from the content, or gets the sequence numbers beside it, so that the data position stays one integer.

Shapes: B sequences, T positions (seq_len), S = T + 1 tokens of a stored sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from scaling.config import ObjectiveConfig
from scaling.errors import ConfigError

IGNORED = -100  # of targets that are not scored: ignore_index of torch.nn.functional.cross_entropy


@dataclass(frozen=True)
class Batch:
    """Inputs and what they are to predict; int64. A target of IGNORED is not scored."""

    tokens_BT: torch.Tensor
    targets_BT: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.tokens_BT.to(device, non_blocking=True), self.targets_BT.to(device, non_blocking=True))

    @property
    def n_targets(self) -> int:
        """Scored targets. Waits for the device when the batch is on one."""
        return int((self.targets_BT != IGNORED).sum())


MakeBatch = Callable[[np.ndarray], Batch]


def causal_lm(sequences_BS: np.ndarray) -> Batch:
    """Predict every next token, end-of-text and the first of the next document included."""
    sequences = torch.from_numpy(np.ascontiguousarray(sequences_BS, dtype=np.int64))
    return Batch(sequences[:, :-1].contiguous(), sequences[:, 1:].contiguous())


_OBJECTIVES: dict[str, MakeBatch] = {"causal_lm": causal_lm}


def make_batch_for(config: ObjectiveConfig) -> MakeBatch:
    """The objective that the configuration names. Raises ConfigError for a name that is not registered."""
    try:
        return _OBJECTIVES[config.kind]
    except KeyError:
        known = ", ".join(sorted(_OBJECTIVES))
        raise ConfigError(f"objective.kind={config.kind} is unknown", fix=f"Use one of: {known}.") from None
