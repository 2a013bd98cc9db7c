"""Which sequence lies where: pure arithmetic over shard lengths.

The k-th training sequence is a function of (shard list, seed, seq_len, k) alone, computed in
constant time, so that the data position of a run is one integer and resuming costs a seek.
"""

from __future__ import annotations

import hashlib

import numpy as np

from scaling.data.shards import ShardInfo
from scaling.errors import DataError

WINDOW_SHARDS = 16
"""Shards whose sequences are mixed. Assumption: enough to decorrelate, few enough to keep in memory
(2 MB each by default).

The order of sequences depends on it: changing it changes every run.
"""


class SequenceOrder:
    """Sequence number k -> the shard and the token where it starts.

    The token stream of each shard (its documents joined, each followed by end-of-text) is cut into
    sequences of seq_len + overlap tokens with stride seq_len; what is left at the end of the shard
    is dropped. An epoch takes every sequence once: shards in a permuted order, in windows of
    `window_shards`, and the sequences of a window permuted. Every epoch (k // n_sequences) permutes
    again. shuffle=False keeps the order of the index, in every epoch.
    """

    def __init__(
        self,
        shards: tuple[ShardInfo, ...],
        seq_len: int,
        seed: int,
        *,
        overlap: int = 1,
        window_shards: int = WINDOW_SHARDS,
        shuffle: bool = True,
    ) -> None:
        assert min(seq_len, window_shards) > 0
        assert overlap >= 0
        self.shards, self.seq_len, self.overlap, self.seed = shards, seq_len, overlap, seed
        self.window_shards, self.shuffle = window_shards, shuffle
        tokens_S = np.array([shard.n_tokens for shard in shards], dtype=np.int64)
        self.sequences_S = np.maximum(tokens_S - overlap, 0) // seq_len
        self.n_sequences = int(self.sequences_S.sum())
        kept_S = np.where(self.sequences_S > 0, self.sequences_S * seq_len + overlap, 0)
        self.n_tokens_kept = int(kept_S.sum())
        self.n_tokens_dropped = int((tokens_S - kept_S).sum())
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def locate(self, k: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard (place in the shard list) and offset (tokens into its stream) of the k-th sequence,
        both int64 like k.

        Raises DataError when no shard is long enough for one sequence.
        """
        ks = np.asarray(k, dtype=np.int64)
        assert (ks >= 0).all(), "sequences are numbered from 0"
        if self.n_sequences == 0:
            longest = max((shard.n_tokens for shard in self.shards), default=0)
            raise DataError(
                f"no shard holds a sequence of {self.seq_len + self.overlap} tokens: "
                f"the longest of {len(self.shards)} has {longest}",
                where=f"train.seq_len={self.seq_len}",
                fix="Use a shorter train.seq_len, a larger data.shard_tokens or more text.",
            )
        epochs, places = np.divmod(ks, self.n_sequences)
        shard, offset = np.empty_like(ks), np.empty_like(ks)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            shard[chosen], offset[chosen] = self._locate_in_epoch(int(epoch), places[chosen])
        return shard, offset

    def window_of(self, k: int) -> tuple[int, int]:
        """Epoch and number of the window in which sequence k lies."""
        epoch, place = divmod(k, self.n_sequences)
        _, starts_S = self._epoch(epoch)
        return epoch, int(np.searchsorted(starts_S, place, side="right") - 1) // self.window_shards

    def window_after(self, window: tuple[int, int]) -> tuple[int, int]:
        epoch, number = window
        n_windows = -(-int(np.count_nonzero(self.sequences_S)) // self.window_shards)
        return (epoch, number + 1) if number + 1 < n_windows else (epoch + 1, 0)

    def shards_of(self, window: tuple[int, int]) -> list[int]:
        """Places in the shard list of the shards of a window."""
        order_S, _ = self._epoch(window[0])
        found: list[int] = order_S[
            window[1] * self.window_shards : (window[1] + 1) * self.window_shards
        ].tolist()
        return found

    def _locate_in_epoch(self, epoch: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order_S, starts_S = self._epoch(epoch)
        if self.shuffle:
            places = self._mix_windows(epoch, starts_S, places)
        rank = np.searchsorted(starts_S, places, side="right") - 1
        return order_S[rank], (places - starts_S[rank]) * self.seq_len

    def _mix_windows(self, epoch: int, starts_S: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Places in an epoch, each permuted within its window of shards."""
        edges = np.append(starts_S[:: self.window_shards], self.n_sequences)
        window = np.searchsorted(edges, places, side="right") - 1
        mixed = np.empty_like(places)
        for w in np.unique(window):
            chosen = window == w
            length = int(edges[w + 1] - edges[w])
            mixed[chosen] = edges[w] + permute(
                places[chosen] - edges[w], length, f"{self.seed}/{epoch}/window/{w}"
            )
        return mixed

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards with at least one sequence in the epoch's order, and the place of the first
        sequence of each."""
        if epoch not in self._epochs:
            while len(self._epochs) > 1:  # a batch spans two epochs at most
                del self._epochs[next(iter(self._epochs))]
            used = np.flatnonzero(self.sequences_S)
            if self.shuffle:
                used = used[permute(np.arange(len(used)), len(used), f"{self.seed}/{epoch}/shards")]
            counts = self.sequences_S[used]
            self._epochs[epoch] = used, np.cumsum(counts) - counts
        return self._epochs[epoch]


# Luby and Rackoff 1988: 4 suffice for strong pseudo-randomness of wide halves; narrow ones get
# twice as many
_ROUNDS = 8


def permute(places: np.ndarray, length: int, key: str) -> np.ndarray:
    """Image of each of `places` under a pseudo-random permutation of range(length) that `key`
    names.

    A balanced Feistel network over the next even number of bits, walked along its cycle until the
    image is in range (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): a bijection
    of any length, in constant memory.
    """
    if length <= 1:
        return places.copy()
    half_bits = ((length - 1).bit_length() + 1) // 2
    round_keys = np.frombuffer(hashlib.shake_256(key.encode()).digest(8 * _ROUNDS), dtype="<u8")
    image = _feistel(places.astype(np.uint64), half_bits, round_keys)
    while (outside := image >= length).any():
        image[outside] = _feistel(image[outside], half_bits, round_keys)
    return image.astype(np.int64)


def _feistel(x: np.ndarray, half_bits: int, round_keys: np.ndarray) -> np.ndarray:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = x >> shift, x & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix64(right + round_key) & mask)
    return (left << shift) | right


def _mix64(z: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64 (Steele, Lea and Flood 2014), modulo 2^64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
