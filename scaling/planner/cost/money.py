"""What a run takes beside devices: hours, money, energy, and what failures add."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scaling.config.cluster import ClusterConfig
from scaling.planner.cost.failures import checkpoint_interval_s, hours_between_failures

CHECKPOINT_BYTES_PER_PARAM = 12
"""fp32 weights and two moments (scaling/checkpoint/fragments.py)."""

COPY_BYTES_PER_S_PER_DEVICE = 1e9
"""Rate from a device into the host's memory, while training waits: assumption, far below a PCIe 4.0
link's 25 GB/s, and below the 18 GB/s measured from memory to memory on one CPU core."""

WRITE_BYTES_PER_S_PER_NODE = 2e9
"""Rate of writing to shared storage, while training continues: assumption."""

RESTART_S = 300.0
"""Time from a failure to the first step after it, with machines found and the checkpoint read:
assumption (here a worker killed on one machine cost 8 to 15 s)."""

KG_CO2E_PER_KWH = 0.473
"""World average of electricity in 2024 (Ember, Global Electricity Review 2025)."""


@dataclass(frozen=True)
class Reliability:
    """How often a run fails, for how long a checkpoint keeps training waiting and until when it is
    on the disk, and a restart."""

    hours_between_failures: float
    stall_s: float
    write_s: float
    restart_s: float


@dataclass(frozen=True)
class Cost:
    """Cost of a whole run without failures; device_hours, usd and kwh are of every device of the
    cluster, used or not.

    kwh               at the board power limit, without hosts and cooling: an upper bound of the
                      boards' own
    goodput           share of the time that steps which count take, failures and checkpoints
                      included
    expected_hours    hours / goodput, which expected_usd pays for
    checkpoint_every_s  the interval at which that is best (`failures.checkpoint_interval_s`)
    """

    hours: float
    device_hours: float
    usd: float | None
    kwh: float | None
    kg_co2e: float | None
    hours_between_failures: float
    stall_s: float
    write_s: float
    restart_s: float
    checkpoint_every_s: float
    goodput: float
    expected_hours: float
    expected_usd: float | None


def cost_of(
    hours: float,
    reliability: Reliability,
    *,
    n_devices: int,
    usd_per_device_hour: float | None,
    power_w: float | None,
) -> Cost:
    device_hours = hours * n_devices
    kwh = None if power_w is None else device_hours * power_w / 1000
    usd = None if usd_per_device_hour is None else device_hours * usd_per_device_hour
    every_s = checkpoint_interval_s(
        reliability.stall_s, reliability.write_s, reliability.hours_between_failures
    )
    goodput = goodput_of(reliability, every_s)
    return Cost(
        hours=hours,
        device_hours=device_hours,
        usd=usd,
        kwh=kwh,
        kg_co2e=None if kwh is None else kwh * KG_CO2E_PER_KWH,
        hours_between_failures=reliability.hours_between_failures,
        stall_s=reliability.stall_s,
        write_s=reliability.write_s,
        restart_s=reliability.restart_s,
        checkpoint_every_s=every_s,
        goodput=goodput,
        expected_hours=hours / goodput,
        expected_usd=None if usd is None else usd / goodput,
    )


def reliability_of(cluster: ClusterConfig, *, n_devices: int, n_params: int) -> Reliability:
    """What a cluster says of itself, else what is assumed above."""
    size_bytes = CHECKPOINT_BYTES_PER_PARAM * n_params
    gb_per_s = cluster.checkpoint_gb_per_s
    write_bytes_per_s = cluster.n_nodes * (
        WRITE_BYTES_PER_S_PER_NODE if gb_per_s is None else 1e9 * gb_per_s
    )
    return Reliability(
        hours_between_failures=hours_between_failures(cluster, n_devices),
        stall_s=size_bytes / (n_devices * COPY_BYTES_PER_S_PER_DEVICE),
        write_s=size_bytes / write_bytes_per_s,
        restart_s=RESTART_S if cluster.restart_s is None else cluster.restart_s,
    )


def goodput_of(reliability: Reliability, every_s: float) -> float:
    """Share of useful time with a checkpoint after each `every_s` of training, where failures come
    as a Poisson process (Daly 2006, doi:10.1016/j.future.2004.11.016, eq. 20). Each costs a restart
    and what was trained since the last checkpoint that is on the disk, so what is trained while one
    is written counts with the restart."""
    between_s = 3600 * reliability.hours_between_failures
    lost = (every_s + reliability.stall_s) / between_s
    again = (reliability.restart_s + reliability.write_s) / between_s
    if lost + again > 700:  # e^700 is about the largest float
        return 0.0
    return every_s / (between_s * math.exp(again) * math.expm1(lost))
