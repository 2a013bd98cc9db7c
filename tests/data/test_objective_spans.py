"""Span corruption and prefix LM: nothing is lost, lengths are those of the plan, and (seed, k)
alone decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.batch import IGNORED, PADDING
from scaling.planner.cost.lengths import corrupted_text, hidden_spans, lengths
from tests.support.objectives import EOT, PAD, SENTINELS, objective, texts

SPANS = ("objective=span_corruption",)


def restored(source: list[int], target: list[int]) -> list[int]:
    """The text: every sentinel of the source replaced by what follows it in the target."""
    spans: dict[int, list[int]] = {}
    assert target[-1] == source[-1] == EOT
    for token in target[:-1]:
        if token in SENTINELS:
            current = spans.setdefault(token, [])
            assert not current
        else:
            current.append(token)
    return [
        t for token in source[:-1] for t in (spans.pop(token) if token in SENTINELS else [token])
    ]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([16, 64, 200]), st.integers(0, 2**40), st.integers(0, 1000))
def test_spans_and_the_rest_make_the_text(seq_len: int, k: int, seed: int) -> None:
    config, make_batch = objective(*SPANS, f"train.seq_len={seq_len}", f"train.seed={seed}")
    shape, text = lengths(config), texts(config, 3)
    batch = make_batch(text, np.arange(k, k + 3))
    assert batch.source_BU is not None
    assert batch.source_BU.shape == (3, shape.inputs)
    assert batch.targets_BT.shape == batch.tokens_BT.shape == (3, shape.targets)
    for row in range(3):
        assert (
            restored(batch.source_BU[row].tolist(), batch.targets_BT[row].tolist())
            == text[row].tolist()
        )
        assert batch.tokens_BT[row].tolist() == [PAD, *batch.targets_BT[row, :-1].tolist()]


@pytest.mark.parametrize(("seq_len", "text", "targets"), [(512, 568, 114), (128, 141, 29)])
def test_lengths_are_those_of_t5(seq_len: int, text: int, targets: int) -> None:
    # Raffel et al. 2020 (T5): 568 tokens for 512 inputs and 114 targets.
    assert corrupted_text(seq_len, 0.15, 3.0) == text
    assert sum(hidden_spans(text, 0.15, 3.0)) + 1 == targets


@given(st.integers(8, 2000), st.floats(0.05, 0.6), st.floats(1, 10))
def test_text_fills_the_inputs(seq_len: int, fraction: float, mean_span: float) -> None:
    def inputs(text: int) -> int:
        hidden, spans = hidden_spans(text, fraction, mean_span)
        return text - hidden + spans + 1

    text = corrupted_text(seq_len, fraction, mean_span)
    assert inputs(text) <= seq_len < inputs(text + 1)


def test_spans_are_three_tokens_and_hide_fifteen_percent_everywhere() -> None:
    config, make_batch = objective(*SPANS, "train.seq_len=256")
    text = np.tile(np.arange(300, 300 + lengths(config).stride), (400, 1))
    source = make_batch(text, np.arange(400)).source_BU
    hidden = np.stack([~np.isin(text[0], row) for row in source.numpy()])
    assert hidden.mean() == pytest.approx(0.15, abs=0.002)
    assert hidden.sum(axis=1).min() == hidden.sum(axis=1).max()
    n_spans = (np.diff(hidden.astype(int), axis=1, prepend=0) == 1).sum(axis=1)
    assert set(n_spans) == {round(hidden[0].sum() / 3)}
    lengths_seen = {
        len(run) for row in hidden for run in "".join("x" if h else " " for h in row).split()
    }
    assert {1, 2, 3, 4, 5, 8} <= lengths_seen
    # Visible comes first, so the beginning is hidden less often; four standard errors of the shares
    # of 400 sequences.
    middle = hidden[:, 30:-30].mean(axis=0)
    assert abs(middle - middle.mean()).max() < 4 * (0.15 * 0.85 / 400) ** 0.5 + 0.01


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40))
def test_prefix_and_rest_make_the_text(k: int) -> None:
    config, make_batch = objective("objective=prefix_lm", "train.seq_len=24")
    text = texts(config, 4)
    batch = make_batch(text, np.arange(k, k + 4))
    for row in range(4):
        source = batch.source_BU[row][batch.source_documents_BU[row] != PADDING].tolist()
        target = batch.targets_BT[row][batch.targets_BT[row] != IGNORED].tolist()
        assert source
        assert target
        assert source + target == text[row].tolist()
        n = len(target)
        assert batch.tokens_BT[row].tolist() == [PAD, *target[:-1], *[PAD] * (24 - n)]
        assert (batch.documents_BT[row] != PADDING).tolist() == [True] * n + [False] * (24 - n)


@pytest.mark.parametrize("kind", ["span_corruption", "prefix_lm", "masked_lm"])
def test_seed_and_number_decide_alone(kind: str) -> None:
    config, make_batch = objective(f"objective={kind}", "train.seq_len=32")
    text = np.repeat(texts(config, 1), 6, axis=0)
    whole = make_batch(text, np.arange(6))
    parts = [make_batch(text[k : k + 1], np.array([k])) for k in (5, 2)]
    for part, k in zip(parts, (5, 2), strict=True):
        for one, all_of_them in zip(part, whole, strict=True):
            assert (one is None and all_of_them is None) or torch.equal(one[0], all_of_them[k])
    first = [
        tuple(row.tolist())
        for row in (whole.source_BU if whole.source_BU is not None else whole.tokens_BT)
    ]
    assert len(set(first)) > 3
    other = objective(f"objective={kind}", "train.seq_len=32", "train.seed=7")[1](
        text, np.arange(6)
    )
    assert not torch.equal(other.targets_BT, whole.targets_BT)
