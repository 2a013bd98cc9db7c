"""How often a cluster fails, and how often to save against that."""

from __future__ import annotations

import math

from scaling.config.cluster import ClusterConfig

DEVICE_HOURS_PER_FAILURE = 50_000
"""Llama 3 405B: 419 unexpected interruptions in 54 days on 16 384 H100s (Grattafiori et al. 2024,
arXiv:2407.21783, section 3.3)."""

NODE_HOURS_PER_PREEMPTION = 20.0
"""Mean time until a preemptible machine is taken back, 5 % an hour. The lowest band of AWS's Spot
Instance Advisor is below 5 % a month: assumption."""

HOURS_BETWEEN_INTERRUPTIONS = 8.0
"""Mean time between interruptions by whoever works on the machine: once a working day.
Assumption."""


def hours_between_failures(cluster: ClusterConfig, n_devices: int) -> float:
    """Mean time between failures of a run on `n_devices` of a cluster: what it says, else what its
    size and kind let expect."""
    if cluster.hours_between_failures is not None:
        return cluster.hours_between_failures
    per_hour = n_devices / DEVICE_HOURS_PER_FAILURE
    if cluster.preemptible:
        per_hour += cluster.n_nodes / (cluster.preemption_hours or NODE_HOURS_PER_PREEMPTION)
    if cluster.name == "local":
        per_hour += 1 / HOURS_BETWEEN_INTERRUPTIONS
    return 1 / per_hour


def with_experience(expected_hours: float, *, hours: float, n_failures: int) -> float:
    """Mean hours between failures after `n_failures` in so many `hours`, where `expected_hours`
    were expected.

    The expectation counts as one failure seen in so many hours: the posterior mean of a Poisson
    rate under a gamma prior.
    """
    return (expected_hours + hours) / (1 + n_failures)


def checkpoint_interval_s(cost_s: float, write_s: float, hours_between: float) -> float:
    """Seconds between checkpoints at which the least time is lost.

    cost_s: for which a checkpoint keeps training from its work; write_s: until it is on the disk,
    behind training. With M between failures, cost / t + (t / 2 + write) / M is lost, whatever is
    written behind: the best t is sqrt(2 cost M) (Young 1974, doi:10.1145/361147.361115; Daly 2006,
    doi:10.1016/j.future.2004.11.016, first order), and no less than the writing takes.
    """
    return max(math.sqrt(2 * cost_s * 3600 * hours_between), write_s)
