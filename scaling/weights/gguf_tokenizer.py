"""The tokenizer in a GGUF file's metadata as a tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from scaling.errors import ConfigError

_CONTROL, _USER = 3, 4
"""Types of token: special ones, and added ones that stand for text."""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen 2 cut text into words."""


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


CUTS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_byte_level(True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _byte_level(True)],
    "llama-bpe": [_split(_WORDS.replace("DIGITS", "{1,3}")), _byte_level(False)],
    "qwen2": [_split(_WORDS.replace("DIGITS", "")), _byte_level(False)],
}
"""tokenizer.ggml.pre -> how text is cut before merges."""


def tokenizer_json(metadata: Mapping[str, Any], where: str) -> bytes:
    """Content of a tokenizer.json. Raises ConfigError for a kind that is not read."""
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise ConfigError(
            f"the tokenizer of {where} is of kind {kind!r}, whose tokens are not of bytes, so that "
            "not every text can be restored",
            "tokenizer.ggml.model",
            "What is read: 'gpt2', byte-level merges.",
        )
    if pre not in CUTS:
        raise ConfigError(
            f"the tokenizer of {where} cuts text as {pre!r} does, which is not read",
            "tokenizer.ggml.pre",
            f"What is read: {', '.join(CUTS)}.",
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": type_ == _CONTROL,
        }
        for number, (token, type_) in enumerate(zip(tokens, types, strict=True))
        if type_ in (_CONTROL, _USER)
    ]
    found = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": CUTS[pre]},
        "post_processor": None,
        "decoder": _byte_level(True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: number for number, token in enumerate(tokens)},
            # the format has no empty list, so one of bytes alone has an empty merge
            "merges": [merge for merge in metadata.get("tokenizer.ggml.merges", ()) if merge],
        },
    }
    return json.dumps(found).encode()
