"""The model of time by its parts: products, attention, hosts, links and the traffic of each way to
split a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.planner.cost.constants import CONSTANTS
from scaling.planner.cost.operations import block_work, product_s
from scaling.planner.cost.setting import Setting, setting_of
from scaling.planner.cost.software import Software
from scaling.planner.cost.time_model import StepTime, step_time
from scaling.planner.layout import Layout
from scaling.planner.measured.systems import FSDP, MEGATRON
from tests.support.configs import composed

LAYOUT = Layout(
    dp=16,
    tp=1,
    pp=1,
    zero_stage=1,
    micro_batch_size=1,
    grad_accum_steps=32,
    activation_checkpointing="none",
    engine="deepspeed",
)


def on(cluster: str, model: str = "gpt_7b") -> Setting:
    return setting_of(composed(f"model={model}", f"cluster={cluster}"))


def timed(setting: Setting, layout: Layout, software: Software = MEGATRON) -> StepTime:
    found = step_time(setting.work, layout, software, setting.machine)
    assert found is not None
    return found


def test_a_large_product_takes_its_arithmetic_and_half_its_memory_time() -> None:
    machine = on("8xA100").machine
    n = 8192
    arithmetic = 2 * n**3 / (CONSTANTS.gemm_ampere * 312e12)
    memory = 2 * 3 * n**2 / (CONSTANTS.bandwidth * 2039e9)
    assert product_s(n, n, n, machine, CONSTANTS) == pytest.approx(arithmetic + 0.5 * memory)
    assert product_s(n, n, n, machine, CONSTANTS, fp8=True) == pytest.approx(
        arithmetic / CONSTANTS.fp8 + 0.5 * memory
    )


@pytest.mark.parametrize(("columns", "slower"), [(50304, 1), (50312, 1.25), (50257, 3)])
def test_odd_widths_are_slow(columns: int, slower: float) -> None:
    """Widths of the vocabulary of GPT-2: padded to 128, a multiple of 8, and as it is."""
    machine, times = on("8xA100").machine, {}
    for width in (50304, columns):
        memory = 2 * (2048**2 + 2 * 2048 * width) / (CONSTANTS.bandwidth * 2039e9)
        times[width] = (product_s(2048, width, 2048, machine, CONSTANTS) - 0.5 * memory) / width
    assert times[columns] / times[50304] == pytest.approx(slower)


@given(st.integers(1, 200), st.sampled_from(["none", "selective", "full"]))
def test_device_and_host_wait_for_each_other_in_part(kernels: int, checkpointing: str) -> None:
    setting, layout = (
        on("8xA100", "gpt_350m"),
        replace(LAYOUT, activation_checkpointing=checkpointing),
    )  # type: ignore[arg-type]
    stack = setting.work.stacks[0]
    times = [
        block_work(
            setting.work, stack, layout, replace(MEGATRON, kernels=n), setting.machine, CONSTANTS
        ).compute_s
        for n in (0, kernels)
    ]
    host = kernels * CONSTANTS.kernel_s * (3.6 if checkpointing == "full" else 2.6)
    assert max(times[0], host) < times[1] <= times[0] + host


def test_later_attention_is_faster_and_unfused_attention_slower() -> None:
    setting = on("8xH100")
    fused = [timed(setting, LAYOUT, replace(MEGATRON, flash=n)).compute_s for n in (1, 2, 3)]  # type: ignore[arg-type]
    softmax = timed(setting, LAYOUT, replace(MEGATRON, attention="softmax")).compute_s
    eager = timed(setting, LAYOUT, replace(MEGATRON, attention="eager")).compute_s
    assert sorted(fused, reverse=True) == fused
    assert fused[0] < softmax < eager


def test_gradients_travel_every_micro_batch_from_stage_2_on() -> None:
    setting = on("2x8xA100")
    by_stage = {
        stage: timed(setting, replace(LAYOUT, zero_stage=stage), FSDP).data_parallel_s
        for stage in (1, 2)
    }
    assert by_stage[2] > 10 * by_stage[1]
    once = replace(FSDP, shards_gradients=False)
    assert timed(setting, replace(LAYOUT, zero_stage=2), once).data_parallel_s == pytest.approx(
        by_stage[1]
    )


def test_copies_of_a_shard_have_a_ring_of_their_own() -> None:
    """Hybrid shards within a node spare the links between nodes the gathers, but each rank reduces
    by its own port."""
    setting = on("4x8xA100", "gpt_13b")
    layout = replace(LAYOUT, dp=32, zero_stage=3, grad_accum_steps=8)
    full, hybrid = (
        timed(setting, replace(layout, shard_ranks=ranks), FSDP).data_parallel_s
        for ranks in (None, 8)
    )
    assert hybrid < full
    params, port = setting.work.n_params, CONSTANTS.fabric_inter * 25e9
    reduced = 2 * 3 / 4 * 4 * params / 8 / port
    alone = timed(
        setting, replace(layout, shard_ranks=8), replace(FSDP, hides_gathers=False)
    ).data_parallel_s
    gathered = 8 * 3 * 7 / 8 * 2 * params / (CONSTANTS.fabric_intra * 300e9)
    assert alone == pytest.approx(reduced + gathered, rel=0.05)


def test_whole_gradients_between_stages_cost_what_they_are_larger() -> None:
    setting = on("4x8xA100", "gpt_30b")
    layout = replace(LAYOUT, dp=1, tp=8, pp=4, grad_accum_steps=64)
    parts, whole = (
        timed(setting, layout, replace(MEGATRON, whole_gradients=how)).bubble_s
        for how in (False, True)
    )
    bytes_sent = setting.work.seq_len * setting.work.d_model * 2
    more = 64 * (1 - 1 / 8) * bytes_sent / (CONSTANTS.fabric_inter * 25e9)
    assert whole - parts == pytest.approx(more, rel=0.03)


def test_positions_dealt_anew_and_passed_round_both_cost() -> None:
    setting = on("8xA100")
    layout = replace(LAYOUT, dp=2, cp=4)
    ulysses, ring = (
        timed(setting, replace(layout, cp_attention=how)) for how in ("ulysses", "ring")
    )
    assert ulysses.tensor_parallel_s > 0 < ring.tensor_parallel_s
    assert ulysses.compute_s == ring.compute_s


@given(
    st.sampled_from(["gpt_125m", "gpt_7b", "t5_base", "bert_large"]),
    st.integers(0, 4),
    st.sampled_from([1, 2, 3]),
)
def test_larger_micro_batches_are_no_slower(model: str, power: int, stage: int) -> None:
    setting = on("2x8xA100", model)
    layout = replace(
        LAYOUT, zero_stage=stage, micro_batch_size=2**power, grad_accum_steps=32 // 2**power
    )
    larger = replace(
        layout,
        micro_batch_size=2 * layout.micro_batch_size,
        grad_accum_steps=layout.grad_accum_steps // 2,
    )
    assert timed(setting, larger).step_time_s <= timed(setting, layout).step_time_s
