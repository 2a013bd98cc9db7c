"""Initial weights depend on name, shape and seed alone, and have the distributions that are
promised."""

from __future__ import annotations

import math

import pytest
import torch

from scaling.model import build_model, initialise
from scaling.model.initialise import initial_values
from tests.support.configs import composed

SHAPE = (
    "model.n_layers=2",
    "model.d_model=48",
    "model.n_heads=6",
    "tokenizer.vocab_size=300",
    "train.seq_len=32",
)


def weights(*overrides: str, seed: int = 0) -> dict[str, torch.Tensor]:
    model = build_model(composed(*SHAPE, *overrides))
    initialise(model, seed)
    return dict(model.named_parameters())


def test_two_builds_are_identical_whatever_the_global_random_state() -> None:
    torch.manual_seed(1)
    first = weights()
    torch.manual_seed(2)
    second = weights()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_values_do_not_depend_on_what_is_built_beside_them() -> None:
    plain, other = (
        weights(),
        weights(
            "model.n_kv_heads=2",
            "position=learned",
            "model.tie_embeddings=false",
            "model.bias=true",
        ),
    )
    shared = [name for name in plain if other[name].shape == plain[name].shape]
    assert "blocks.1.attention.q.weight" in shared
    assert len(other) > len(plain) > len(shared)
    assert all(torch.equal(plain[name], other[name]) for name in shared)


def test_one_parameter_can_be_made_without_the_model() -> None:
    config = composed(*SHAPE).model
    for name, value in weights(seed=7).items():
        assert torch.equal(initial_values(name, value.shape, config, 7), value)


def test_seeds_and_names_give_different_values() -> None:
    first, second = weights(seed=0), weights(seed=1)
    for name in first:
        assert torch.equal(first[name], second[name]) == ("norm" in name), name
    assert not torch.equal(
        first["blocks.0.attention.q.weight"], first["blocks.1.attention.q.weight"]
    )
    assert not torch.equal(
        first["blocks.0.attention.q.weight"], first["blocks.0.attention.k.weight"]
    )


def test_distributions() -> None:
    made = weights(
        "model.bias=true",
        "model.norm=layernorm",
        "position=learned",
        "model.tie_embeddings=false",
        "model.d_model=96",
    )
    for name, value in made.items():
        if name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        else:
            narrow = name.endswith(("attention.o.weight", "feed_forward.down.weight"))
            std = 0.02 / math.sqrt(2 * 2) if narrow else 0.02
            # Five standard errors of a standard deviation, std / sqrt(2 n).
            assert float(value.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * value.numel())), (
                name
            )
            assert abs(float(value.mean())) < 5 * std / math.sqrt(value.numel()), name


def test_golden_first_values() -> None:
    """A changed scheme would change every run's id-to-loss relation: change these only with a
    reason."""
    values = initial_values(
        "blocks.0.attention.q.weight", (48, 48), composed(*SHAPE).model, 0
    ).flatten()[:3]
    expected = torch.tensor([0.002116345, 0.018928181, -0.03277548])
    # Logarithms and cosines of vectors are off by a few units of the largest value, which is std 8.
    atol = 4 * torch.finfo(torch.float32).eps * 0.02 * 8
    torch.testing.assert_close(values, expected, rtol=0, atol=atol)


def test_weights_that_were_never_given_are_not_numbers() -> None:
    assert all(p.isnan().all() for p in build_model(composed(*SHAPE)).parameters())


def test_a_cast_model_gets_the_same_values_rounded() -> None:
    model = build_model(composed(*SHAPE)).bfloat16()
    initialise(model, 0)
    assert all(torch.equal(p, weights()[name].bfloat16()) for name, p in model.named_parameters())
