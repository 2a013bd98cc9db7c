"""The printed plan, read as a person reads it: at 80 columns and without a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from scaling.config.run_config import RunConfig
from scaling.planner.run_plan import make_plan
from scaling.planner.show.plan import plan_table
from tests.support.configs import composed

RUN_DIR = "runs/[nano]-0123abcd"


def shown(config: RunConfig, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(plan_table(config, make_plan(config), RUN_DIR))
    return out.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_cpu_plan_says_what_is_unknown() -> None:
    text = words(shown(composed()))
    for part in (
        "gpt_nano: 4 layers",
        "1.38 M with embeddings, 853 k without",
        "489, each of 16 sequences of 256 = 4096 tokens",
        "19.7 TFLOP",
        "2 workers on test CPU",
        "ZeRO stage 1, fp32",
        "8 x 1 a rank",
        "estimated 730 MB of 12 GB a device",
        "unknown time, cost and energy: the peak FLOP/s",
        "python_stdlib; tokenizer bpe, 4096 entries",
        RUN_DIR,
    ):
        assert part in text


def test_a_gpu_plan_shows_time_cost_and_energy() -> None:
    text = words(
        shown(
            composed(
                "model=gpt_70b",
                "cluster=8x8xH100",
                "cluster.usd_per_device_hour=2.5",
                "schedule=wsd",
            )
        )
    )
    for part in (
        "time estimated 227.8 days",
        "MFU 0.49",
        "USD at 2.5 USD a device-hour",
        "kWh at",
        "decay 276 B tokens",
        "(8 for keys and values)",
        "untied",
        "64 x H100-80GB in 8 nodes",
        "selective activation checkpointing",
    ):
        assert part in text


def test_idle_devices_and_preemption_are_said() -> None:
    text = words(shown(composed("cluster=4x8xA100-spot", "train.global_batch_size=24")))
    assert "8 of 32 devices stay idle: dp=24 of batch 24" in text
    assert "preemptible" in text


def test_small_amounts_are_never_rounded_to_nothing() -> None:
    text = words(
        shown(composed("cluster=8xA100", "train.n_tokens=4096", "cluster.usd_per_device_hour=1"))
    )
    assert " 0 USD" not in text
    assert " 0 kWh" not in text
    assert " ms a step" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_page_and_none_is_coloured(width: int) -> None:
    text = shown(composed("model=gpt_70b", "cluster=8x8xH100"), width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
