"""Training under any layout, in the warm ranks of `ranks.py`, on sequences that depend on the step
alone."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaling.checkpoint.state import seed_step
from scaling.engine.build import build_engine
from scaling.parallel.grid import Ranks
from scaling.planner.cost.setting import setting_of
from scaling.planner.layout import Layout
from scaling.planner.rules import broken_rule
from tests.model.test_family_models import sequences
from tests.support.exact import in_double
from tests.support.objectives import objective
from tests.support.ranks import run_ranks

G = 8
"""Sequences of a global batch."""
SHAPE = (
    "model.n_layers=2",
    "model.d_model=32",
    "model.n_heads=4",
    "model.dropout=0",
    "train.seq_len=16",
    f"train.global_batch_size={G}",
    "train.n_tokens=100_000",
    "cluster.device.name=test CPU",
    "cluster.device.memory_gb=12",
)
FAMILIES = {
    "gpt": ("objective=causal_lm",),
    "bert": ("objective=masked_lm", "objective.sentence_order=true", "model.d_embedding=16"),
    "t5": ("objective=span_corruption", "train.seq_len=32"),
    "transformer": ("objective=seq2seq", "train.seq_len=32"),
}
REFERENCE = Layout(
    dp=1,
    tp=1,
    pp=1,
    zero_stage=1,
    micro_batch_size=G,
    grad_accum_steps=1,
    activation_checkpointing="none",
    engine="reference",
)


def layout(*, micro: int = 2, **degrees: Any) -> Layout:
    """A DeepSpeed layout of these degrees; those not named are 1."""
    base = replace(
        Layout(
            dp=1,
            tp=1,
            pp=1,
            zero_stage=1,
            micro_batch_size=micro,
            grad_accum_steps=1,
            activation_checkpointing="none",
            engine="deepspeed",
        ),
        **degrees,
    )
    return replace(base, grad_accum_steps=G // (base.dp * micro))


def rule_against(overrides: tuple[str, ...], layout: Layout) -> str | None:
    """The rule of the plan by which a layout is refused on as many devices as it wants."""
    config, _ = objective(*SHAPE, *overrides, f"cluster.devices_per_node={layout.world_size}")
    setting = setting_of(config)
    return broken_rule(setting.work, setting.machine, layout, G)


def train(
    ranks: Ranks,
    overrides: tuple[str, ...],
    layout: Layout,
    first: int,
    last: int,
    load: Path | None = None,
    save: Path | None = None,
    device: str = "cpu",
) -> list[float]:
    """Losses and gradient norms of steps [first, last), then the held-out loss; from a checkpoint,
    and to one."""
    config, make_batch = objective(*SHAPE, *overrides)
    ranks = ranks.laid_out(tp=layout.tp, pp=layout.pp, cp=layout.cp)
    with closing(build_engine(config, layout, ranks, torch.device(device))) as engine:
        if load is not None:
            engine.load(load)

        def batches(step: int) -> list[Any]:
            ks = np.arange(G) + G * step
            rows = np.concatenate([sequences(config, ks[k : k + 1]) for k in range(G)])
            share = G // ranks.dp
            mine = range(
                ranks.dp_rank * share, (ranks.dp_rank + 1) * share, layout.micro_batch_size
            )
            size = layout.micro_batch_size
            return [make_batch(rows[at : at + size], ks[at : at + size]) for at in mine]

        curve = []
        for step in range(first, last):
            seed_step(config.train.seed, step, ranks.rank // ranks.tp)
            result = engine.step(batches(step), lr=3e-3 / (1 + 0.1 * step))
            curve += [float(result.loss), float(result.grad_norm)]
        curve.append(engine.evaluate(batches(999) + batches(998) + batches(997)).loss)
        if save is not None:
            save.mkdir(exist_ok=True)
            engine.snapshot().write(save / f"rank-{ranks.rank:05d}.safetensors")
        return curve


def train_exactly(ranks: Ranks, *args: Any) -> list[float]:
    """`train` in float64, in which ranks that add up in another order still agree to 1e-14."""
    with in_double():
        return train(ranks, *args)


@cache
def reference(n_steps: int, *overrides: str, exact: bool = True) -> list[float]:
    """The curve of one plain process, which every layout is held against; callers must not change
    it."""
    return run_ranks(train_exactly if exact else train, 1, overrides, REFERENCE, 0, n_steps)[0]


def run(
    overrides: tuple[str, ...],
    layout: Layout,
    first: int,
    last: int,
    *args: Any,
    exact: bool = True,
) -> list[list[float]]:
    """The curve of every rank, in float64 or in the precision that the configuration names."""
    function = train_exactly if exact else train
    return run_ranks(function, layout.world_size, overrides, layout, first, last, *args)
