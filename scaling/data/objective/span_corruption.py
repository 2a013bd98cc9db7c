"""Predict hidden spans, each of which a sentinel stands for (Raffel et al. 2020, section 3.1.4).

Shapes: B sequences, S tokens of text, U positions of the encoder, T of the decoder.
"""

from __future__ import annotations

import numpy as np
import torch

from scaling.batch import Batch
from scaling.config.run_config import RunConfig
from scaling.data.objective.random import composition, generator
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.planner.cost.lengths import hidden_spans


class SpanCorruption:
    """Encoder: the text with a sentinel for each hidden span, and end-of-text. Decoder: sentinels,
    each with its span, and end-of-text; it begins with padding.

    Visible and hidden spans take turns, visible first; their lengths are uniform over all ways to
    cut the two totals.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        self._seed, self._objective = config.train.seed, config.objective
        self._eot, self._start, self._sentinels = (
            tokenizer.eot_id,
            tokenizer.special("pad"),
            tokenizer.sentinel_ids,
        )

    def __call__(self, sequences_BS: np.ndarray, ks_B: np.ndarray) -> Batch:
        rows = [
            self._row(row_S, generator(self._seed, int(k)))
            for row_S, k in zip(sequences_BS, ks_B, strict=True)
        ]
        source_BU, targets_BT = (
            torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)
        )
        return Batch(shifted(targets_BT, self._start), targets_BT, source_BU)

    def _row(self, text_S: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        hidden, n_spans = hidden_spans(
            len(text_S), self._objective.mask_fraction, self._objective.mean_span
        )
        hidden_lengths = composition(rng, hidden, n_spans)
        visible_lengths = composition(rng, len(text_S) - hidden, n_spans)
        ends = np.cumsum(np.stack([visible_lengths, hidden_lengths], axis=1).ravel())
        parts = np.split(text_S.astype(np.int64), ends[:-1])
        source, target = [], []
        for visible, span, sentinel in zip(parts[::2], parts[1::2], self._sentinels, strict=False):
            source += [visible, [sentinel]]
            target += [[sentinel], span]
        return np.concatenate([*source, [self._eot]]), np.concatenate([*target, [self._eot]])


def shifted(targets_BT: torch.Tensor, start: int) -> torch.Tensor:
    """Inputs of a decoder: its targets one position later, behind a first token."""
    return torch.cat((torch.full_like(targets_BT[:, :1], start), targets_BT[:, :-1]), dim=1)
