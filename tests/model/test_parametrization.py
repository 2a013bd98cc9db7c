"""What a model learns in a step does not depend on its width (mup) and depth (completep), and in
the standard one it does.

The coordinate check of Yang et al. 2022 (arXiv:2203.03466, appendix D.1): sizes of changes after a
few steps, width by width.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scaling.composition.compose import compose
from scaling.engine.optimizer import build_optimizer, parameter_groups, set_rate
from scaling.errors import ConfigError
from scaling.model import GenerativeModel, build_model, initialise
from tests.support.exact import assert_same
from tests.support.layout_runs import FAMILIES, layout, reference, run

BASE = (
    "tokenizer=byte",
    "train.seq_len=32",
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_layers=2",
    "optim.weight_decay=0",
)
MUP = ("model.parametrization=mup", "model.base_width=32")
COMPLETEP = ("model.parametrization=completep", "model.base_width=32", "model.base_layers=2")
STEPS, LR = 4, 3e-3
LAYOUT_ZERO = {"zero1": layout(dp=2), "zero3": layout(dp=2, zero_stage=3)}


def batch() -> torch.Tensor:
    return torch.randint(0, 257, (2, 33), generator=torch.Generator().manual_seed(1))


def changes(*words: str, seeds: int = 2) -> dict[str, float]:
    """Root mean square change over some Adam steps of what the last block makes, and of the
    logits."""
    found: dict[str, list[float]] = {"blocks": [], "logits": []}
    for seed in range(seeds):
        config = compose((*BASE, *words))
        model = build_model(config)
        assert isinstance(model, GenerativeModel)
        initialise(model, seed)
        optimizer = build_optimizer(config, model)
        tokens = batch()
        before = outputs(model, tokens)
        for _ in range(STEPS):
            loss = torch.nn.functional.cross_entropy(
                model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
            )
            loss.backward()
            set_rate(optimizer.param_groups, LR)
            optimizer.step()
            optimizer.zero_grad()
        for name, value in outputs(model, tokens).items():
            found[name].append(float((value - before[name]).square().mean().sqrt()))
    return {name: float(np.mean(values)) for name, values in found.items()}


@torch.no_grad()
def outputs(model: GenerativeModel, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    x = model.embedding(tokens[:, :-1])  # type: ignore[operator]
    x, _ = model.blocks(x, model.position.context(0, x, None))  # type: ignore[operator, union-attr]
    return {"blocks": x - model.embedding(tokens[:, :-1]), "logits": model(tokens[:, :-1])}  # type: ignore[operator]


def growth(small: dict[str, float], large: dict[str, float]) -> dict[str, float]:
    return {name: large[name] / small[name] for name in small}


def wide(width: int) -> tuple[str, ...]:
    return (f"model.d_model={width}", f"model.n_heads={width // 16}")


def test_changes_do_not_grow_with_the_width() -> None:
    grown = growth(changes(*wide(32), *MUP), changes(*wide(256), *MUP))
    assert all(0.6 < ratio < 1.6 for ratio in grown.values()), grown
    standard = growth(changes(*wide(32)), changes(*wide(256)))
    assert standard["blocks"] > 4
    assert standard["logits"] > 3


def test_changes_do_not_grow_with_the_depth() -> None:
    deep = growth(changes("model.n_layers=2", *COMPLETEP), changes("model.n_layers=16", *COMPLETEP))
    assert all(0.6 < ratio < 1.4 for ratio in deep.values()), deep
    assert (
        growth(changes("model.n_layers=2", *MUP), changes("model.n_layers=16", *MUP))["blocks"]
        > 1.8
    )


def test_at_the_base_all_is_standard() -> None:
    assert changes(*COMPLETEP, seeds=1) == changes(*MUP, seeds=1) == changes(seeds=1)
    for words in (MUP, COMPLETEP):
        config, plain = compose((*BASE, *words)), compose(BASE)
        groups, standard = (parameter_groups(build_model(c, "meta"), c) for c in (config, plain))
        assert {(g["weight_decay"], g["eps"], g["lr_scale"]) for g in groups} == {
            (g["weight_decay"], g["eps"], g["lr_scale"]) for g in standard
        }
        assert config.semantic_hash != plain.semantic_hash


def test_scales_are_those_of_the_table() -> None:
    config = compose(
        (
            *BASE,
            *wide(128),
            *COMPLETEP,
            "model.n_layers=6",
            "optim.weight_decay=0.1",
            "position=learned",
        )
    )
    model = build_model(config)
    initialise(model, 0)
    scales = {}
    for group in parameter_groups(model, config):
        for name in group["param_names"]:
            scales[name] = (group["lr_scale"], group["weight_decay"], group["eps"] / 1e-8)
    assert scales["blocks.3.attention.q.weight"] == pytest.approx((1 / 4, 0.4, 1 / 12))
    assert scales["blocks.3.feed_forward.down.weight"] == pytest.approx((1 / 4, 0.4, 1 / 12))
    assert scales["blocks.3.attention_norm.weight"] == pytest.approx((1, 0, 1 / 12))
    assert (
        scales["embedding.weight"]
        == scales["position.table.weight"]
        == pytest.approx((1, 0, 1 / 4))
    )
    assert scales["final_norm.weight"] == pytest.approx((1, 0, 1 / 4))
    std = {name: float(p.detach().std()) for name, p in model.named_parameters()}
    assert std["embedding.weight"] == pytest.approx(0.02, rel=0.02)
    assert std["blocks.3.attention.q.weight"] == pytest.approx(0.02 / 2, rel=0.03)
    assert std["blocks.3.attention.o.weight"] == pytest.approx(0.02 / 2 / 4**0.5, rel=0.03)


@pytest.mark.parametrize("name", LAYOUT_ZERO)
def test_zero_steps_each_group_at_its_own_rate(name: str) -> None:
    overrides = (
        *FAMILIES["gpt"],
        "model.parametrization=completep",
        "model.base_width=8",
        "model.base_layers=1",
    )
    for curve in run(overrides, LAYOUT_ZERO[name], 0, 6):
        assert_same(np.array(curve), np.array(reference(6, *overrides)))
    plain = reference(6, *FAMILIES["gpt"])
    assert abs(reference(6, *overrides)[-1] / plain[-1] - 1) > 1e-3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model.parametrization=mup",), "model.parametrization=mup needs model.base_width"),
        (("model.parametrization=completep", "model.base_width=32"), "needs model.base_layers"),
        (
            ("model.base_width=32",),
            "model.parametrization=standard has no use for model.base_width",
        ),
        ((*MUP, "model.n_experts=4"), "is for family=gpt with norm_position=pre, one expert"),
        (("model=t5_tiny", *MUP), "is for family=gpt"),
    ],
)
def test_what_the_rules_do_not_cover_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(words)
