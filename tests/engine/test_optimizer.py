"""Schedules as properties and golden values; parameter groups and the optimiser."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.config.run_config import ScheduleConfig
from scaling.engine.optimizer import build_optimizer, parameter_groups
from scaling.model import build_model, initialise
from scaling.train.schedule import lr_at
from tests.support.configs import composed

SHAPE = (
    "model.n_layers=2",
    "model.d_model=48",
    "model.n_heads=6",
    "tokenizer.vocab_size=300",
    "train.seq_len=32",
)
PEAK = 3e-4


def lr(
    kind: str,
    seen: int,
    *,
    n_tokens: int = 1000,
    warmup: int = 100,
    decay: int = 200,
    floor: float = 0.1,
) -> float:
    schedule = ScheduleConfig(
        kind=kind, warmup_tokens=warmup, decay_tokens=decay, min_lr_ratio=floor
    )
    return lr_at(
        schedule,
        peak_lr=PEAK,
        n_tokens_seen=seen,
        n_tokens=n_tokens,
        warmup_tokens=warmup,
        decay_tokens=decay,
    )


@st.composite
def runs(draw: st.DrawFn) -> dict[str, int | float]:
    n_tokens = draw(st.integers(1, 10**13))
    warmup = draw(st.integers(0, n_tokens))
    decay = draw(st.integers(0, n_tokens - warmup))
    return {"n_tokens": n_tokens, "warmup": warmup, "decay": decay, "floor": draw(st.floats(0, 1))}


kinds = st.sampled_from(["cosine", "wsd", "constant"])


@given(kind=kinds, run=runs(), data=st.data())
def test_rises_to_the_peak_then_never_rises(kind: str, run: dict, data: st.DataObject) -> None:
    a, b = sorted(data.draw(st.tuples(*[st.integers(0, run["n_tokens"] + 5)] * 2)))
    at_a, at_b, low = lr(kind, a, **run), lr(kind, b, **run), PEAK * run["floor"]
    assert 0 <= at_a <= PEAK * (1 + 1e-12)
    if b <= run["warmup"]:
        assert at_a <= at_b
    if a >= run["warmup"]:
        assert at_b <= at_a * (1 + 1e-12)
        assert at_b >= low * (1 - 1e-12)


@given(kind=kinds, run=runs())
def test_end_values(kind: str, run: dict) -> None:
    if run["warmup"]:
        assert lr(kind, 1, **run) > 0
    if run["warmup"] < run["n_tokens"]:
        assert lr(kind, run["warmup"], **run) == pytest.approx(PEAK)
        decays = kind == "cosine" or (kind == "wsd" and run["decay"] > 0)
        expected = PEAK * (run["floor"] if decays else 1)
        assert lr(kind, run["n_tokens"], **run) == pytest.approx(expected, abs=1e-18)
        assert lr(kind, run["n_tokens"] + 12345, **run) == lr(kind, run["n_tokens"], **run)


@given(kind=kinds, run=runs(), data=st.data())
def test_continuous(kind: str, run: dict, data: st.DataObject) -> None:
    """One token changes the rate by no more than the steepest slope: pi/2 times the mean slope of a
    part."""
    seen = data.draw(st.integers(0, run["n_tokens"]))
    parts = [run["warmup"], run["n_tokens"] - run["warmup"] if kind == "cosine" else run["decay"]]
    slope = max([PEAK * 1.58 / part for part in parts if part], default=0.0)
    assert abs(lr(kind, seen + 1, **run) - lr(kind, seen, **run)) <= slope * (1 + 1e-9) + 1e-15


def test_golden_values() -> None:
    seen = (25, 50, 100, 325, 400, 550, 700, 800, 900, 1000, 1024)
    root = 2**0.5
    expected = {
        "constant": (0.25, 0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1),
        "wsd": (0.25, 0.5, 1, 1, 1, 1, 1, 1, 0.55, 0.1, 0.1),
        # 0.1 + 0.45 (1 + cos(pi (t - 100) / 900)) at quarters and thirds of the half cosine
        "cosine": (0.25, 0.5, 1, 0.55 + 0.225 * root, 0.775, 0.55, 0.325, None, None, 0.1, 0.1),
    }
    for kind, ratios in expected.items():
        for t, ratio in zip(seen, ratios, strict=True):
            if ratio is not None:
                assert lr(kind, t) / PEAK == pytest.approx(ratio, rel=1e-12), (kind, t)


def test_the_first_step_learns() -> None:
    """The convention is tokens after the step: one step of 32 tokens into a warm-up of 100 has 0.32
    of the peak."""
    assert lr("cosine", 32) == pytest.approx(0.32 * PEAK)
    assert lr("cosine", 32, warmup=0) < PEAK
    assert lr("constant", 32, warmup=0) == PEAK


def test_a_schedule_longer_than_the_run_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        lr("wsd", 5, n_tokens=250)


def test_schedules_need_no_torch() -> None:
    code = "import sys, scaling.train.schedule; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_groups_hold_every_parameter_once() -> None:
    overrides = (
        "model.bias=true",
        "model.norm=layernorm",
        "position=learned",
        "model.tie_embeddings=false",
    )
    config = composed(*SHAPE, *overrides)
    model = build_model(config, device="meta")
    decay, no_decay = parameter_groups(model, config)
    assert (decay["name"], decay["weight_decay"]) == ("decay", 0.1)
    assert (no_decay["name"], no_decay["weight_decay"]) == ("no_decay", 0.0)
    named = dict(model.named_parameters())
    assert sorted(decay["param_names"] + no_decay["param_names"]) == sorted(named)
    for group in (decay, no_decay):
        assert all(
            named[name] is p for name, p in zip(group["param_names"], group["params"], strict=True)
        )
    linears = ("q", "k", "v", "o", "gate", "up", "down")
    expected = {n for n in named if n.split(".")[-2] in (*linears, "head") and n.endswith("weight")}
    assert set(decay["param_names"]) == expected
    assert {
        "embedding.weight",
        "position.table.weight",
        "final_norm.weight",
        "blocks.0.attention.q.bias",
    } <= set(no_decay["param_names"])


def test_the_optimiser_is_adamw_as_configured() -> None:
    config = composed(
        *SHAPE, "optim.lr=0.01", "optim.beta2=0.9", "optim.weight_decay=0.5", "optim.eps=1e-6"
    )
    model = build_model(config)
    initialise(model, 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(config, model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 2.0)
    optimizer.step()
    # Element by element, some ten roundings of eps = 1.2e-7 and no sum: 1e-5 is wide on any
    # machine. First step: both moments' corrections cancel, so the move is lr * g / (|g| + eps),
    # after decay by lr * weight_decay.
    for name, p in model.named_parameters():
        shrink = (
            1 - 0.01 * 0.5
            if ("attention" in name and "norm" not in name) or "feed_forward." in name
            else 1.0
        )
        torch.testing.assert_close(
            p, before[name] * shrink - 0.01 * 2 / (2 + 1e-6), rtol=1e-5, atol=1e-7
        )
