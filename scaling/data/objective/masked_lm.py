"""Predict hidden tokens from both sides (Devlin et al. 2019), hidden again each time a sequence is
read (Liu et al. 2019).

Shapes: B sequences, T positions (seq_len), S tokens of text in a sequence.
"""

from __future__ import annotations

import numpy as np
import torch

from scaling.batch import IGNORED, Batch
from scaling.config.run_config import RunConfig
from scaling.data.objective.random import choose, generator
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.planner.cost.lengths import masked_tokens

KEPT, REPLACED = 0.1, 0.1
"""Parts of the chosen tokens that stay as they are, and that become a random one; the rest become
the mask (Devlin et al. 2019, section 3.1)."""


class MaskedLM:
    """[class] text [separator], or with sentence order [class] A [separator] B [separator].

    End-of-text is never chosen; of the other tokens exactly the fraction is, rounded. With whole
    words it may be a little less: a word that would go beyond it is passed over. Sentence order
    (Lan et al. 2020): A and B follow each other in the text, and are swapped for every second
    sequence; where A ends is uniform over the middle half.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        self._seed, self._objective = config.train.seed, config.objective
        self._separate = not config.data.attend_across_documents
        self._cls, self._sep, self._mask = (
            tokenizer.special(name) for name in ("cls", "sep", "mask")
        )
        self._eot, self._ordinary_V = tokenizer.eot_id, tokenizer.ordinary_ids
        self._begins_word_V = tokenizer.begins_word if config.objective.whole_words else None

    def __call__(self, sequences_BS: np.ndarray, ks_B: np.ndarray) -> Batch:
        rows = [
            self._row(row_S, generator(self._seed, int(k)))
            for row_S, k in zip(sequences_BS, ks_B, strict=True)
        ]
        tokens_BT, targets_BT, segments_BT, classes_B = (
            torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True)
        )
        batch = Batch(tokens_BT, targets_BT)
        if self._separate:
            batch = batch._replace(documents_BT=(tokens_BT == self._eot).cumsum(dim=1))
        if self._objective.sentence_order:
            batch = batch._replace(segments_BT=segments_BT, classes_B=classes_B)
        return batch

    def _row(
        self, text_S: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, targets and segments of T positions, and whether the segments are swapped."""
        shown_S, targets_S = self._hide(text_S.astype(np.int64), rng)
        cls, sep, unscored = ([value] for value in (self._cls, self._sep, IGNORED))
        if not self._objective.sentence_order:
            tokens_T = np.concatenate([cls, shown_S, sep])
            return (
                tokens_T,
                np.concatenate([unscored, targets_S, unscored]),
                np.zeros_like(tokens_T),
                np.array(0),
            )
        end = int(len(text_S) * (0.25 + 0.5 * rng.random()))
        parts = [(shown_S[:end], targets_S[:end]), (shown_S[end:], targets_S[end:])]
        swapped = int(rng.random() < 0.5)
        (a, targets_a), (b, targets_b) = parts[::-1] if swapped else parts
        tokens_T = np.concatenate([cls, a, sep, b, sep])
        targets_T = np.concatenate([unscored, targets_a, unscored, targets_b, unscored])
        return (
            tokens_T,
            targets_T,
            (np.arange(len(tokens_T)) >= len(a) + 2).astype(np.int64),
            np.array(swapped),
        )

    def _hide(self, text_S: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """What is shown of a text, and its targets."""
        chosen = self._choose(text_S, rng)
        shown_S, targets_S = text_S.copy(), np.full_like(text_S, IGNORED)
        targets_S[chosen] = text_S[chosen]
        fate, other = rng.random(len(chosen)), rng.random(len(chosen))
        shown_S[chosen] = np.where(fate < KEPT, text_S[chosen], self._mask)
        replaced = (fate >= KEPT) & (fate < KEPT + REPLACED)
        shown_S[chosen[replaced]] = self._ordinary_V[
            (other[replaced] * len(self._ordinary_V)).astype(np.int64)
        ]
        return shown_S, targets_S

    def _choose(self, text_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Positions of the tokens to predict."""
        candidates = np.flatnonzero(text_S != self._eot)
        if not len(candidates):
            return candidates
        wanted = masked_tokens(len(candidates), self._objective.mask_fraction)
        if self._begins_word_V is None:
            return candidates[choose(rng, len(candidates), wanted)]
        # A word begins where its first piece says so, after end-of-text, and where the sequence
        # begins.
        begins_S = self._begins_word_V[text_S] | (
            np.concatenate([[self._eot], text_S[:-1]]) == self._eot
        )
        words = np.split(candidates, np.flatnonzero(begins_S[candidates])[1:])
        chosen: list[np.ndarray] = []
        for word in rng.random(len(words)).argsort(kind="stable"):
            if len(words[word]) <= wanted:
                chosen.append(words[word])
                wanted -= len(words[word])
        return np.sort(np.concatenate([candidates[:0], *chosen]))
