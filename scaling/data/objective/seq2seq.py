"""Predict the target of a text pair from its source (Sutskever et al. 2014; Vaswani et al. 2017).

In the corpus a pair is a document: source, separator, target, and after them end-of-text.

Shapes: B sequences, S tokens of a stored window, U positions of the encoder, T of the decoder.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from scaling.batch import IGNORED, PADDING, Batch
from scaling.config.run_config import RunConfig
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.planner.cost.lengths import lengths


class Seq2Seq:
    """The pairs that begin in a window, one behind the other, each a document of its own: sources
    in the encoder, targets in the decoder, where each begins with padding; both end with
    end-of-text.

    A pair begins in the window that holds the end-of-text before it, so each is in exactly one, but
    for the first of a shard and those in its last, incomplete window. One that finds no room is
    left out: whoever is longer than the model's positions, or comes last in a window whose pairs
    are very unequal.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        shape = lengths(config)
        self._stride, self._n_source, self._n_target = shape.stride, shape.inputs, shape.targets
        self._eot, self._pad, self._sep = (
            tokenizer.eot_id,
            tokenizer.special("pad"),
            tokenizer.special("sep"),
        )

    def __call__(self, sequences_BS: np.ndarray, ks_B: np.ndarray) -> Batch:
        rows = [self._row(row_S) for row_S in sequences_BS]
        source_BU, source_documents_BU, tokens_BT, targets_BT, documents_BT = (
            torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)
        )
        return Batch(tokens_BT, targets_BT, source_BU, documents_BT, source_documents_BU)

    def _row(self, row_S: np.ndarray) -> tuple[np.ndarray, ...]:
        source, target = (
            np.full(n, self._pad, dtype=np.int64) for n in (self._n_source, self._n_target)
        )
        source_document, document = (
            np.full(len(side), PADDING, dtype=np.int64) for side in (source, target)
        )
        scored = np.full_like(target, IGNORED)
        at = to = 0
        for number, (one, other) in enumerate(self._pairs(row_S)):
            if at + len(one) + 1 > len(source) or to + len(other) + 1 > len(target):
                continue
            source[at : at + len(one) + 1] = [*one, self._eot]
            source_document[at : at + len(one) + 1] = number
            # the position before holds padding, which is the first token
            target[to + 1 : to + len(other) + 1] = other
            scored[to : to + len(other) + 1] = [*other, self._eot]
            document[to : to + len(other) + 1] = number
            at, to = at + len(one) + 1, to + len(other) + 1
        return source, source_document, target, scored, document

    def _pairs(self, row_S: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Pairs that begin behind an end-of-text of the window, and end in what is read."""
        ends = np.flatnonzero(row_S == self._eot)
        pairs = []
        for begin, end in pairwise(ends):
            if begin < self._stride:
                document = row_S[begin + 1 : end]
                separator = np.flatnonzero(document == self._sep)
                if len(separator):
                    pairs.append((document[: separator[0]], document[separator[0] + 1 :]))
        return pairs
