"""Whatever the ranks, threads, micro-batches and restarts: every step has its sequences in their
order, every epoch each once.

Real shards, streams and loaders; a run is played from checkpoint to checkpoint, with kills between
them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.batch import Batch
from scaling.data.corpus import MixtureStream
from scaling.data.mixture import Mixture
from scaling.data.objective import causal_lm
from scaling.data.read.loader import Loader
from scaling.data.read.stream import Sequences, SequenceStream
from scaling.data.shards import CorpusIndex
from tests.support.corpora import EOT, write_corpus

SEQ_LEN, SEED = 8, 3
Row = tuple[int, ...]


@pytest.fixture(scope="module")
def corpora(
    tmp_path_factory: pytest.TempPathFactory,
) -> list[tuple[Path, CorpusIndex, list[np.ndarray]]]:
    """Two corpora in which every token but end-of-text occurs once, so that a row says where it is
    from; and their streams."""
    made, counter = [], 0
    for number, n_shards in enumerate((37, 5)):
        directory = tmp_path_factory.mktemp(f"corpus{number}")
        rng = np.random.default_rng(number)
        shards = []
        for _ in range(n_shards):
            lengths = rng.integers(1, 30, 6)
            shards.append(
                [
                    np.arange(counter + 1 + sum(lengths[:i]), counter + 1 + sum(lengths[: i + 1]))
                    for i in range(6)
                ]
            )
            counter += int(lengths.sum())
        streams = [
            np.concatenate([np.append(document, EOT) for document in shard]) for shard in shards
        ]
        made.append((directory, write_corpus(directory, shards, vocab_size=1 << 16), streams))
    return made


def sequences_of(streams: list[np.ndarray]) -> Counter[Row]:
    """Sequences by the definition: all that begin at multiples of SEQ_LEN and end within their
    shard."""
    return Counter(
        tuple(stream[begin : begin + SEQ_LEN + 1].tolist())
        for stream in streams
        for begin in range(0, len(stream) - SEQ_LEN, SEQ_LEN)
    )


def open_stream(corpora, weights: list[int] | None) -> Sequences:
    streams = [
        SequenceStream(
            directory, index, "train", SEQ_LEN, SEED, max_resident_shards=7, read_ahead=True
        )
        for directory, index, _ in corpora
    ]
    return streams[0] if weights is None else MixtureStream(streams, Mixture(weights, SEED))


@dataclass(frozen=True)
class Stretch:
    """What one start of a run does: `n_steps` steps, then it is killed; the last `n_lost` of them
    were not checkpointed."""

    n_steps: int
    n_lost: int
    dp: int
    micro_batch_size: int
    workers: int


@st.composite
def stretches(draw, global_batch_size: int) -> Stretch:
    dp = draw(st.sampled_from([d for d in (1, 2, 3, 4) if global_batch_size % d == 0]))
    per_rank = global_batch_size // dp
    n_steps = draw(st.integers(1, 6))
    micro_batch_size = draw(
        st.sampled_from([m for m in range(1, per_rank + 1) if per_rank % m == 0])
    )
    return Stretch(
        n_steps, draw(st.integers(0, n_steps)), dp, micro_batch_size, draw(st.integers(1, 4))
    )


def rows_of(batches: list[Batch]) -> list[Row]:
    """Tokens and the last target of each sequence."""
    return [
        (*tokens, targets[-1])
        for batch in batches
        for tokens, targets in zip(batch.tokens_BT.tolist(), batch.targets_BT.tolist(), strict=True)
    ]


def play(
    corpora, weights, stretch: Stretch, global_batch_size: int, position: int
) -> Iterator[tuple[int, list[Row]]]:
    """(data position after it, rows of all ranks in order) of each step of one start."""
    with ExitStack() as opened:
        loaders = []
        for dp_rank in range(stretch.dp):
            stream = opened.enter_context(open_stream(corpora, weights))
            loader = Loader(
                stream,
                make_batch=causal_lm,
                global_batch_size=global_batch_size,
                dp_rank=dp_rank,
                dp=stretch.dp,
                micro_batch_size=stretch.micro_batch_size,
                start_sequence=position,
                workers=stretch.workers,
            )
            loaders.append(opened.enter_context(loader))
        for step in zip(*(islice(loader, stretch.n_steps) for loader in loaders), strict=True):
            assert {len(batch.tokens_BT) for batches, _ in step for batch in batches} == {
                stretch.micro_batch_size
            }
            (after,) = {next_sequence for _, next_sequence in step}
            yield after, [row for batches, _ in step for row in rows_of(batches)]


@settings(max_examples=15)
@given(st.data())
def test_every_step_has_its_sequences_whatever_happens_in_between(corpora, data):
    global_batch_size = data.draw(st.sampled_from([4, 6, 12]))
    weights = data.draw(st.sampled_from([None, [1, 1], [5, 1]]))
    first = position = data.draw(st.integers(0, 50)) * global_batch_size
    seen: dict[int, list[Row]] = {}
    for stretch in data.draw(st.lists(stretches(global_batch_size), min_size=1, max_size=4)):
        ends = [position]
        for after, rows in play(corpora, weights, stretch, global_batch_size, position):
            assert after == ends[-1] + global_batch_size
            assert seen.setdefault(ends[-1], rows) == rows  # a step that is done again is the same
            ends.append(after)
        position = ends[-1 - stretch.n_lost]
    with open_stream(corpora, weights) as stream:
        expected = list(
            map(tuple, stream.read(np.arange(first, max(seen) + global_batch_size)).tolist())
        )
    assert [row for begin in sorted(seen) for row in seen[begin]] == expected


@settings(max_examples=6)
@given(st.data())
def test_an_epoch_reads_every_sequence_once(corpora, data):
    global_batch_size = data.draw(st.sampled_from([6, 12]))
    _, _, streams = corpora[0]
    expected = sequences_of(streams)
    n = sum(expected.values())
    rows: list[Row] = []
    while len(rows) < n:
        stretch = data.draw(stretches(global_batch_size))
        stretch = Stretch(
            20 * stretch.n_steps, 0, stretch.dp, stretch.micro_batch_size, stretch.workers
        )
        for _, of_step in play(corpora, None, stretch, global_batch_size, len(rows)):
            rows += of_step
    assert max(expected.values()) == 1
    assert Counter(rows[:n]) == expected
    assert rows[n : 2 * n] != rows[: len(rows[n : 2 * n])]  # the next epoch has another order


@pytest.mark.parametrize("weights", [None, [2, 1]])
def test_sequence_a_billion_takes_a_seek(corpora, weights):
    """Four sequences there read no more than the four of 42 shards that may hold them."""
    with open_stream(corpora, weights) as stream:
        stream.read(np.arange(10**9, 10**9 + 4))
        parts = [stream] if weights is None else stream._streams
        assert sum(len(part._resident) for part in parts) <= 4
