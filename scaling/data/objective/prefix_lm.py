"""Predict the rest of a text from its beginning, which the encoder reads (Liu et al. 2018; Raffel
et al. 2020, section 3.2.1).

Shapes: B sequences, T tokens of text and positions of encoder and decoder.
"""

from __future__ import annotations

import numpy as np
import torch

from scaling.batch import IGNORED, PADDING, Batch
from scaling.config.run_config import RunConfig
from scaling.data.objective.random import generator
from scaling.data.objective.span_corruption import shifted
from scaling.data.tokenizer.byte_level import Tokenizer


class PrefixLM:
    """The cut is uniform over the text, so that both sides hold padding: about half of their
    positions."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        self._seed, self._pad = config.train.seed, tokenizer.special("pad")

    def __call__(self, sequences_BT: np.ndarray, ks_B: np.ndarray) -> Batch:
        text_BT = torch.from_numpy(np.ascontiguousarray(sequences_BT, dtype=np.int64))
        length = text_BT.shape[1]
        cut_B1 = torch.tensor(
            [[1 + int((length - 1) * generator(self._seed, int(k)).random())] for k in ks_B]
        )
        place_T = torch.arange(length)
        in_source_BT, in_target_BT = place_T < cut_B1, place_T < length - cut_B1
        targets_BT = text_BT.gather(1, (place_T + cut_B1).clamp(max=length - 1))
        return Batch(
            shifted(targets_BT, self._pad).where(in_target_BT, self._pad),
            targets_BT.where(in_target_BT, IGNORED),
            text_BT.where(in_source_BT, self._pad),
            documents_BT=torch.zeros_like(text_BT).where(in_target_BT, PADDING),
            source_documents_BU=torch.zeros_like(text_BT).where(in_source_BT, PADDING),
        )
