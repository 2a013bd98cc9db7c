"""Candidates, predicted and ranked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scaling.config.run_config import LayoutConfig
from scaling.planner.cost.constants import CONSTANTS, Constants
from scaling.planner.cost.setting import Setting
from scaling.planner.layout import Layout
from scaling.planner.prediction import Prediction
from scaling.planner.rules import broken_rule, not_run_here
from scaling.planner.space import CHECKPOINTINGS, OPEN, families


@dataclass(frozen=True)
class Ranking:
    """fitting: legal layouts that fit, the preferred first; too_large: legal ones that do not, the
    one that needs least first; refused: the others, with the rule that each breaks."""

    fitting: list[Prediction]
    too_large: list[Prediction]
    n_legal: int
    refused: list[tuple[Layout, str]]


def search(setting: Setting, global_batch_size: int, fixed: LayoutConfig = OPEN) -> Ranking:
    """The legal layouts that leave what is fixed as it is."""
    return rank(setting, global_batch_size, families(setting, global_batch_size, fixed))


def rank(
    setting: Setting,
    global_batch_size: int,
    candidates: Iterable[Iterable[Layout]],
    *,
    constants: Constants = CONSTANTS,
    keep_refused: bool = False,
) -> Ranking:
    """Predict families of candidates. Those of a family need more memory from one to the next: of
    those that do not fit, the first is enough."""
    fitting: list[Prediction] = []
    too_large: list[Prediction] = []
    refused: list[tuple[Layout, str]] = []
    n_legal = 0
    for family in candidates:
        for layout in family:
            rule = broken_rule(setting.work, setting.machine, layout, global_batch_size)
            if rule is not None:
                if keep_refused:
                    refused.append((layout, rule))
                continue
            n_legal += 1
            found = setting.predict(layout, constants)
            if not found.fits:
                too_large.append(found)
                break
            fitting.append(found)
    fitting.sort(key=preference)
    too_large.sort(key=lambda found: found.need_bytes)
    return Ranking(fitting, too_large, n_legal, refused)


def preference(found: Prediction) -> tuple[float, ...]:
    """The sort key of predictions that fit: those that surely fit first; by rate of the whole
    cluster; then by memory.

    Where no rate is known: what the engines run, most dp ranks, without recomputation, DeepSpeed,
    the lowest ZeRO stage, the largest micro-batch.
    """
    layout, unsure = found.layout, found.verdict != "fits"
    if found.tokens_per_s is not None:
        return (unsure, -found.tokens_per_s, found.need_bytes)
    costs = (
        CHECKPOINTINGS.index(layout.activation_checkpointing),
        layout.engine == "ddp",
        layout.zero_stage,
    )
    return (unsure, not_run_here(layout) is not None, -layout.dp, *costs, -layout.micro_batch_size)
