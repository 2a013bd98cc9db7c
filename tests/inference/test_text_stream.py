"""Text in pieces: for every tokenizer, any tokens, and spans in any order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config.run_config import TokenizerConfig
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.data.tokenizer.training import train_tokenizer
from scaling.inference.prompts import Question, text_tokens
from tests.support.objectives import EOT, SENTINELS, byte_tokenizer, objective

TEXT = "Der Käfer läuft über die Straße. 素早い茶色の狐 🦊🦊 naïve café ∑ e\u0301 \x00\t\n" * 20
SIZES = {"bpe": 290, "wordpiece": 560, "unigram": 260}


@pytest.fixture(scope="module", params=["byte", *SIZES])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "byte":
        return byte_tokenizer()
    return train_tokenizer(
        TokenizerConfig(kind=request.param, vocab_size=SIZES[request.param]), [TEXT]
    )


@settings(max_examples=200)
@given(data=st.data())
def test_pieces_of_any_tokens_are_their_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Also of bytes that are no UTF-8, special tokens, and ids beyond the vocabulary that an
    embedding may have."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40))
    assert "".join(tokenizer.decode_stream(ids)) == tokenizer.decode(ids)


@given(st.text(max_size=30))
def test_each_character_comes_whole_and_with_its_last_byte(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_batch([text])[0].tolist()
    assert b"".join(map(tokenizer.bytes_of, ids)).decode() == text
    taken: list[int] = []

    def given() -> Iterator[int]:
        for token_id in ids:
            taken.append(token_id)
            yield token_id

    shown = ""
    for piece in tokenizer.decode_stream(given()):
        shown += piece
        # without a character that is begun
        whole = b"".join(map(tokenizer.bytes_of, taken)).decode("utf-8", "ignore")
        assert shown == whole
    assert shown == text


def test_bytes_of_a_tokenizer_read_back(tokenizer: Tokenizer) -> None:
    again = Tokenizer.from_bytes(tokenizer.to_bytes())
    assert [again.bytes_of(i) for i in range(again.vocab_size)] == [
        tokenizer.bytes_of(i) for i in range(tokenizer.vocab_size)
    ]
    np.testing.assert_array_equal(again.encode_batch([TEXT])[0], tokenizer.encode_batch([TEXT])[0])


def filled(source: list[int], answer: list[int]) -> list[int]:
    """Fill gaps by the definition: each gap's first span, wherever the answer has it."""
    spans: dict[int, list[int]] = {}
    for place, token in enumerate(answer):
        if token in SENTINELS and token not in spans:
            after = answer[place + 1 :]
            end = next((n for n, other in enumerate(after) if other in SENTINELS), len(after))
            spans[token] = after[:end]
    return [
        part
        for token in source
        for part in (spans.get(token, []) if token in SENTINELS else [token])
    ]


ANSWERS = st.lists(st.one_of(st.integers(97, 99), st.sampled_from(SENTINELS[:4])), max_size=12)


@settings(max_examples=300)
@given(ANSWERS, st.integers(0, 3))
def test_spans_in_any_order_fill_their_gaps(answer: list[int], n_gaps: int) -> None:
    config, _ = objective("objective=span_corruption")
    source = [ord("x"), *(token for gap in SENTINELS[:n_gaps] for token in (gap, ord("y"))), EOT]
    found = text_tokens(config, byte_tokenizer(), Question([0], source), iter(answer))
    assert list(found) == filled(source, answer)


def test_spans_are_shown_while_they_grow() -> None:
    config, _ = objective("objective=span_corruption")
    first, second = SENTINELS[:2]
    source = [ord("x"), first, ord("y"), second, ord("z")]
    shown: list[list[int]] = []
    out: list[int] = []

    def answer() -> Iterator[int]:
        for token in (first, ord("a"), ord("b"), second, ord("c")):
            yield token
            shown.append(list(out))

    for token in text_tokens(config, byte_tokenizer(), Question([0], source), answer()):
        out.append(token)
    assert [bytes(part).decode() for part in shown] == ["x", "xa", "xab", "xaby", "xabyc"]
    assert bytes(out) == b"xabycz"
