"""Families with optional tensors, experts and two stacks train alike under DeepSpeed and the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from objectives import objective
from ranks import run_ranks
from test_family_models import sequences

from scaling.config import RunConfig
from scaling.parallel.grid import Ranks
from scaling.plan.layout import make_plan

G, N_STEPS = 8, 3
SHAPE = ("model.n_layers=2", "model.d_model=32", "model.n_heads=2", "model.dropout=0", "train.seq_len=16",
         f"train.global_batch_size={G}", "train.n_tokens=100_000", "layout=manual")  # fmt: skip
FAMILIES = {
    "bert": ("objective=masked_lm", "objective.sentence_order=true", "model.d_embedding=16"),
    "t5_experts": ("objective=span_corruption", "model.n_experts=3", "model.experts_per_token=2"),
    "transformer": ("objective=seq2seq", "train.seq_len=32"),
}


def train(ranks: Ranks, name: str, layout_overrides: tuple[str, ...]) -> list[float]:
    """Losses of some steps, each family on a share of the same sequences."""
    config: RunConfig
    config, make_batch = objective(*SHAPE, *FAMILIES[name], *layout_overrides)
    layout = make_plan(config).layout
    engine: Any
    if layout.engine == "reference":
        from scaling.engine.reference import ReferenceEngine

        engine = ReferenceEngine(config, layout, torch.device("cpu"))
    else:
        from scaling.engine.deepspeed import DeepSpeedEngine

        engine = DeepSpeedEngine(config, layout, ranks, torch.device("cpu"))
    curve = []
    for step in range(N_STEPS):
        ks, share, size = np.arange(G) + G * step, G // ranks.dp, layout.micro_batch_size
        rows = np.concatenate([sequences(config, ks[k : k + 1]) for k in range(G)])
        mine = range(ranks.dp_rank * share, (ranks.dp_rank + 1) * share, size)
        result = engine.step([make_batch(rows[at : at + size], ks[at : at + size]) for at in mine], lr=3e-3)
        curve += [float(result.loss), float(result.grad_norm)]
    return curve


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_zero_follows_the_reference(name: str, stage: int) -> None:
    expected = run_ranks(train, 1, name, ("layout.dp=1",))[0]
    zero = (
        "layout.dp=2", f"layout.zero_stage={stage}", "layout.micro_batch_size=2", "layout.engine=deepspeed",
        "cluster.devices_per_node=2", "cluster.device.name=test CPU", "cluster.device.memory_gb=12",
    )  # fmt: skip
    for curve in run_ranks(train, 2, name, zero):
        np.testing.assert_allclose(curve, expected, rtol=5e-5)
