"""What a run takes beside devices: hours, money, energy, and what failures add."""

from __future__ import annotations

import math
from dataclasses import dataclass

DEVICE_HOURS_PER_FAILURE = 50_000
"""Llama 3 405B: 419 unexpected interruptions in 54 days on 16 384 H100s (Grattafiori et al. 2024,
arXiv:2407.21783, section 3.3)."""

NODE_HOURS_PER_PREEMPTION = 20.0
"""Of a preemptible machine: 5 % an hour, the lowest band of AWS's Spot Instance Advisor being below that a month: assumption."""

CHECKPOINT_BYTES_PER_PARAM = 14
"""Weights in 16 bits, fp32 master and two moments."""

WRITE_BYTES_PER_S_PER_NODE = 2e9
"""Of shared storage, while training waits: assumption."""

RESTART_S = 300.0
"""From a failure to the first step after it, machines found and the checkpoint read: assumption (here a worker killed on one
machine cost 8 to 15 s)."""

KG_CO2E_PER_KWH = 0.473
"""World average of electricity in 2024 (Ember, Global Electricity Review 2025)."""


@dataclass(frozen=True)
class Cost:
    """Of a whole run without failures; device_hours, usd and kwh are of every device of the cluster, used or not.

    kwh               at the board power limit, without hosts and cooling: an upper bound of the boards' own
    goodput           share of the time that steps which count take, failures and checkpoints included
    expected_hours    hours / goodput
    checkpoint_every_s  the interval at which that is best (Daly 2006, doi:10.1016/j.future.2004.11.016, first order)
    """

    hours: float
    device_hours: float
    usd: float | None
    kwh: float | None
    kg_co2e: float | None
    goodput: float
    expected_hours: float
    checkpoint_every_s: float


def cost_of(
    hours: float, *, n_devices: int, n_nodes: int, n_params: int, usd_per_device_hour: float | None, power_w: float | None,
    preemptible: bool,
) -> Cost:  # fmt: skip
    device_hours = hours * n_devices
    kwh = None if power_w is None else device_hours * power_w / 1000
    goodput, every_s = goodput_of(n_devices, n_nodes, n_params, preemptible=preemptible)
    return Cost(
        hours=hours,
        device_hours=device_hours,
        usd=None if usd_per_device_hour is None else device_hours * usd_per_device_hour,
        kwh=kwh,
        kg_co2e=None if kwh is None else kwh * KG_CO2E_PER_KWH,
        goodput=goodput,
        expected_hours=hours / goodput,
        checkpoint_every_s=every_s,
    )


def goodput_of(n_devices: int, n_nodes: int, n_params: int, *, preemptible: bool) -> tuple[float, float]:
    """Share of useful time, and the checkpoint interval in seconds at which it is greatest.

    With mean time M between failures, a checkpoint of d seconds each t and a restart of R, a part d / t + (t / 2 + R) / M is
    lost; the best t is sqrt(2 d M).
    """
    per_hour = n_devices / DEVICE_HOURS_PER_FAILURE + (n_nodes / NODE_HOURS_PER_PREEMPTION if preemptible else 0.0)
    between_s = 3600 / per_hour
    write_s = CHECKPOINT_BYTES_PER_PARAM * n_params / (n_nodes * WRITE_BYTES_PER_S_PER_NODE)
    every_s = math.sqrt(2 * write_s * between_s)
    return 1 / (1 + write_s / every_s + (every_s / 2 + RESTART_S) / between_s), every_s
