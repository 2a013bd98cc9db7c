"""No rank ever holds all of a model under ZeRO-3, not even while it is built."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from scaling.engine.build import build_engine
from scaling.parallel.grid import Ranks
from scaling.planner.layout import Layout
from tests.support.layout_runs import FAMILIES, SHAPE, layout
from tests.support.objectives import objective
from tests.support.ranks import run_ranks


def most_held(ranks: Ranks, layout: Layout) -> tuple[int, int, int]:
    """Elements of whole parameters at once while an engine is built, of the largest module's own,
    and of all."""
    given: list[nn.Module] = []
    held, largest, total = [0], [0], [0]
    to_empty = nn.Module.to_empty

    def counting(module: nn.Module, **options: Any) -> nn.Module:
        filled = to_empty(module, **options)
        given.append(module)
        own = sum(p.numel() for p in module.parameters(recurse=False))
        largest[0], total[0] = max(largest[0], own), total[0] + own
        held[0] = max(held[0], sum(p.numel() for m in given for p in m.parameters(recurse=False)))
        return filled

    config, _ = objective(*SHAPE, *FAMILIES["gpt"])
    nn.Module.to_empty = counting  # type: ignore[method-assign]
    try:
        build_engine(
            config, layout, ranks.laid_out(tp=layout.tp, pp=1, cp=1), torch.device("cpu")
        ).close()
    finally:
        nn.Module.to_empty = to_empty  # type: ignore[method-assign]
    return held[0], largest[0], total[0]


@pytest.mark.parametrize("degrees", [{"dp": 2}, {"dp": 2, "tp": 2}])
def test_parameters_are_dealt_out_as_they_are_made(degrees: dict[str, int]) -> None:
    for held, largest, total in run_ranks(
        most_held, 2 * degrees.get("tp", 1), layout(zero_stage=3, **degrees)
    ):
        assert held == largest < total / 3
    for held, _, total in run_ranks(most_held, 2, layout(dp=2, zero_stage=2)):
        assert held == total
