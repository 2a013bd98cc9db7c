"""Rates of steps, by hand-made numbers."""

import pytest

from scaling.metrics import names
from scaling.metrics.throughput import RECENT_STEPS, ThroughputMeter


def test_rates_of_two_steps_on_four_devices():
    meter = ThroughputMeter(6e9, 4, peak_flops_per_s=312e12)
    meter.step(400_000, 1.5, data_wait_s=0.25)
    meter.step(400_000, 2.5, data_wait_s=0.75)
    assert meter.take() == pytest.approx(
        {
            names.TOKENS_PER_S: 200_000,
            names.STEP_TIME_S: 2.0,
            names.DATA_WAIT_S: 0.5,
            names.DEVICE_TOKENS_PER_S: 50_000,
            names.DEVICE_TFLOPS: 300.0,
            names.DEVICE_MFU: 300 / 312,
        },
        rel=1e-12,
    )


def test_what_is_not_known_is_absent():
    meter = ThroughputMeter(6e9, 1, peak_flops_per_s=None)
    assert meter.take() == {}
    meter.step(100, 1.0)
    rates = meter.take()
    assert names.DEVICE_MFU not in rates
    assert names.DATA_WAIT_S not in rates
    assert rates[names.TOKENS_PER_S] == 100


def test_each_interval_starts_anew():
    meter = ThroughputMeter(1.0, 1, None)
    meter.step(1000, 1.0)
    meter.take()
    meter.step(10, 1.0)
    assert meter.take()[names.TOKENS_PER_S] == 10
    assert meter.take() == {}


def test_the_recent_rate_is_that_of_the_last_steps_alone():
    meter = ThroughputMeter(1.0, 1, None)
    assert meter.recent_tokens_per_s is None
    meter.step(100, 500.0)  # a first step, which compiles
    assert meter.recent_tokens_per_s == 0.2
    for _ in range(RECENT_STEPS):
        meter.step(100, 0.5)
        meter.take()
    assert meter.recent_tokens_per_s == 200
