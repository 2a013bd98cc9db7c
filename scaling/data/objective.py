"""What is learnt from a sequence: sequences -> `Batch`, by a registry of objectives.

An objective is a function of sequences (B, S) and their numbers in the order of the run: one that hides or corrupts tokens
derives its randomness from (seed, number) alone, so that the data position stays one integer.

Shapes: B sequences, T positions (seq_len), S = T + 1 tokens of a stored sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from scaling.config import ObjectiveConfig
from scaling.errors import ConfigError
from scaling.model.batch import Batch

MakeBatch = Callable[[np.ndarray, np.ndarray], Batch]
"""(sequences_BS, ks_B) -> Batch."""


def causal_lm(sequences_BS: np.ndarray, ks_B: np.ndarray) -> Batch:
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
