"""Counting models: proper distributions, and the entropies of sources whose entropy is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data.entropy import Bigram, split_entropies
from scaling.data.shards import CorpusIndex
from tests.support.corpora import write_corpus


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=30), min_size=1, max_size=3),
    st.integers(0, 6),
)
def test_probabilities_of_all_successors_sum_to_one(streams, before):
    model = Bigram([np.array(stream) for stream in streams], vocab_size=7, eot_id=0)
    pairs = [model.probabilities(np.array([before, after]))[1] for after in range(7)]
    assert min(pairs) > 0
    assert sum(pairs) == pytest.approx(1, rel=1e-12)
    assert model.unigram_V.sum() == pytest.approx(1, rel=1e-12)


def test_markov_chain_is_measured_at_its_entropy(tmp_path):
    """A walk on a circle of 8 that continues with probability 3/4, else stays: unigram log 8,
    bigram H(3/4)."""
    rng = np.random.default_rng(0)
    walk = 1 + np.cumsum(rng.random(60_000) < 0.75) % 8
    train = write_corpus(tmp_path, [[walk[:40_000]]], "train")
    val = write_corpus(tmp_path, [[walk[40_000:]]], "val")
    CorpusIndex("walk", "uint16", train.tokenizer, {**train.splits, **val.splits}).save(tmp_path)
    found = split_entropies(tmp_path)
    chain = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    # 1000 entries share the unigram's add-one mass, of 41000: ln(1.025) more; sampling moves the
    # rest.
    assert found["unigram"]["nats_per_token"] == pytest.approx(
        math.log(8) + math.log(1.025), rel=0.005
    )
    assert found["bigram"]["nats_per_token"] == pytest.approx(chain, rel=0.02)
    n_bytes = val.split("val")[0].n_tokens / 4
    halved = replace(val.split("val")[0], n_bytes=int(n_bytes))
    CorpusIndex("walk", "uint16", train.tokenizer, {**train.splits, "val": (halved,)}).save(
        tmp_path
    )
    bits = split_entropies(tmp_path)["bigram"]["bits_per_byte"]
    assert bits == pytest.approx(found["bigram"]["nats_per_token"] * 4 / math.log(2), rel=1e-3)
