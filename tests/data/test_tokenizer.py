"""Tokenizers: exact round trips, exact byte counts, equal results."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.config.run_config import TokenizerConfig
from scaling.data.shards import CorpusIndex, TokenizerInfo
from scaling.data.tokenizer.byte_level import EOT, load_tokenizer
from scaling.data.tokenizer.training import train_tokenizer
from scaling.errors import ConfigError, DataError
from tests.support.corpora import BPE, BYTE

TEXTS = [
    "def function(self, value):\n    return self.value + value\n" * 5,
    "the quick brown fox — jumps ✓ " * 9,
    "été\r\n" * 9,
]
SMALL = TokenizerConfig(kind="bpe", vocab_size=300)
TOKENIZERS = {"bpe": train_tokenizer(SMALL, TEXTS), "byte": train_tokenizer(BYTE, TEXTS)}
texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    [EOT, f"a{EOT}b", "\r\n \t\x00", "  def"]
)
both = pytest.mark.parametrize("kind", list(TOKENIZERS))


@both
@given(st.lists(texts, max_size=4))
def test_round_trip_and_bytes_are_exact(kind, documents):
    tokenizer = TOKENIZERS[kind]
    for text, ids in zip(documents, tokenizer.encode_batch(documents), strict=True):
        assert ids.dtype == np.int64
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())
        assert tokenizer.eot_id not in ids


def test_byte_tokens_are_the_bytes():
    tokenizer = TOKENIZERS["byte"]
    text = "a\x00é✓"
    assert tokenizer.encode_batch([text])[0].tolist() == list(text.encode())
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (257, 256)


@both
def test_end_of_text_has_no_bytes(kind):
    tokenizer = TOKENIZERS[kind]
    assert len(tokenizer.token_bytes) == tokenizer.vocab_size
    assert tokenizer.token_bytes[tokenizer.eot_id] == 0
    assert np.delete(tokenizer.token_bytes, tokenizer.eot_id).min() == 1
    assert tokenizer.decode([tokenizer.eot_id, *tokenizer.encode_batch(["x"])[0]]) == "x"


def test_bpe_has_as_many_entries_as_asked_for_and_shortens_text():
    tokenizer = TOKENIZERS["bpe"]
    assert tokenizer.vocab_size == 300
    assert len(tokenizer.encode_batch(TEXTS[:1])[0]) < 0.6 * len(TEXTS[0])


def test_same_texts_same_tokenizer(tmp_path):
    for number in range(2):
        train_tokenizer(SMALL, TEXTS).save(tmp_path / str(number))
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_too_little_text():
    with pytest.raises(
        ConfigError,
        match=r"too short for tokenizer.vocab_size=400: merging all of it gives 25\d entries",
    ):
        train_tokenizer(BPE, ["a b"])


@pytest.fixture
def saved(tmp_path):
    """A directory with a tokenizer, and the index that describes it."""
    TOKENIZERS["bpe"].save(tmp_path / "tokenizer.json")
    digest = hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    return tmp_path, CorpusIndex(
        "c", "uint16", TokenizerInfo("tokenizer.json", digest, 300, 0, "bpe"), {}
    )


def test_saved_tokenizer_is_the_same(saved):
    loaded = load_tokenizer(*saved)
    for text, ids in zip(TEXTS, loaded.encode_batch([*TEXTS]), strict=True):
        assert ids.tolist() == TOKENIZERS["bpe"].encode_batch([text])[0].tolist()
    assert loaded.encode_batch([EOT])[0].tolist() != [loaded.eot_id]


def test_tokenizer_file_that_is_not_the_one_of_the_index(saved):
    directory, index = saved
    with pytest.raises(
        DataError, match="has 300 entries and end-of-text 0, and the index says 301 and 0"
    ):
        load_tokenizer(
            directory, replace(index, tokenizer=replace(index.tokenizer, vocab_size=301))
        )
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"has sha256 .*, and the index says"):
        load_tokenizer(directory, index)
    digest = hashlib.sha256(b"{}").hexdigest()
    with pytest.raises(DataError, match="is not a tokenizer"):
        load_tokenizer(directory, replace(index, tokenizer=replace(index.tokenizer, sha256=digest)))
    (directory / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="no such file"):
        load_tokenizer(directory, index)
