"""Beam search against all continuations there are, its penalty and its end; filling masks."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.inference.beam_search import beam_search
from scaling.inference.gaps import fill
from scaling.inference.sampling import generate
from scaling.model import GenerativeModel, MaskedModel, build_model, initialise
from tests.support.configs import composed
from tests.support.exact import ATOL, RTOL
from tests.support.objectives import MASK

V, EOS, START = 5, 0, 1
DOUBLE = pytest.mark.usefixtures("double")
SHAPE = (
    "model.n_layers=2",
    "model.d_model=32",
    "model.n_heads=2",
    "train.seq_len=16",
    "model.dropout=0",
)


def tiny(model: str, seed: int) -> GenerativeModel:
    """A model of five tokens, sure enough of itself that its preferences differ."""
    config = composed(f"model={model}", *SHAPE)
    config = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": V})})
    made = build_model(config)
    assert isinstance(made, GenerativeModel)
    initialise(made, seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return made.eval()


def all_scores(
    model: GenerativeModel, source: list[int] | None, n: int, alpha: float
) -> list[tuple[float, list[int]]]:
    """Every continuation: ended, or n tokens long, by full forwards without a cache."""
    encoded = None if source is None else model.encode(torch.tensor([source]))
    others = [token for token in range(V) if token != EOS]
    scores = []
    for length in range(n + 1):
        for tokens in itertools.product(others, repeat=length):
            targets = [*tokens, EOS] if length < n else list(tokens)
            with torch.no_grad():
                log_p = model(torch.tensor([[START, *targets[:-1]]]), source=encoded)[
                    0
                ].log_softmax(dim=-1)
            total = float(sum(log_p[place, token] for place, token in enumerate(targets)))
            scores.append((total / ((5 + len(targets)) / 6) ** alpha, list(tokens)))
    return sorted(scores, reverse=True)


@pytest.mark.parametrize("model", ["gpt_nano", "t5_tiny", "transformer_base"])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
@DOUBLE
def test_enough_beams_find_the_best_of_all(model: str, alpha: float) -> None:
    made, source = tiny(model, seed=3), None if model == "gpt_nano" else [2, 4, 3, 0]
    expected = all_scores(made, source, 3, alpha)
    found = beam_search(
        made, [START], 3, eos_id=EOS, n_beams=4**3, length_penalty=alpha, source_ids=source
    )
    for ours, (score, tokens) in zip(found[:10], expected, strict=False):
        assert ours.tokens == tokens
        assert ours.score == pytest.approx(score, rel=RTOL, abs=ATOL)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 1.0]))
@DOUBLE
def test_more_beams_are_never_worse_than_greedy_and_never_better_than_all(
    seed: int, alpha: float
) -> None:
    made = tiny("t5_tiny", seed)
    best = all_scores(made, [3, 2, 0], 4, alpha)[0][0]
    options = {"eos_id": EOS, "length_penalty": alpha, "source_ids": [3, 2, 0]}
    one, wide = (beam_search(made, [START], 4, n_beams=n, **options)[0].score for n in (1, 256))
    assert one <= wide + ATOL
    assert wide == pytest.approx(best, rel=RTOL, abs=ATOL)


@pytest.mark.parametrize("model", ["gpt_nano", "t5_tiny"])
@DOUBLE
def test_one_beam_without_penalty_is_greedy(model: str) -> None:
    lengths = set()
    for seed in range(12):
        made, source = tiny(model, seed), None if model == "gpt_nano" else [2, 4, 3, 0]
        greedy = generate(
            made, [START], 6, source_ids=source, temperature=0, seed=0, context_limit=16, eos_id=EOS
        )
        (found,) = beam_search(
            made, [START], 6, source_ids=source, eos_id=EOS, n_beams=1, length_penalty=0.0
        )
        assert found.tokens == greedy
        lengths.add(len(greedy))
    assert lengths > {6}, "some end early"


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        beam_search(tiny("gpt_nano", 0), [], 3, eos_id=EOS)


@DOUBLE
def test_fill_gives_the_likeliest_tokens_of_each_mask() -> None:
    config = composed("model=bert_tiny", *SHAPE, "tokenizer.vocab_size=600", "model.init_std=0.2")
    model = build_model(config)
    assert isinstance(model, MaskedModel)
    initialise(model, 0)
    tokens = [7, MASK, 9, 3, MASK, 2]
    choices = fill(model, tokens, MASK, top_k=3)
    assert model.training
    probabilities = model.eval()(torch.tensor([tokens]))[0].softmax(dim=-1)
    assert len(choices) == 2
    for place, best in zip((1, 4), choices, strict=True):
        assert best[0][0] == int(probabilities[place].argmax())
        assert [p for _, p in best] == sorted((p for _, p in best), reverse=True)
        assert best[0][1] == pytest.approx(float(probabilities[place].max()), rel=RTOL)
