"""The loader: whose rows are whose, across ranks, micro-batches and restarts; and a thread that
comes and goes."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.batch import IGNORED, Batch
from scaling.data.objective import causal_lm
from scaling.data.read.loader import Loader
from scaling.data.read.stream import SequenceStream
from scaling.errors import DataError, PlanError
from tests.support.corpora import random_documents, write_corpus


class Numbers:
    """A stream whose k-th sequence is (k, k): what is read shows which was asked for."""

    n_read = 2

    def read(self, ks: np.ndarray) -> np.ndarray:
        return np.stack([ks, ks], axis=1)


def open_loader(stream=None, **changes):
    options = {
        "global_batch_size": 8,
        "dp_rank": 0,
        "dp": 1,
        "micro_batch_size": 4,
        "start_sequence": 0,
    }
    return Loader(stream or Numbers(), make_batch=causal_lm, **(options | changes))


def rows(batches: list[Batch]) -> list[int]:
    return [int(k) for batch in batches for k in batch.tokens_BT[:, 0]]


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ranks_together_read_each_step_in_order_across_restarts(data):
    global_batch_size = data.draw(st.sampled_from([4, 8, 12, 24]))
    position = start = data.draw(st.integers(0, 10**12))
    seen: list[int] = []
    # restarts, each with another dp and micro_batch_size
    for _ in range(data.draw(st.integers(1, 3))):
        dp = data.draw(st.sampled_from([d for d in (1, 2, 4) if global_batch_size % d == 0]))
        per_rank = global_batch_size // dp
        micro_batch_size = data.draw(
            st.sampled_from([m for m in range(1, per_rank + 1) if per_rank % m == 0])
        )
        n_steps = data.draw(st.integers(1, 3))
        ranks = []
        for dp_rank in range(dp):
            options = {
                "dp": dp,
                "dp_rank": dp_rank,
                "micro_batch_size": micro_batch_size,
                "start_sequence": position,
            }
            with open_loader(global_batch_size=global_batch_size, **options) as loader:
                ranks.append(list(islice(loader, n_steps)))
        for step in zip(*ranks, strict=True):
            assert {len(batch.tokens_BT) for batches, _ in step for batch in batches} == {
                micro_batch_size
            }
            assert {next_sequence for _, next_sequence in step} == {position + global_batch_size}
            position += global_batch_size
            seen += [k for batches, _ in step for k in rows(batches)]
    assert seen == list(range(start, position))


def test_batches_hold_the_sequences_of_the_corpus(tmp_path):
    index = write_corpus(tmp_path, random_documents(0))
    stream = SequenceStream(tmp_path, index, "train", 16, seed=3)
    expected = (
        SequenceStream(tmp_path, index, "train", 16, seed=3)
        .read(np.arange(10, 18))
        .astype(np.int64)
    )
    with open_loader(stream, dp_rank=1, dp=2, micro_batch_size=2, start_sequence=10) as loader:
        (first, second), _ = next(loader)
    tokens = torch.cat([first.tokens_BT, second.tokens_BT])
    assert torch.equal(tokens, torch.from_numpy(expected[4:, :-1]))
    assert torch.equal(
        torch.cat([first.targets_BT, second.targets_BT]), torch.from_numpy(expected[4:, 1:])
    )


@pytest.mark.parametrize(
    "changes", [{"dp": 3}, {"micro_batch_size": 3}, {"dp": 2, "micro_batch_size": 8}]
)
def test_batches_that_cannot_be_cut_are_refused(changes):
    with pytest.raises(PlanError, match=r"train\.global_batch_size=8 is not a multiple of dp="):
        open_loader(**changes)
    assert loader_threads() == []


class Failing(Numbers):
    """Fails at the third step."""

    def read(self, ks: np.ndarray) -> np.ndarray:
        if ks.max() >= 16:
            raise DataError("shard train-000007.tar is gone")
        return super().read(ks)


def test_an_error_of_the_thread_is_raised_where_it_belongs():
    with open_loader(Failing()) as loader:
        assert [next_sequence for _, next_sequence in islice(loader, 2)] == [8, 16]
        for _ in range(2):
            with pytest.raises(DataError, match="train-000007"):
                next(loader)


class Slow(Numbers):
    def __init__(self, seconds: float) -> None:
        self.seconds, self.n_read_calls = seconds, 0

    def read(self, ks: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds)
        self.n_read_calls += 1
        return super().read(ks)


def test_waiting_is_measured_and_hidden_behind_work():
    stream = Slow(0.05)
    with open_loader(stream) as loader:
        next(loader)
        assert loader.last_wait_s > 0.03
        while stream.n_read_calls < 3:  # the first, and two in hand
            time.sleep(0.01)


def test_prefetches_no_more_than_asked():
    stream = Slow(0.0)
    asked = []
    stream.read = lambda ks: asked.append(ks) or Numbers.read(stream, ks)
    with open_loader(stream, prefetch_steps=3):
        time.sleep(0.2)
        assert len(asked) == 3


def test_closing_ends_the_thread():
    loader = open_loader()
    next(loader)
    assert len(loader_threads()) == 1
    loader.close()
    assert loader_threads() == []
    with pytest.raises(StopIteration):
        next(loader)


def test_a_dropped_loader_ends_its_thread():
    next(open_loader())
    gc.collect()
    assert loader_threads() == []


def test_a_forgotten_loader_does_not_hold_up_the_exit():
    code = """
from types import SimpleNamespace
from scaling.data.read.loader import Loader
from scaling.data.objective import causal_lm
numbers = SimpleNamespace(read=lambda ks: ks[:, None].repeat(2, axis=1), n_read=2)
loader = Loader(
    numbers, make_batch=causal_lm, global_batch_size=2, dp_rank=0, dp=1,
    micro_batch_size=1, start_sequence=0
)
next(loader)
print("end")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert (done.stdout, done.stderr) == ("end\n", "")


def test_causal_lm_predicts_the_next_token():
    batch = causal_lm(np.array([[1, 2, 3], [4, 5, 6]]), np.arange(2))
    assert batch.tokens_BT.tolist() == [[1, 2], [4, 5]]
    assert batch.targets_BT.tolist() == [[2, 3], [5, 6]]
    assert batch.tokens_BT.dtype == batch.targets_BT.dtype == torch.int64
    assert batch.n_targets == 4
    batch.targets_BT[0, 0] = IGNORED
    assert batch.to("cpu").n_targets == 3
