"""WordPiece and Unigram over bytes: text is restored exactly, the vocabulary has its layout,
special tokens stay out of text."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from scaling.config.run_config import TokenizerConfig
from scaling.data.tokenizer.byte_level import INSIDE, Tokenizer
from scaling.data.tokenizer.training import LONGEST_WORD, train_tokenizer
from scaling.errors import DataError

SIZES = {"bpe": 420, "wordpiece": 700, "unigram": 420, "byte": 264}
KINDS = list(SIZES)


def corpus() -> list[str]:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(2, 9))) for _ in range(300)]
    return [" ".join(rng.choice(words, 120)) + " größer ✓\n\tdef f(x):" for _ in range(40)]


@cache
def trained(kind: str) -> Tokenizer:
    config = TokenizerConfig.model_validate(
        {"kind": kind, "vocab_size": SIZES[kind], "special_tokens": "all", "n_sentinels": 3}
    )
    return train_tokenizer(config, corpus())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_is_restored_and_its_bytes_are_counted(kind: str, text: str) -> None:
    tokenizer = trained(kind)
    ids = tokenizer.encode_batch([text])[0]
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    [
        "a" * (3 * LONGEST_WORD + 1),
        "<|mask|> <|span_0|><|endoftext|>",
        f"{INSIDE}a {INSIDE} ##b",
        "\0\x1e\r\n \x85",
    ],
)
def test_hard_texts_are_restored_without_special_tokens(kind: str, text: str) -> None:
    tokenizer = trained(kind)
    ids = tokenizer.encode_batch([text])[0]
    assert tokenizer.decode(ids) == text
    assert set(ids) <= set(tokenizer.ordinary_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_their_places(kind: str) -> None:
    tokenizer, first = trained(kind), 256 if kind == "byte" else 0
    assert tokenizer.vocab_size == SIZES[kind]
    assert [
        tokenizer.eot_id,
        *(tokenizer.special(name) for name in ("pad", "cls", "sep", "mask")),
    ] == list(range(first, first + 5))
    assert tokenizer.sentinel_ids == list(range(first + 5, first + 8))
    assert len(tokenizer.ordinary_ids) == SIZES[kind] - 8
    assert not tokenizer.token_bytes[[*range(first, first + 8)]].any()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unigram"])
def test_the_same_texts_give_the_same_tokenizer_which_can_be_saved(
    kind: str, tmp_path: Path
) -> None:
    one, path = trained(kind), tmp_path / "tokenizer.json"
    trained.cache_clear()
    trained(kind).save(tmp_path / "again.json")
    one.save(path)
    assert path.read_bytes() == (tmp_path / "again.json").read_bytes()
    loaded = Tokenizer.from_bytes(path.read_bytes())
    text = corpus()[0]
    assert (loaded.encode_batch([text])[0] == one.encode_batch([text])[0]).all()
    assert (loaded.special("mask"), loaded.sentinel_ids) == (one.special("mask"), one.sentinel_ids)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_frequent_words_become_short(kind: str) -> None:
    text = corpus()[1]
    assert len(trained(kind).encode_batch([text])[0]) < 0.85 * len(text)


def test_words_begin_where_wordpiece_says() -> None:
    tokenizer = trained("wordpiece")
    ids = tokenizer.encode_batch(["abc xyzzyq (foo)"])[0]
    pieces = [tokenizer.decode([i]) for i in ids]
    words = [place for place, i in enumerate(ids) if tokenizer.begins_word[i]]
    starts = np.split(np.array(pieces, dtype=object), words[1:])
    assert ["".join(word) for word in starts] == ["abc", " xyzzyq", " (", "foo", ")"]


def test_a_missing_special_token_is_named() -> None:
    plain = train_tokenizer(TokenizerConfig(kind="byte", vocab_size=257), [])
    with pytest.raises(DataError, match=r"no token <\|mask\|>(.|\n)*special_tokens=all"):
        plain.special("mask")
    assert plain.sentinel_ids == []


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [("wordpiece", 519, "need 520"), ("unigram", 263, "need 264"), ("byte", 265, "exactly 264")],
)
def test_sizes_that_cannot_be_are_refused(kind: str, size: int, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TokenizerConfig.model_validate(
            {"kind": kind, "vocab_size": size, "special_tokens": "all", "n_sentinels": 3}
        )
