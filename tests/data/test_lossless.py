"""Tokenizers of others: any text comes back, each of its bytes is counted, and what loses text is
refused by name."""

from __future__ import annotations

import codecs
import copy
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scaling.config.run_config import TokenizerConfig
from scaling.data.objective.masked_lm import MaskedLM
from scaling.data.prepare.encode import cut
from scaling.data.tokenizer.byte_level import EOT, Tokenizer
from scaling.data.tokenizer.existing import hub_tokenizer
from scaling.data.tokenizer.training import train_tokenizer
from scaling.errors import ConfigError

CORPUS = [
    "def function(self, value):\n        return self.value\n" * 5,
    "naïve café at the mailbox — ✓ " * 9,
]
BYTE = TokenizerConfig(kind="byte", vocab_size=257)
MARKERS = ("    ", "  ", "|||EMAIL|||", "naïve café", "<tool call>", "ab", "日本", "▁")
_CHARACTERS = st.characters(exclude_categories=["Cs"])
ODD = st.lists(
    _CHARACTERS | st.sampled_from([*MARKERS, EOT, " ", "\n", "e\u0301", "\x1e"]), max_size=12
).map("".join)


@cache
def learnt(kind: str) -> bytes:
    size = {"bpe": 300, "wordpiece": 560, "unigram": 259, "byte": 257}[kind]
    return train_tokenizer(TokenizerConfig(kind=kind, vocab_size=size), CORPUS).to_bytes()


def added(content: str, number: int, **flags: bool) -> dict[str, Any]:
    plain = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
        "special": False,
    }
    return {"id": number, "content": content, **plain, **flags}


def raw_bpe(*tokens: dict[str, Any], **sections: Any) -> dict[str, Any]:
    raw = copy.deepcopy(json.loads(learnt("bpe")))
    raw["added_tokens"] += tokens
    return raw | sections


def with_markers() -> dict[str, Any]:
    return raw_bpe(
        *(added(text, 300 + i, single_word=text == "ab") for i, text in enumerate(MARKERS))
    )


def opened(folder: Path, raw: dict[str, Any], **options: Any) -> Tokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return hub_tokenizer(str(folder), BYTE, **options)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """All kinds, as they come out of the file that lies beside shards."""
    found = {"markers": opened(tmp_path_factory.mktemp("markers"), with_markers())}
    for kind in ("bpe", "wordpiece", "unigram", "byte"):
        found[kind] = opened(tmp_path_factory.mktemp(kind), json.loads(learnt(kind)))
    return {kind: Tokenizer.from_bytes(tokenizer.to_bytes()) for kind, tokenizer in found.items()}


@settings(max_examples=50)
@example("def f():\n        return  1\n")
@example("mail |||EMAIL||| naïve café x▁ <tool call>")
@example(f"cab ab {EOT}<|mask|>")
@given(ODD)
def test_streamed_decoded_and_counted_text_is_the_text(tokenizers, text):
    for kind, tokenizer in tokenizers.items():
        (ids,) = tokenizer.encode_batch([text])
        assert tokenizer.decode(ids) == "".join(tokenizer.decode_stream(ids)) == text, kind
        assert tokenizer.token_bytes[ids].sum() == len(text.encode()), kind
        assert set(ids) <= set(tokenizer.ordinary_ids), kind


@settings(max_examples=30)
@given(st.lists(st.integers(0, 307), max_size=12))
def test_streamed_text_is_the_decoded_one_for_any_tokens(tokenizers, ids):
    for tokenizer in tokenizers.values():
        assert tokenizer.decode(ids) == "".join(tokenizer.decode_stream(ids))


def test_added_tokens_are_text_unless_they_are_special(tokenizers):
    tokenizer = tokenizers["markers"]
    ids = [tokenizer.encode_batch([text])[0].tolist() for text in MARKERS]
    assert ids == [[300 + i] for i in range(len(MARKERS))]
    assert tokenizer.token_bytes[300:].tolist() == [len(text.encode()) for text in MARKERS]
    assert tokenizer.ordinary_ids.tolist() == list(range(1, 300 + len(MARKERS)))
    assert tokenizer.token_bytes[tokenizer.eot_id] == 0


def test_masked_tokens_are_replaced_by_added_ones_too(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(with_markers()))
    tokenizer = hub_tokenizer(
        str(tmp_path), TokenizerConfig(kind="byte", vocab_size=261, special_tokens="all")
    )
    objective = SimpleNamespace(whole_words=False, mask_fraction=1.0, sentence_order=False)
    config = SimpleNamespace(
        train=SimpleNamespace(seed=0),
        objective=objective,
        data=SimpleNamespace(attend_across_documents=True),
    )
    (tokens_T,) = MaskedLM(config, tokenizer)(
        np.full((1, 100_000), 65), np.arange(1)
    ).tokens_BT.numpy()
    replaced = set(tokens_T.tolist()) - {
        65,
        tokenizer.special("mask"),
        tokenizer.special("cls"),
        tokenizer.special("sep"),
    }
    assert replaced == set(tokenizer.ordinary_ids.tolist()) - {65}


