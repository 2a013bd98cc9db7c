"""What counting alone achieves on a corpus: unigram and bigram models, the baselines of a trained
one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from scaling.data.read.shard_reader import read_shard
from scaling.data.shards import CorpusIndex

DISCOUNT = 0.75  # of bigram counts: Church and Gale 1991 found it for most counts of a large corpus


def split_entropies(directory: str | Path) -> dict[str, dict[str, float]]:
    """Fit on the train split, measure on val: {"unigram" | "bigram": {"nats_per_token",
    "bits_per_byte"}}.

    Every held-out token is scored, end-of-text too; bytes are those of the text. Raises DataError
    as reading shards does.
    """
    index = CorpusIndex.load(directory)
    streams = {
        split: [read_shard(directory, index, shard) for shard in index.split(split)]
        for split in ("train", "val")
    }
    model = Bigram(streams["train"], index.tokenizer.vocab_size, index.tokenizer.eot_id)
    nats = {"unigram": 0.0, "bigram": 0.0}
    for stream in streams["val"]:
        nats["unigram"] -= float(np.log(model.unigram_V[stream]).sum())
        nats["bigram"] -= float(np.log(model.probabilities(stream)).sum())
    shards = index.split("val")
    n_tokens, n_bytes = (
        sum(shard.n_tokens for shard in shards),
        sum(shard.n_bytes for shard in shards),
    )
    return {
        name: {"nats_per_token": value / n_tokens, "bits_per_byte": value / math.log(2) / n_bytes}
        for name, value in nats.items()
    }


class Bigram:
    """p(b | a) = max(c(ab) - d, 0) / c(a) + d n(a) / c(a) p(b), with n(a) distinct successors of a
    and d = DISCOUNT.

    Absolute discounting interpolated with the unigram (Ney, Essen and Kneser 1994); p(b) = (c(b) +
    1) / (n_tokens + V).
    """

    def __init__(self, streams: list[np.ndarray], vocab_size: int, eot_id: int) -> None:
        counts_V = sum(
            (np.bincount(stream, minlength=vocab_size) for stream in streams),
            np.zeros(vocab_size, dtype=np.int64),
        )
        self.unigram_V = (counts_V + 1) / (counts_V.sum() + vocab_size)
        self._vocab_size, self._eot_id = vocab_size, eot_id
        # Pairs a * V + b: sorted keys and counts, since most of the V^2 never occur.
        self._pairs, self._counts = np.unique(
            np.concatenate([self._keys(stream) for stream in streams]), return_counts=True
        )
        first = self._pairs // vocab_size
        self._total_V = np.bincount(first, weights=self._counts, minlength=vocab_size)
        self._successors_V = np.bincount(first, minlength=vocab_size)

    def _keys(self, stream: np.ndarray) -> np.ndarray:
        """Each token with the one before it; before a shard's first token stands end-of-text."""
        before = np.concatenate([[self._eot_id], stream[:-1]]).astype(np.int64)
        return before * self._vocab_size + stream

    def probabilities(self, stream: np.ndarray) -> np.ndarray:
        """Probability of each token of a stream, given the one before it."""
        keys = self._keys(stream)
        place = np.minimum(np.searchsorted(self._pairs, keys), len(self._pairs) - 1)
        counts = np.where(self._pairs[place] == keys, self._counts[place], 0)
        before = keys // self._vocab_size
        total = np.maximum(self._total_V[before], 1)
        spared = np.where(
            self._total_V[before] > 0, DISCOUNT * self._successors_V[before] / total, 1.0
        )
        return np.maximum(counts - DISCOUNT, 0) / total + spared * self.unigram_V[stream]
