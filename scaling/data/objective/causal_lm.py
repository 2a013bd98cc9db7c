"""Predict every next token (Radford et al. 2018).

Shapes: B sequences, T positions (seq_len), S = T + 1 tokens of a stored sequence.
"""

from __future__ import annotations

import numpy as np
import torch

from scaling.batch import Batch
from scaling.config.run_config import RunConfig
from scaling.data.tokenizer.byte_level import Tokenizer


def causal_lm(sequences_BS: np.ndarray, ks_B: np.ndarray) -> Batch:
    """End-of-text is predicted, and after it the first token of the next document.

    Both sides in one piece of memory: glibc returns what is freed at the end of its heap to the
    system where that is more than twice the largest piece freed before (mallopt(3)), and pages that
    come again cost ten times the copying.
    """
    return Batch(
        *torch.from_numpy(np.stack([sequences_BS[:, :-1], sequences_BS[:, 1:]], dtype=np.int64))
    )


class CausalLM:
    """Every token is predicted from those before it. With data.attend_across_documents=false,
    positions know their document: end-of-text is the first of the one it precedes."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        self._separate, self._eot_id = not config.data.attend_across_documents, tokenizer.eot_id

    def __call__(self, sequences_BS: np.ndarray, ks_B: np.ndarray) -> Batch:
        batch = causal_lm(sequences_BS, ks_B)
        if not self._separate:
            return batch
        return batch._replace(documents_BT=(batch.tokens_BT == self._eot_id).cumsum(dim=1))
