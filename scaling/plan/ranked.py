"""The planner's answer as plain values: what `python -m scaling.plan` prints, and writes with --json."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

from scaling.config import RunConfig
from scaling.plan.budget import token_budget, tokens_per_step
from scaling.plan.constants import CONSTANTS, Constants
from scaling.plan.cost import cost_of
from scaling.plan.counts import count
from scaling.plan.explain import what_would_fit, what_would_help, why_first
from scaling.plan.predict import Prediction
from scaling.plan.rules import not_run_here
from scaling.plan.search import Ranking, search
from scaling.plan.setting import Setting, setting_of, usd_per_device_hour

FLOPS_DEFINITION = (
    "forward and backward, two FLOPs a multiply-add, every matrix and attention over all positions, without recomputation "
    "(Chowdhery et al. 2022, appendix B)"
)


def ranked_plan(config: RunConfig, *, time_scale: float = 1.0, refused: bool = False) -> dict[str, Any]:
    """Every legal layout of a configuration whose cluster is resolved, the best first.

    time_scale: predicted over true rate of one's own machine (`plan.calibrate`). Nothing is raised where nothing fits: the
    answer then says what would.
    """
    setting, batch, counts = setting_of(config), config.train.global_batch_size, count(config)
    ranking = search(setting, batch, keep_refused=refused)
    machine = setting.machine
    answer: dict[str, Any] = {
        "model": config.model.name,
        "n_params": counts.n_params,
        "flops_per_token": counts.flops_per_token,
        "flops_definition": FLOPS_DEFINITION,
        "n_tokens": token_budget(config),
        "global_batch_size": batch,
        "seq_len": config.train.seq_len,
        "dtype": config.dtype,
        "cluster": config.cluster.name,
        "device": machine.device,
        "n_devices": machine.n_devices,
        "n_nodes": machine.n_nodes,
        "device_memory_bytes": machine.memory_bytes,
        "n_legal": ranking.n_legal,
        "time_scale": time_scale,
        "layouts": [_layout(config, setting, found, time_scale) for found in ranking.fitting],
    }
    answer |= _words(setting, ranking, batch)
    if refused:
        rules = Counter(rule for _, rule in ranking.refused)
        answer["refused"] = [{"rule": rule, "n_layouts": n} for rule, n in rules.most_common()]
    return answer


def _words(setting: Setting, ranking: Ranking, batch: int) -> dict[str, Any]:
    if ranking.fitting:
        return {"why": why_first(ranking), "help": what_would_help(setting, ranking, batch), "would_fit": []}
    return {"why": None, "help": None, "would_fit": list(what_would_fit(setting, ranking, batch))}


def _layout(
    config: RunConfig, setting: Setting, found: Prediction, scale: float, constants: Constants = CONSTANTS
) -> dict[str, Any]:
    """One layout: degrees, memory by part, verdict, time by part, rates and cost with their 80 % intervals."""
    memory = found.memory
    out: dict[str, Any] = asdict(found.layout) | {"world_size": found.layout.world_size}
    out["verdict"] = found.verdict
    out["p_fits"] = found.p_fits
    out["runs_here"] = not_run_here(found.layout) is None
    out["not_run_because"] = not_run_here(found.layout)
    out["memory_bytes"] = asdict(memory) | {"total": memory.total, "need": round(found.need_bytes)}
    out["memory_interval_bytes"] = [round(end) for end in _interval(memory.total, constants.memory_spread)]
    if found.time is None or found.tokens_per_s_per_device is None or found.mfu is None:
        return out | {"step_time_s": None, "tokens_per_s_per_device": None, "mfu": None, "cost": None}
    step_s, rate, mfu = found.time.step_time_s * scale, found.tokens_per_s_per_device / scale, found.mfu / scale
    out["step_time_s"] = step_s
    out["step_time_interval_s"] = _interval(step_s, constants.time_spread)
    out["time_s"] = {name: seconds * scale for name, seconds in asdict(found.time).items()}
    out["tokens_per_s_per_device"] = rate
    out["tokens_per_s_per_device_interval"] = _interval(rate, constants.time_spread)
    out["mfu"] = mfu
    out["mfu_interval"] = _interval(mfu, constants.time_spread)
    hours = token_budget(config) / tokens_per_step(config) * step_s / 3600
    out["cost"] = asdict(_cost(config, setting, hours))
    out["hours_interval"] = _interval(hours, constants.time_spread)
    return out


def _cost(config: RunConfig, setting: Setting, hours: float) -> Any:
    return cost_of(
        hours,
        n_devices=setting.machine.n_devices,
        n_nodes=setting.machine.n_nodes,
        n_params=setting.work.n_params,
        usd_per_device_hour=usd_per_device_hour(config),
        power_w=config.cluster.device.power_w,
        preemptible=config.cluster.preemptible,
    )


def _interval(value: float, spread: float) -> list[float]:
    return [value * math.exp(-spread), value * math.exp(spread)]