@settings(max_examples=50)
@given(ODD, st.integers(0, 5))
def test_a_text_is_not_cut_where_an_added_token_may_lie(tokenizers, text, length):
    tokenizer = tokenizers["markers"]
    (whole,) = tokenizer.encode_batch([text])
    parts = [token for ids in tokenizer.encode_batch(list(cut(text, length))) for token in ids]
    assert tokenizer.decode(parts) == text
    # the one marker with a letter before a blank, for which no text is cut
    if "<tool call>" not in text:
        assert parts == whole.tolist() or "naïve café" in text
    assert tokenizer.text_entries == MARKERS


LOSSY = {
    "NFKC": ({"normalizer": {"type": "NFKC"}}, "its normaliser NFKC changes text"),
    "lower": (
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}],
            }
        },
        "its normaliser Lowercase changes text",
    ),
    "accents": (
        {"normalizer": {"type": "StripAccents"}},
        "its normaliser StripAccents changes text",
    ),
    "strip": (
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        "its normaliser Strip changes text",
    ),
    "replace": (
        {"normalizer": {"type": "Replace", "pattern": {"String": "qqq"}, "content": "q"}},
        "its normaliser Replace changes text",
    ),
    "prefix": (
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
        },
        "puts a space before every text",
    ),
    "blanks": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "WhitespaceSplit"},
                    {
                        "type": "ByteLevel",
                        "add_prefix_space": False,
                        "trim_offsets": True,
                        "use_regex": True,
                    },
                ],
            }
        },
        "its pre-tokenizer WhitespaceSplit removes",
    ),
    "metaspace": (
        {
            "pre_tokenizer": {
                "type": "Metaspace",
                "replacement": "▁",
                "prepend_scheme": "always",
                "split": True,
            }
        },
        "its pre-tokenizer Metaspace removes or replaces",
    ),
    "no bytes": ({"pre_tokenizer": None}, "does not give every text back"),
}


@pytest.mark.parametrize("name", LOSSY)
def test_what_loses_text_is_refused_by_name(tmp_path, name):
    sections, message = LOSSY[name]
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, raw_bpe(**sections))


TOKENS = {
    "lstrip": (
        "<x>",
        {"lstrip": True},
        "'<x>' swallows the blanks around it (.|\n)*\"lstrip\": false",
    ),
    "a byte's letter": ("é", {}, "does not give every text back: .* comes back as 'é"),
    "special word": (
        "def",
        {"special": True},
        "does not give every text back: 'def' comes back as ''",
    ),
    "special word after a blank": (
        "Ġself",
        {"special": True},
        "does not give every text back: ' self' comes back as ''",
    ),
}


@pytest.mark.parametrize("name", TOKENS)
def test_added_tokens_that_lose_text_are_refused(tmp_path, name):
    content, flags, message = TOKENS[name]
    raw = json.loads(
        train_tokenizer(TokenizerConfig(kind="bpe", vocab_size=316), CORPUS).to_bytes()
    )
    raw["added_tokens"].append(added(content, raw["model"]["vocab"].get(content, 316), **flags))
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, raw)


def test_models_that_lose_text_are_refused(tmp_path):
    raw = raw_bpe()
    # byte 0x0f, which no merge has
    raw["model"]["vocab"]["unused"] = raw["model"]["vocab"].pop("Ď")
    with pytest.raises(ConfigError, match="comes back as"):
        opened(tmp_path, raw)
    raw = raw_bpe()
    raw["model"]["dropout"] = 0.1
    with pytest.raises(ConfigError, match=r"at random \(dropout=0.1\)"):
        opened(tmp_path, raw)


@pytest.mark.parametrize("others", [[], [{"type": "ByteLevel"}]])
def test_composing_is_left_out_and_told(tmp_path, others):
    told: list[str] = []
    raw = raw_bpe(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, *others]})
    if others:  # which does the work of the pre-tokenizer
        raw["pre_tokenizer"] = None
    tokenizer = opened(
        tmp_path,
        raw,
        report=lambda message, part: told.append(message),
    )
    (ids,) = tokenizer.encode_batch(["e\u0301"])
    assert tokenizer.decode(ids) == "e\u0301"
    assert len(told) == 1
    assert "its normaliser NFC is left out" in told[0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_tokenizer_file_with_a_byte_order_mark_is_read(tmp_path, encoding):
    text = learnt("bpe").decode()
    (tmp_path / "tokenizer.json").write_text(text, encoding=encoding)
    assert (tmp_path / "tokenizer.json").read_bytes()[:2] in (codecs.BOM_UTF8[:2], codecs.BOM_UTF16)
    assert hub_tokenizer(str(tmp_path), BYTE).to_bytes() == learnt("bpe")
