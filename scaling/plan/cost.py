"""What a run takes beside devices: hours, money, energy, and what failures add."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.plan.failures import checkpoint_interval_s, hours_between_failures

CHECKPOINT_BYTES_PER_PARAM = 12
"""fp32 weights and two moments (scaling.fragments)."""

COPY_BYTES_PER_S_PER_DEVICE = 1e9
"""From a device into the host's memory, while training waits: assumption, far below a PCIe 4.0 link's 25 GB/s, and below the
18 GB/s measured from memory to memory on one CPU core."""

WRITE_BYTES_PER_S_PER_NODE = 2e9
"""Of shared storage, behind training: assumption."""

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
    checkpoint_every_s  the interval at which that is best (`failures.checkpoint_interval_s`)
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

    With mean time M between failures, a checkpoint each t that keeps training waiting for d and is on the disk w later, and a
    restart of R, a part d / t + (t / 2 + w + R) / M is lost.
    """
    hours = hours_between_failures(n_devices, n_nodes, preemptible=preemptible)
    size_bytes = CHECKPOINT_BYTES_PER_PARAM * n_params
    cost_s = size_bytes / (n_devices * COPY_BYTES_PER_S_PER_DEVICE)
    write_s = size_bytes / (n_nodes * WRITE_BYTES_PER_S_PER_NODE)
    every_s = checkpoint_interval_s(cost_s, write_s, hours)
    return 1 / (1 + cost_s / every_s + (every_s / 2 + write_s + RESTART_S) / (3600 * hours)), every_s
