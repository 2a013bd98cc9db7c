"""What a run takes beside devices: hours, money, energy, and what failures add."""

from __future__ import annotations

import math
from dataclasses import dataclass

DEVICE_HOURS_PER_FAILURE = 50_000
"""Llama 3 405B: 419 unexpected interruptions in 54 days on 16 384 H100s (Grattafiori et al. 2024,
arXiv:2407.21783, section 3.3)."""

NODE_HOURS_PER_PREEMPTION = 20.0
"""Of a preemptible machine: 5 % an hour, the lowest band of AWS's Spot Instance Advisor being below that a month: assumption."""

CHECKPOINT_BYTES_PER_PARAM = 12
"""Weights and two moments in fp32 (scaling/fragments.py)."""

WRITE_BYTES_PER_S_PER_NODE = 2e9
"""Of shared storage, while training waits: assumption."""

RESTART_S = 300.0
"""From a failure to the first step after it, machines found and the checkpoint read: assumption (here a worker killed on one
machine cost 8 to 15 s)."""

KG_CO2E_PER_KWH = 0.473
"""World average of electricity in 2024 (Ember, Global Electricity Review 2025)."""


@dataclass(frozen=True)
class Reliability:
    """How often the machines of a run fail, and what a failure and a checkpoint cost."""

    hours_between_failures: float
    checkpoint_s: float
    restart_s: float


@dataclass(frozen=True)
class Cost:
    """Of a whole run without failures; device_hours, usd and kwh are of every device of the cluster, used or not.

    kwh               at the board power limit, without hosts and cooling: an upper bound of the boards' own
    goodput           share of the time that steps which count take, failures and checkpoints included
    expected_hours    hours / goodput, which expected_usd pays for
    checkpoint_every_s  the interval at which that is best
    """

    hours: float
    device_hours: float
    usd: float | None
    kwh: float | None
    kg_co2e: float | None
    hours_between_failures: float
    checkpoint_s: float
    restart_s: float
    checkpoint_every_s: float
    goodput: float
    expected_hours: float
    expected_usd: float | None


def cost_of(
    hours: float, reliability: Reliability, *, n_devices: int, usd_per_device_hour: float | None, power_w: float | None
) -> Cost:
    device_hours = hours * n_devices
    kwh = None if power_w is None else device_hours * power_w / 1000
    usd = None if usd_per_device_hour is None else device_hours * usd_per_device_hour
    every_s = best_interval_s(reliability)
    goodput = goodput_of(reliability, every_s)
    return Cost(
        hours=hours,
        device_hours=device_hours,
        usd=usd,
        kwh=kwh,
        kg_co2e=None if kwh is None else kwh * KG_CO2E_PER_KWH,
        hours_between_failures=reliability.hours_between_failures,
        checkpoint_s=reliability.checkpoint_s,
        restart_s=reliability.restart_s,
        checkpoint_every_s=every_s,
        goodput=goodput,
        expected_hours=hours / goodput,
        expected_usd=None if usd is None else usd / goodput,
    )


def reliability_of(
    *, n_devices: int, n_nodes: int, n_params: int, preemptible: bool, preemption_hours: float | None = None,
    checkpoint_gb_per_s: float | None = None, restart_s: float | None = None,
) -> Reliability:  # fmt: skip
    """preemption_hours: between preemptions of one node; checkpoint_gb_per_s: of one node; None: what is assumed above."""
    per_hour = n_devices / DEVICE_HOURS_PER_FAILURE
    if preemptible:
        per_hour += n_nodes / (preemption_hours or NODE_HOURS_PER_PREEMPTION)
    write = WRITE_BYTES_PER_S_PER_NODE if checkpoint_gb_per_s is None else 1e9 * checkpoint_gb_per_s
    return Reliability(
        hours_between_failures=1 / per_hour,
        checkpoint_s=CHECKPOINT_BYTES_PER_PARAM * n_params / (n_nodes * write),
        restart_s=RESTART_S if restart_s is None else restart_s,
    )


def best_interval_s(reliability: Reliability) -> float:
    """Of training between checkpoints, at which a run is expected to end first (Daly 2006, doi:10.1016/j.future.2004.11.016,
    eq. 37)."""
    between_s, delta = 3600 * reliability.hours_between_failures, reliability.checkpoint_s
    if delta >= 2 * between_s:
        return between_s
    ratio = delta / (2 * between_s)
    return math.sqrt(2 * delta * between_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - delta


def goodput_of(reliability: Reliability, every_s: float) -> float:
    """Share of useful time with a checkpoint after each `every_s` of training, where failures come as a Poisson process and each
    costs a restart and what was trained since the last checkpoint (the same, eq. 20)."""
    between_s = 3600 * reliability.hours_between_failures
    lost = (every_s + reliability.checkpoint_s) / between_s
    if lost > 700:  # e^700 is about the largest float
        return 0.0
    return every_s / (between_s * math.exp(reliability.restart_s / between_s) * math.expm1(lost))
