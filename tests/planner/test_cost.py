"""What failures add to a run: the formulas against a run that is simulated, and what a cluster says
of itself."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.planner.answer import ranked_plan
from scaling.planner.cost.failures import checkpoint_interval_s
from scaling.planner.cost.money import Reliability, cost_of, goodput_of, reliability_of
from scaling.planner.machines.detect import n_devices
from tests.support.configs import composed


def simulated(reliability: Reliability, every_s: float, n_intervals: int) -> float:
    """Goodput of a run whose failures are drawn: each sends it back to its last checkpoint on the
    disk, and restarts, and what is trained again of the time for which that was written, may fail
    too."""
    drawn, spent_s = random.Random(0), 0.0
    rate = 1 / (3600 * reliability.hours_between_failures)
    for _ in range(n_intervals):
        wanted_s, again_s = (
            every_s + reliability.stall_s,
            reliability.restart_s + reliability.write_s,
        )
        while (lasts_s := drawn.expovariate(rate)) < wanted_s:
            spent_s += lasts_s
            while (lasts_s := drawn.expovariate(rate)) < again_s:
                spent_s += lasts_s
            spent_s += again_s
        spent_s += wanted_s
    return every_s * n_intervals / spent_s


def best(reliability: Reliability) -> float:
    return checkpoint_interval_s(
        reliability.stall_s, reliability.write_s, reliability.hours_between_failures
    )


@pytest.mark.parametrize(
    "reliability",
    [Reliability(100, 30, 60, 300), Reliability(1, 6, 60, 300), Reliability(0.1, 2, 10, 60)],
    ids=lambda found: str(found),
)
def test_goodput_is_that_of_a_simulated_run(reliability: Reliability) -> None:
    for factor in (0.5, 1, 2):
        every_s = factor * best(reliability)
        assert goodput_of(reliability, every_s) == pytest.approx(
            simulated(reliability, every_s, 20_000), rel=0.02
        )


@given(st.floats(1, 1e4), st.floats(0.01, 20), st.floats(0, 600))
def test_the_best_interval_is_no_worse_than_another(
    hours: float, stall_s: float, restart_s: float
) -> None:
    """Holds to first order in the interval over the time between failures, as the formula does."""
    reliability = Reliability(hours, stall_s, 0.0, restart_s)
    most = goodput_of(reliability, best(reliability))
    assert 0 < most < 1
    for factor in (0.25, 0.8, 1.25, 4):
        assert goodput_of(reliability, factor * best(reliability)) <= most * 1.01


def test_failures_cost_more_on_more_devices() -> None:
    def goodput(cluster: str) -> float:
        config = composed("model=gpt_175b", f"cluster={cluster}")
        found = reliability_of(config.cluster, n_devices=n_devices(config), n_params=10**11)
        return goodput_of(found, best(found))

    assert 1 > goodput("8xH100") > goodput("2048x8xH100")
    assert goodput("8x8xH100") > goodput("4x8xA100-spot") > 0


def test_what_a_cluster_says_of_itself_counts() -> None:
    told = ("cluster.preemption_hours=2", "cluster.restart_s=60", "cluster.checkpoint_gb_per_s=10")
    cost = ranked_plan(composed("model=gpt_7b", "cluster=4x8xA100-spot", *told))["layouts"][0][
        "cost"
    ]
    assert cost["restart_s"] == 60
    assert cost["hours_between_failures"] == pytest.approx(0.5, rel=0.01)
    assert cost["write_s"] == pytest.approx(12 * 6.66e9 / 4 / 10e9, rel=0.01)
    assert cost["stall_s"] == pytest.approx(12 * 6.66e9 / 32 / 1e9, rel=0.01)
    said = ranked_plan(
        composed("model=gpt_7b", "cluster=4x8xA100-spot", "cluster.hours_between_failures=7")
    )
    assert said["layouts"][0]["cost"]["hours_between_failures"] == 7
    calm = ranked_plan(composed("model=gpt_7b", "cluster=4x8xA100", *told))["layouts"][0]["cost"]
    assert calm["hours_between_failures"] == pytest.approx(50_000 / 32)
    assert calm["expected_usd"] < cost["expected_usd"]
    assert calm["usd"] == pytest.approx(calm["hours"] * 32 * 3.43)


def test_unknown_prices_and_powers_stay_unknown() -> None:
    cost = cost_of(
        10, Reliability(100, 10, 10, 10), n_devices=8, usd_per_device_hour=None, power_w=None
    )
    assert cost.usd is cost.expected_usd is cost.kwh is cost.kg_co2e is None
    assert cost.device_hours == 80
