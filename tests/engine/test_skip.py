"""A step whose gradients are not finite leaves everything as it was, and is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from scaling.checkpoint.fragments import FragmentReader
from scaling.data.objective import causal_lm
from scaling.engine.reference import ReferenceEngine
from scaling.planner.run_plan import make_plan
from tests.support.configs import composed

CONFIG = composed(
    "model.n_layers=2",
    "model.d_model=32",
    "model.n_heads=2",
    "tokenizer=byte",
    "train.seq_len=16",
    "layout=manual",
    "layout.dp=1",
    "train.n_tokens=100_000",
)


def engine() -> ReferenceEngine:
    return ReferenceEngine(CONFIG, make_plan(CONFIG).layout, torch.device("cpu"))


def step(engine: ReferenceEngine, number: int) -> tuple[float, float]:
    rows = np.random.default_rng(number).integers(0, 257, size=(4, 17))
    result = engine.step([causal_lm(rows, np.arange(4))], lr=1e-3)
    return float(result.loss), float(result.skipped)


def poisoned_step(engine: ReferenceEngine) -> tuple[float, float]:
    weight = engine.model.final_norm.weight
    before = weight[0].item()
    with torch.no_grad():
        weight[0] = torch.nan
    seen = step(engine, 99)
    with torch.no_grad():
        assert weight[0].isnan(), "the parameter that was not a number has been updated to be one"
        weight[0] = before
    return seen


def test_a_step_that_is_not_finite_changes_nothing_and_the_next_goes_on(tmp_path: Path) -> None:
    plain, poisoned = engine(), engine()
    loss, skipped = poisoned_step(poisoned)  # the first of all: before the optimiser has any state
    assert np.isnan(loss)
    assert skipped == 1.0
    assert step(poisoned, 0) == step(plain, 0)
    assert poisoned_step(poisoned)[1] == 1.0
    assert [step(poisoned, n) for n in (1, 2)] == [step(plain, n) for n in (1, 2)]
    for (name, ours), (_, theirs) in zip(
        poisoned.model.named_parameters(), plain.model.named_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    poisoned.snapshot().write(tmp_path / "rank-00000.safetensors")
    assert FragmentReader(tmp_path).optimizer_step == 3
