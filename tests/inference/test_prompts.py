"""Text from a prompt for every objective, with models whose answers the test sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from scaling.inference.prompts import complete
from scaling.model import MaskedModel, build_model, initialise
from scaling.train.schedule import lr_at
from tests.support.objectives import CLS, EOT, MASK, PAD, SENTINELS, SEP, byte_tokenizer, objective

SHAPE = ("model.n_layers=1", "model.d_model=32", "model.n_heads=2", "train.seq_len=64")


def completed(kind: str, prompt: str, answer: list[int]) -> tuple[str, list[Any]]:
    """The text, and what the generator was asked for."""
    config, _ = objective(f"objective={kind}", *SHAPE)
    asked: list[Any] = []

    def generate(
        model: Any, prompt_ids: Sequence[int], source_ids: Sequence[int] | None
    ) -> list[int]:
        asked.extend([list(prompt_ids), source_ids])
        return answer

    return complete(config, build_model(config, "meta"), byte_tokenizer(), prompt, generate), asked


def test_what_follows_a_prompt() -> None:
    assert completed("causal_lm", "ab", [*b"cd"]) == ("cd", [[*b"ab"], None])
    assert completed("causal_lm", "", [*b"cd"])[1] == [[EOT], None]
    assert completed("prefix_lm", "ab", [*b"cd"]) == ("cd", [[PAD], [*b"ab"]])
    assert completed("seq2seq", "ab", [*b"cd"]) == ("cd", [[PAD], [*b"ab", EOT]])


def test_spans_go_where_their_sentinels_are() -> None:
    first, second = SENTINELS[0], SENTINELS[1]
    text, asked = completed("span_corruption", "a<mask>b<mask>c", [first, *b"XY", second, *b"Z"])
    assert text == "aXYbZc"
    assert asked == [[PAD], [*b"a", first, *b"b", second, *b"c", EOT]]
    assert completed("span_corruption", "a<mask>b<mask>c", [second, *b"Z"])[0] == "abZc"
    assert completed("span_corruption", "ab", [first, *b"!"])[0] == "ab!"


def test_bert_fills_in_its_likeliest_token() -> None:
    config, _ = objective("objective=masked_lm", *SHAPE, "model.init_std=0.3")
    model = build_model(config)
    assert isinstance(model, MaskedModel)
    initialise(model, 1)
    with torch.no_grad():
        model.masked_head.bias[ord("q")] = 100.0
    assert complete(config, model, byte_tokenizer(), "a<mask>c<mask>", lambda *_: []) == "aqcq"
    seen: list[list[int]] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0].tolist()))
    complete(config, model, byte_tokenizer(), "a<mask>c", lambda *_: [])
    assert seen == [[CLS, ord("a"), MASK, ord("c"), SEP]]


def test_inverse_square_root_rises_and_falls_as_published() -> None:
    schedule = objective("objective=causal_lm", "schedule=inverse_sqrt")[0].schedule

    def rate(n_tokens_seen: int) -> float:
        return lr_at(
            schedule,
            peak_lr=1.0,
            n_tokens_seen=n_tokens_seen,
            n_tokens=10**6,
            warmup_tokens=4000,
            decay_tokens=0,
        )

    # Vaswani et al. 2017, eq. 3: min(step^-0.5, step warmup^-1.5), over its peak warmup^-0.5.
    for step in (1, 100, 3999, 4000, 4001, 16000, 10**6):
        assert rate(step) == pytest.approx(
            min(step**-0.5, step * 4000**-1.5) / 4000**-0.5, rel=1e-9
        )
