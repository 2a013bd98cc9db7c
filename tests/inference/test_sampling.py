"""Sampling: the cache changes nothing, seeds repeat, limits and filters hold."""

from __future__ import annotations

import pytest
import torch

from scaling.inference.sampling import generate, pick
from scaling.model import LanguageModel, build_model, initialise
from tests.support.configs import composed

SHAPE = (
    "model.n_layers=2",
    "model.d_model=48",
    "model.n_heads=6",
    "tokenizer.vocab_size=300",
    "train.seq_len=32",
    "model.init_std=0.2",
)


@pytest.fixture(params=["rope", "learned"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    made = build_model(composed(*SHAPE, f"position={request.param}"))
    initialise(made, 0)
    return made


def test_greedy_equals_the_argmax_of_full_forwards(model: LanguageModel) -> None:
    tokens = [5, 9, 2]
    for _ in range(20):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert generate(model, [5, 9, 2], 20, temperature=0, seed=0, context_limit=32) == tokens[3:]


def test_a_seed_repeats_and_another_differs(model: LanguageModel) -> None:
    first, again, other = (
        generate(model, [1], 24, temperature=2.0, seed=seed, context_limit=32) for seed in (3, 3, 4)
    )
    assert first == again != other
    assert len(first) == 24


def test_text_goes_on_past_the_context_limit_and_sees_only_the_latest(model: LanguageModel) -> None:
    long = generate(model, list(range(40)), 50, temperature=0, seed=0, context_limit=16)
    assert len(long) == 50
    assert long[0] == int(model(torch.arange(24, 40)[None])[0, -1].argmax())
    # The cache is full after 16 positions; the next token is drawn from the latest 8.
    assert long[1] == int(model(torch.tensor([[*range(33, 40), long[0]]]))[0, -1].argmax())
    assert long == generate(model, list(range(24, 40)), 50, temperature=0, seed=0, context_limit=16)


def test_stops_before_the_end_token(model: LanguageModel) -> None:
    greedy = generate(model, [5], 10, temperature=0, seed=0, context_limit=32)
    end = greedy[4]
    assert (
        generate(model, [5], 10, temperature=0, seed=0, context_limit=32, eos_id=end)
        == greedy[: greedy.index(end)]
    )


def test_mode_is_put_back_and_an_empty_prompt_refused(model: LanguageModel) -> None:
    for training in (True, False):
        model.train(training)
        generate(model, [1], 2, seed=0, context_limit=32)
        assert model.training is training
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, [], 2, seed=0, context_limit=32)


def drawn(
    temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log()
    return {
        pick(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        for _ in range(200)
    }


def test_filters_keep_the_likeliest() -> None:
    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {1, 2}
    assert drawn(top_p=0.4) == {1}
    assert drawn(top_p=0.7) == {1, 2}
    assert drawn(top_k=3, top_p=0.5) == {1, 2} - {2}
    assert drawn(temperature=0) == {1}
    assert drawn(temperature=0.01) == {1}


def test_frequencies_follow_the_probabilities() -> None:
    generator, logits = torch.Generator().manual_seed(0), torch.tensor([0.2, 0.5, 0.3]).log()
    draws = [
        pick(logits, temperature=1.0, top_k=None, top_p=None, generator=generator)
        for _ in range(4000)
    ]
    for token, probability in enumerate([0.2, 0.5, 0.3]):
        # Four standard errors of a share of 4000 draws.
        assert draws.count(token) / 4000 == pytest.approx(
            probability, abs=4 * (probability * (1 - probability) / 4000) ** 0.5
        )
