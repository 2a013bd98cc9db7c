"""A step beyond limits, or without a finite loss, changes nothing under any kind of layout, and an
engine that continued goes back when it loads."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from scaling.batch import Batch, Loss
from scaling.checkpoint.state import seed_step
from scaling.engine.base import Limits
from scaling.engine.build import build_engine
from scaling.model.base import Flow
from scaling.parallel.grid import Ranks
from scaling.planner.layout import Layout
from tests.engine.test_layout_parity import PLACES
from tests.model.test_family_models import sequences
from tests.support.layout_runs import FAMILIES, SHAPE, G, layout
from tests.support.objectives import objective
from tests.support.ranks import run_ranks

NAMES = ("reference", "ddp", "zero1", "zero2", "zero3", "tp2", "pp2", "cp2")
ALONE = {"zero1-alone": layout(micro=G)}
TIGHT = (Limits(loss=1.0, grad_norm=1e9), Limits(loss=1e9, grad_norm=1e-6))
WIDE = Limits(loss=1e9, grad_norm=1e9)
LOST = None
"""Stands in place of limits: the loss is not a number, and its gradients are finite."""


class Trainer:
    """Single steps of a tiny model on one rank."""

    def __init__(self, ranks: Ranks, layout: Layout, *overrides: str) -> None:
        self.config, self.make_batch = objective(*SHAPE, *FAMILIES["gpt"], *overrides)
        self.layout, self.ranks = layout, ranks.laid_out(tp=layout.tp, pp=layout.pp, cp=layout.cp)
        self.engine = build_engine(self.config, layout, self.ranks, torch.device("cpu"))
        self.factor, self._finish = 1.0, self.engine.model.finish
        self.engine.model.finish = self._finish_scaled  # type: ignore[method-assign]

    def _finish_scaled(self, flow: Flow, batch: Batch) -> Loss:
        """The loss as it is reported times `factor`; its gradients are those of the objective."""
        found = self._finish(flow, batch)
        return found._replace(nats=found.nats * self.factor)

    def step(self, step: int, limits: Limits | None = None) -> list[float]:
        """Loss, gradient norm and whether it was skipped."""
        ks = np.arange(G) + G * step
        rows = np.concatenate([sequences(self.config, ks[k : k + 1]) for k in range(G)])
        share, size = G // self.ranks.dp, self.layout.micro_batch_size
        mine = range(self.ranks.dp_rank * share, (self.ranks.dp_rank + 1) * share, size)
        batches = [self.make_batch(rows[at : at + size], ks[at : at + size]) for at in mine]
        seed_step(self.config.train.seed, step, self.ranks.rank // self.ranks.tp)
        result = self.engine.step(batches, 3e-3, limits)
        return [float(result.loss), float(result.grad_norm), float(result.skipped)]


def _with_refusals(
    ranks: Ranks, layout: Layout, limits: tuple[Limits | None, ...], *overrides: str
) -> list[list[float]]:
    """Four steps, each after one that is refused, in turn for each of the reasons."""
    trainer = Trainer(ranks, layout, *overrides)
    curve = []
    for step in range(4):
        if limits:
            reason = limits[step % len(limits)]
            trainer.factor = math.nan if reason is LOST else 1.0
            curve.append(trainer.step(90 + step, reason))
            trainer.factor = 1.0
        curve.append(trainer.step(step, WIDE if limits else None))
    trainer.engine.close()
    return curve


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "fp32") for name in (*NAMES, *ALONE)),
        *((name, "bf16") for name in ("zero1", "zero3", "pp2")),
    ],
)
def test_a_step_that_is_refused_changes_nothing(name: str, dtype: str) -> None:
    place, precision = (PLACES | ALONE)[name], f"precision={dtype}"
    plain = run_ranks(_with_refusals, place.world_size, place, (), precision)[0]
    for curve in run_ranks(_with_refusals, place.world_size, place, (*TIGHT, LOST), precision):
        refused, counted = curve[::2], curve[1::2]
        assert counted == plain, "what was refused has left something behind"
        assert [skipped for _, _, skipped in refused] == [1.0] * 4
        assert [math.isnan(loss) for loss, _, _ in refused] == [False, False, True, False]
        assert all(math.isfinite(norm) and norm > 0 for _, norm, _ in refused)


def _back_again(ranks: Ranks, layout: Layout, directory: Path) -> list[list[list[float]]]:
    """Four steps from step 0 and from step 2, each twice: the second time after going back."""
    trainer = Trainer(ranks, layout)
    laps = []
    for first in (0, 2):
        place = directory / f"{first}"
        place.mkdir(exist_ok=True)
        trainer.engine.snapshot().write(place / f"rank-{ranks.rank:05d}.safetensors")
        laps.append([trainer.step(step) for step in range(first, first + 4)])
        torch.distributed.barrier() if ranks.world_size > 1 else None
        trainer.engine.load(place)
        laps.append([trainer.step(step) for step in range(first, first + 4)])
    return laps


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_goes_back_to_what_it_loads(name: str, tmp_path: Path) -> None:
    place = PLACES[name]
    for first, again, later, once_more in run_ranks(_back_again, place.world_size, place, tmp_path):
        assert again == first, "from the initial weights"
        assert once_more == later, "from weights and moments of training"
