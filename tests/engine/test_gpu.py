"""One GPU: the mathematics is the CPU's, NCCL and DeepSpeed serve one rank, and a run that is
stopped continues as it was."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling.parallel.grid import Ranks
from scaling.planner.layout import Layout
from tests.support.layout_runs import FAMILIES, REFERENCE, layout, train
from tests.support.runs import Run, Workplace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="there is no GPU, or SCALING_TEST_GPU is not set"
    ),
]

N_STEPS = 10
FP32_RTOL = 1e-4  # other kernels sum in another order
BF16_LOSS_RTOL, BF16_NORM_RTOL = 2e-3, 3e-2  # roundings of 2^-9


def curve(overrides: tuple[str, ...], layout: Layout, device: str) -> list[float]:
    """Losses and gradient norms in turn, then the held-out loss, of a process of one rank."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_curve, (overrides, layout, device))


def _curve(overrides: tuple[str, ...], layout: Layout, device: str) -> list[float]:
    import torch.distributed as dist

    if layout.engine == "deepspeed":
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    return train(Ranks(0, 1, 0), overrides, layout, 0, N_STEPS, device=device)


def assert_close(
    found: list[float], expected: list[float], loss_rtol: float, norm_rtol: float
) -> None:
    losses, norms = [*range(0, 2 * N_STEPS, 2), 2 * N_STEPS], range(1, 2 * N_STEPS, 2)
    np.testing.assert_allclose(np.array(found)[losses], np.array(expected)[losses], rtol=loss_rtol)
    np.testing.assert_allclose(np.array(found)[norms], np.array(expected)[norms], rtol=norm_rtol)


@pytest.mark.parametrize("family", FAMILIES)
def test_fp32_is_that_of_the_cpu(family: str) -> None:
    expected = curve(FAMILIES[family], REFERENCE, "cpu")
    assert_close(curve(FAMILIES[family], REFERENCE, "cuda:0"), expected, FP32_RTOL, 10 * FP32_RTOL)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_is_that_of_the_cpu(family: str) -> None:
    overrides = (*FAMILIES[family], "precision=bf16")
    assert_close(
        curve(overrides, REFERENCE, "cuda:0"),
        curve(overrides, REFERENCE, "cpu"),
        BF16_LOSS_RTOL,
        BF16_NORM_RTOL,
    )


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_of_one_rank_over_nccl(stage: int) -> None:
    found = curve(FAMILIES["gpt"], layout(zero_stage=stage, micro=4), "cuda:0")
    assert_close(found, curve(FAMILIES["gpt"], REFERENCE, "cpu"), FP32_RTOL, 10 * FP32_RTOL)


GPU = (
    "cluster=local",
    "cluster.devices_per_node=1",
    "precision=bf16",
    "layout=manual",
    "layout.dp=1",
    "train.n_tokens=204800",
)


def losses(run: Run) -> dict[int, Any]:
    return {
        record["step"]: record["train/loss"] for record in run.records() if "train/loss" in record
    }


@pytest.mark.parametrize("engine", ["reference", "deepspeed"])
def test_a_run_that_is_stopped_goes_on_as_it_was(
    workplace: Workplace, engine: str, tmp_path: Path
) -> None:
    words = (*GPU, f"layout.engine={engine}")
    whole = workplace.finish(*words, root=tmp_path / "whole")
    begun = workplace.start(*words, root=tmp_path / "parts")
    begun.wait_for_step(100)
    begun.signal(signal.SIGTERM)
    assert begun.wait() == 75, begun.output
    parts = workplace.finish(*words, root=tmp_path / "parts")
    expected, found = losses(whole), losses(parts)
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-6)
