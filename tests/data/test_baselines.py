"""The baseline of an objective is the unigram entropy of the tokens it scores, with markers at
none."""

from __future__ import annotations

import numpy as np
import pytest

from scaling.batch import IGNORED
from scaling.data.baselines import target_nats
from tests.support.objectives import byte_tokenizer, objective, texts


@pytest.mark.parametrize("name", ["masked_lm", "span_corruption", "prefix_lm"])
def test_of_a_uniform_model_it_is_the_share_of_words_times_its_entropy(name: str) -> None:
    config, make_batch = objective(f"objective={name}", "train.seq_len=64")
    ks_N = np.arange(4)
    batch, tokenizer = make_batch(texts(config, 4), ks_N), byte_tokenizer()
    targets = batch.targets_BT[batch.targets_BT != IGNORED].numpy()
    markers = sum(int(token) in {tokenizer.eot_id, *tokenizer.sentinel_ids} for token in targets)
    assert (markers > 0) == (name == "span_corruption")
    nats = target_nats(np.full(config.vocab_size, 2.0), batch, tokenizer)
    assert nats == pytest.approx(2 * (1 - markers / len(targets)))
