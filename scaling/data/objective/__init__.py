"""What is learnt from a sequence: sequences -> `Batch`, by a registry of objectives.

An objective is a function of sequences (B, S) and their numbers in the order of the run: one that
hides or corrupts tokens derives its randomness from (seed, number) alone, so that the data position
stays one integer.

Shapes: B sequences, S tokens of a stored sequence (`planner/cost/lengths.py` says how many an
objective asks for).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scaling.batch import Batch
from scaling.config.plugins import added
from scaling.config.run_config import RunConfig
from scaling.data.objective.causal_lm import CausalLM, causal_lm
from scaling.data.objective.masked_lm import MaskedLM
from scaling.data.objective.prefix_lm import PrefixLM
from scaling.data.objective.seq2seq import Seq2Seq
from scaling.data.objective.span_corruption import SpanCorruption
from scaling.data.tokenizer.byte_level import Tokenizer

__all__ = ["MakeBatch", "causal_lm", "make_batch_for"]

MakeBatch = Callable[[np.ndarray, np.ndarray], Batch]
"""(sequences_BS, ks_B) -> Batch."""

_OBJECTIVES: dict[str, Callable[[RunConfig, Tokenizer], MakeBatch]] = {
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "span_corruption": SpanCorruption,
    "prefix_lm": PrefixLM,
    "seq2seq": Seq2Seq,
}


def make_batch_for(config: RunConfig, tokenizer: Tokenizer) -> MakeBatch:
    """The objective of a run. Raises DataError when the tokenizer lacks a token that it needs."""
    kind = config.objective.kind
    make = _OBJECTIVES[kind] if kind in _OBJECTIVES else added("objectives")[kind].load()
    made: MakeBatch = make(config, tokenizer)
    return made
