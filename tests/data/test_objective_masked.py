"""Masked LM: how many tokens, which, and what becomes of them; whole words; sentence order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.batch import IGNORED
from scaling.config.run_config import TokenizerConfig
from scaling.data.objective import make_batch_for
from scaling.data.tokenizer.training import train_tokenizer
from scaling.errors import ConfigError
from tests.support.configs import composed
from tests.support.objectives import CLS, EOT, MASK, PAD, SEP, objective, texts

MLM = ("objective=masked_lm",)


@settings(max_examples=20, deadline=None)
@given(st.integers(8, 200), st.floats(0.05, 0.5), st.integers(0, 2**40))
def test_exactly_the_fraction_is_predicted_and_the_rest_is_untouched(
    seq_len: int, fraction: float, k: int
) -> None:
    config, make_batch = objective(
        *MLM, f"train.seq_len={seq_len}", f"objective.mask_fraction={fraction}"
    )
    text = texts(config, 3)
    text[0, ::4] = EOT
    batch = make_batch(text, np.arange(k, k + 3))
    assert batch.tokens_BT.shape == batch.targets_BT.shape == (3, seq_len)
    for row in range(3):
        tokens, targets = batch.tokens_BT[row].numpy(), batch.targets_BT[row].numpy()
        original = np.array([CLS, *text[row], SEP])
        scored = targets != IGNORED
        n_ordinary = int((text[row] != EOT).sum())
        assert scored.sum() == max(1, round(fraction * n_ordinary))
        assert (targets[scored] == original[scored]).all()
        assert (tokens[~scored] == original[~scored]).all()
        assert not scored[original == EOT].any()


def test_eighty_ten_ten_and_every_place_alike() -> None:
    _, make_batch = objective(*MLM, "train.seq_len=102")
    text = np.tile(np.arange(100), (4000, 1))
    batch = make_batch(text, np.arange(4000))
    scored = batch.targets_BT != IGNORED
    tokens, targets = batch.tokens_BT[scored], batch.targets_BT[scored]
    n = len(tokens)
    assert n == 4000 * 15
    masked, kept = float((tokens == MASK).sum()) / n, float((tokens == targets).sum()) / n
    error = 4 / n**0.5  # four standard errors, at most
    assert masked == pytest.approx(0.8, abs=0.4 * error)
    assert kept == pytest.approx(0.1 + 0.1 / 256, abs=0.3 * error)
    others = tokens[(tokens != MASK) & (tokens != targets)]
    assert set(others.tolist()) == set(range(256))  # never a special token
    places = scored[:, 1:-1].float().mean(dim=0)
    assert float((places - 0.15).abs().max()) < 4.5 * (0.15 * 0.85 / 4000) ** 0.5


def test_masks_change_with_the_number_and_the_seed() -> None:
    config, make_batch = objective(*MLM, "train.seq_len=64")
    text = np.repeat(texts(config, 1), 2, axis=0)
    first, again = make_batch(text, np.array([3, 4])), make_batch(text, np.array([3, 4]))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True) if a is not None)
    assert not torch.equal(first.targets_BT[0], first.targets_BT[1])


def test_whole_words_are_hidden_together() -> None:
    words = [
        f"{a}{b}{a}" for a in ("foo", "ba", "quux", "zy") for b in ("lish", "tion", "er", "wards")
    ]
    rng = np.random.default_rng(0)
    corpus = [" ".join(rng.choice(words, 50)) for _ in range(40)]
    tokenizer = train_tokenizer(
        TokenizerConfig(kind="wordpiece", vocab_size=540, special_tokens="all"), corpus
    )
    whole = (
        "model=bert_tiny",
        "tokenizer.vocab_size=540",
        "train.seq_len=66",
        "objective.whole_words=true",
    )
    make_batch = make_batch_for(composed(*whole), tokenizer)
    stream = np.concatenate(tokenizer.encode_batch(corpus))
    text = np.stack([stream[64 * i : 64 * i + 64] for i in range(40)])
    scored = (make_batch(text, np.arange(40)).targets_BT != IGNORED).numpy()[:, 1:-1]
    n_pieces = []
    for row, hidden in zip(text, scored, strict=True):
        words_of = np.cumsum(tokenizer.begins_word[row])
        for word in np.unique(words_of):
            assert len(set(hidden[words_of == word])) == 1
            n_pieces.append((words_of == word).sum())
    assert max(n_pieces) > 1
    assert 0.1 < scored.mean() <= 10 / 64
    with pytest.raises(ConfigError, match="needs tokenizer=wordpiece"):
        composed(
            "model=bert_tiny",
            "tokenizer=bpe",
            "tokenizer.special_tokens=all",
            "objective.whole_words=true",
        )


def test_sentence_order_swaps_every_second_and_restores() -> None:
    config, make_batch = objective(*MLM, "objective.sentence_order=true", "train.seq_len=43")
    text = texts(config, 600)
    batch = make_batch(text, np.arange(600))
    assert batch.segments_BT is not None
    assert batch.classes_B is not None
    assert float(batch.classes_B.float().mean()) == pytest.approx(0.5, abs=4 * 0.5 / 600**0.5)
    shown = torch.where(batch.targets_BT != IGNORED, batch.targets_BT, batch.tokens_BT)
    ends = set()
    for row, tokens in enumerate(shown.tolist()):
        separator = tokens.index(SEP)
        a, b = tokens[1:separator], tokens[separator + 1 : -1]
        assert tokens[0] == CLS
        assert tokens[-1] == SEP
        assert (b + a if batch.classes_B[row] else a + b) == text[row].tolist()
        assert batch.segments_BT[row].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
        ends.add(len(b) if batch.classes_B[row] else len(a))
    assert ends == set(range(10, 30))


def test_documents_are_numbered_where_they_are_kept_apart() -> None:
    _, make_batch = objective(*MLM, "data.attend_across_documents=false", "train.seq_len=8")
    documents = make_batch(np.array([[5, 6, EOT, 7, 8, 9]]), np.arange(1)).documents_BT
    assert documents is not None
    assert documents.tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]
    _, causal = objective(
        "objective=causal_lm", "data.attend_across_documents=false", "train.seq_len=5"
    )
    documents = causal(np.array([[5, EOT, 7, EOT, 9, 9]]), np.arange(1)).documents_BT
    assert documents is not None
    assert documents.tolist() == [[0, 1, 1, 2, 2]]


def test_special_tokens_have_their_places() -> None:
    assert [EOT, PAD, CLS, SEP, MASK] == [256, 257, 258, 259, 260]
