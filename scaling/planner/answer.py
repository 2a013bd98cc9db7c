"""The planner's answer as plain values: what `python -m scaling.plan` prints, and writes with
--json."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from scaling.config.run_config import RunConfig
from scaling.errors import PlanError
from scaling.planner.budget import token_budget, tokens_per_step
from scaling.planner.choose import ranking_of
from scaling.planner.cost.constants import CONSTANTS, Constants
from scaling.planner.cost.counts import count
from scaling.planner.cost.memory_model import host_bytes_of
from scaling.planner.cost.money import Cost, cost_of, reliability_of
from scaling.planner.cost.setting import Setting, setting_of, usd_per_device_hour
from scaling.planner.explain import how_far_off, short, what_would_fit, what_would_help, why_first
from scaling.planner.layout import Layout
from scaling.planner.machines.rates import FP8_GENERATIONS
from scaling.planner.prediction import Prediction
from scaling.planner.ranking import Ranking
from scaling.planner.rules import not_run_here

FLOPS_DEFINITION = (
    "forward and backward, two FLOPs a multiply-add, every matrix and attention over all "
    "positions, without recomputation "
    "(Chowdhery et al. 2022, appendix B)"
)
EXAMPLES = 3
"""Refused layouts that are named for each rule, and layouts that do not fit on the screen."""


def ranked_plan(
    config: RunConfig,
    *,
    time_scale: float = 1.0,
    refused: bool = False,
    most: int | None = None,
) -> dict[str, Any]:
    """The layouts of a configuration whose cluster is resolved, the best first: every legal one, or
    with layout=manual those that have what it fixes.

    time_scale: predicted over true rate of one's own machine (`plan.calibrate`). most: layouts to
    describe; None: all that fit. Nothing is raised
    where nothing fits: the answer then says what would. Raises PlanError where something is fixed
    that no legal layout has.
    """
    _check_fp8(config)
    setting, batch, counts = setting_of(config), config.train.global_batch_size, count(config)
    ranking = ranking_of(config, setting, keep_refused=refused)
    machine = setting.machine
    answer: dict[str, Any] = {
        "model": config.model.name,
        "n_params": counts.n_params,
        "flops_per_token": counts.flops_per_token,
        "flops_definition": FLOPS_DEFINITION,
        "n_tokens": token_budget(config),
        "global_batch_size": batch,
        "seq_len": config.train.seq_len,
        "dtype": "fp8" if config.plan.fp8 else config.dtype,
        "cluster": config.cluster.name,
        "device": machine.device,
        "n_devices": machine.n_devices,
        "n_nodes": machine.n_nodes,
        "device_memory_bytes": machine.memory_bytes,
        "preemptible": config.cluster.preemptible,
        "usd_per_device_hour": usd_per_device_hour(config),
        "n_legal": ranking.n_legal,
        "n_fitting": len(ranking.fitting),
        "time_scale": time_scale,
        "notes": list(_notes(config)),
        "layouts": [
            _layout(config, setting, found, time_scale) for found in ranking.fitting[:most]
        ],
    }
    answer |= _words(config, setting, ranking, batch)
    if refused:
        answer["refused"] = _refused(ranking)
        answer["too_large"] = [_too_large(found) for found in ranking.too_large]
    return answer


def _check_fp8(config: RunConfig) -> None:
    device = config.cluster.device
    if config.plan.fp8 and device.generation not in FP8_GENERATIONS:
        raise PlanError(
            f"plan.fp8=true, and {device.name} has no products in 8 bits",
            f"cluster={config.cluster.name}",
            f"Leave plan.fp8=false, or use devices of {', '.join(FP8_GENERATIONS)} "
            "(cluster.device.generation).",
        )


def _notes(config: RunConfig) -> Iterator[str]:
    """What a reader must know to believe the numbers."""
    device = config.cluster.device
    if device.generation == "volta" and config.dtype == "bf16":
        yield (
            f"{device.name} has no bf16: its times are those of fp16, in which the engines here "
            "do not compute."
        )
    if config.plan.fp8:
        yield "No engine here computes in 8 bits yet."


def _words(config: RunConfig, setting: Setting, ranking: Ranking, batch: int) -> dict[str, Any]:
    if ranking.fitting:

        def again(other: Setting, size: int) -> Ranking:
            train = config.train.model_copy(update={"global_batch_size": size})
            return ranking_of(config.model_copy(update={"train": train}), other)

        return {
            "why": why_first(ranking),
            "help": what_would_help(setting, ranking, batch, again),
            "would_fit": [],
        }
    would_fit = [
        how_far_off(ranking, setting.machine),
        *what_would_fit(setting, batch),
    ]
    return {"why": None, "help": None, "would_fit": would_fit}


def _refused(ranking: Ranking) -> list[dict[str, Any]]:
    """Rules, the one that refuses most first, with some of the layouts that break them."""
    by_rule: dict[str, list[Layout]] = defaultdict(list)
    for layout, rule in ranking.refused:
        by_rule[rule].append(layout)
    ordered = sorted(by_rule.items(), key=lambda item: -len(item[1]))
    return [
        {
            "rule": rule,
            "n_layouts": len(found),
            "such_as": [short(layout) for layout in found[:EXAMPLES]],
        }
        for rule, found in ordered
    ]


def _too_large(found: Prediction) -> dict[str, Any]:
    return {
        "layout": short(found.layout),
        "need_bytes": round(found.need_bytes),
        "usable_bytes": round(found.usable_bytes),
        "p_fits": found.p_fits,
    }


def _layout(
    config: RunConfig,
    setting: Setting,
    found: Prediction,
    scale: float,
    constants: Constants = CONSTANTS,
) -> dict[str, Any]:
    """One layout: degrees, memory by part, verdict, time by part, rates and cost with their 80 %
    intervals."""
    memory, layout = found.memory, found.layout
    out: dict[str, Any] = asdict(layout) | {"world_size": layout.world_size}
    why_not = (
        "plan.fp8: the engines compute in fp32 and bf16"
        if config.plan.fp8
        else not_run_here(layout)
    )
    out |= {
        "verdict": found.verdict,
        "p_fits": found.p_fits,
        "runs_here": why_not is None,
        "not_run_because": why_not,
    }
    out["memory_bytes"] = asdict(memory) | {"total": memory.total, "need": round(found.need_bytes)}
    out["memory_interval_bytes"] = [
        round(end) for end in _interval(memory.total, constants.memory_spread)
    ]
    out["host_bytes_per_node"] = (
        host_bytes_of(setting.work, layout, setting.engines[layout.engine])
        * setting.machine.devices_per_node
    )
    if found.time is None or found.tokens_per_s_per_device is None or found.mfu is None:
        return out | {
            "step_time_s": None,
            "tokens_per_s_per_device": None,
            "mfu": None,
            "cost": None,
        }
    spread = constants.time_spread if scale == 1 else constants.calibrated_spread
    step_s, rate, mfu = (
        found.time.step_time_s * scale,
        found.tokens_per_s_per_device / scale,
        found.mfu / scale,
    )
    hours = token_budget(config) / tokens_per_step(config) * step_s / 3600
    parts = {name: seconds * scale for name, seconds in asdict(found.time).items()}
    return out | {
        "step_time_s": step_s,
        "step_time_interval_s": _interval(step_s, spread),
        "time_s": parts,
        "time_interval_s": {name: _interval(seconds, spread) for name, seconds in parts.items()},
        "tokens_per_s_per_device": rate,
        "tokens_per_s_per_device_interval": _interval(rate, spread),
        "mfu": mfu,
        "mfu_interval": _interval(mfu, spread),
        "cost": asdict(_cost(config, setting, hours)),
        "hours_interval": _interval(hours, spread),
    }


def _cost(config: RunConfig, setting: Setting, hours: float) -> Cost:
    cluster, machine = config.cluster, setting.machine
    reliability = reliability_of(
        cluster, n_devices=machine.n_devices, n_params=setting.work.n_params
    )
    return cost_of(
        hours,
        reliability,
        n_devices=machine.n_devices,
        usd_per_device_hour=usd_per_device_hour(config),
        power_w=cluster.device.power_w,
    )


def _interval(value: float, spread: float) -> list[float]:
    return [value * math.exp(-spread), value * math.exp(spread)]
