"""What failures add to a run: the formulas against a run that is simulated, and what a cluster says of itself."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_config import composed

from scaling.plan.cost import Reliability, best_interval_s, cost_of, goodput_of, reliability_of
from scaling.plan.ranked import ranked_plan


def simulated(reliability: Reliability, every_s: float, n_intervals: int) -> float:
    """Goodput of a run whose failures are drawn: each sends it back to its last checkpoint, and restarts may fail too."""
    drawn, spent_s = random.Random(0), 0.0
    rate = 1 / (3600 * reliability.hours_between_failures)
    for _ in range(n_intervals):
        wanted_s = every_s + reliability.checkpoint_s
        while (lasts_s := drawn.expovariate(rate)) < wanted_s:
            spent_s += lasts_s
            while (lasts_s := drawn.expovariate(rate)) < reliability.restart_s:
                spent_s += lasts_s
            spent_s += reliability.restart_s
        spent_s += wanted_s
    return every_s * n_intervals / spent_s


@pytest.mark.parametrize(
    "reliability", [Reliability(100, 30, 300), Reliability(1, 60, 300), Reliability(0.1, 20, 60)], ids=lambda found: str(found)
)
def test_goodput_is_that_of_a_simulated_run(reliability: Reliability) -> None:
    for factor in (0.5, 1, 2):
        every_s = factor * best_interval_s(reliability)
        assert goodput_of(reliability, every_s) == pytest.approx(simulated(reliability, every_s, 20_000), rel=0.02)


@given(st.floats(0.01, 1e4), st.floats(0.1, 600), st.floats(0, 600))
def test_the_best_interval_is_no_worse_than_another(hours: float, checkpoint_s: float, restart_s: float) -> None:
    reliability = Reliability(hours, checkpoint_s, restart_s)
    best = best_interval_s(reliability)
    most = goodput_of(reliability, best)
    assert 0 < most < 1
    for factor in (0.25, 0.8, 1.25, 4):
        assert goodput_of(reliability, factor * best) <= most * 1.01


def test_failures_cost_more_on_more_devices() -> None:
    def goodput(n_devices: int, *, preemptible: bool) -> float:
        found = reliability_of(n_devices=n_devices, n_nodes=-(-n_devices // 8), n_params=10**11, preemptible=preemptible)
        return goodput_of(found, best_interval_s(found))

    assert 1 > goodput(8, preemptible=False) > goodput(16384, preemptible=False)
    assert goodput(64, preemptible=False) > goodput(64, preemptible=True) > 0


def test_what_a_cluster_says_of_itself_counts() -> None:
    told = ("cluster.preemption_hours=2", "cluster.restart_s=60", "cluster.checkpoint_gb_per_s=10")
    cost = ranked_plan(composed("model=gpt_7b", "cluster=4x8xA100-spot", *told))["layouts"][0]["cost"]
    assert cost["restart_s"] == 60
    assert cost["hours_between_failures"] == pytest.approx(0.5, rel=0.01)
    assert cost["checkpoint_s"] == pytest.approx(12 * 6.66e9 / 4 / 10e9, rel=0.01)
    calm = ranked_plan(composed("model=gpt_7b", "cluster=4x8xA100", *told))["layouts"][0]["cost"]
    assert calm["hours_between_failures"] == pytest.approx(50_000 / 32)
    assert calm["expected_usd"] < cost["expected_usd"]
    assert calm["usd"] == pytest.approx(calm["hours"] * 32 * 3.43)


def test_unknown_prices_and_powers_stay_unknown() -> None:
    cost = cost_of(10, Reliability(100, 10, 10), n_devices=8, usd_per_device_hour=None, power_w=None)
    assert cost.usd is cost.expected_usd is cost.kwh is cost.kg_co2e is None
    assert cost.device_hours == 80
