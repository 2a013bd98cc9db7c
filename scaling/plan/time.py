"""Seconds of a step: matrix products at a share of the peak, and the traffic of ZeRO over the slowest link."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.config import ClusterConfig, RunConfig
from scaling.plan.budget import tokens_per_step
from scaling.plan.counts import count
from scaling.plan.degrees import Layout
from scaling.plan.memory import dtype_bytes

WIDE_EFFICIENCY = 0.45
"""Share of the dense peak that is computed with at d_model >= 2048: assumption, amid published figures for whole runs
(0.46 for PaLM, Chowdhery et al. 2022, table 3; 0.42 to 0.56 on A100s, Korthikanti et al. 2022, table 5)."""

WIDE = 2048
"""Width from which matrix products fill a device; below it the share falls with its square root: assumption."""

RECOMPUTE = 4 / 3
"""Full checkpointing runs the forward, a third of a step, once more (Korthikanti et al. 2022, section 5)."""

BLOCK_LAUNCH_S = 0.5e-3
"""Least time of one block's forward and backward: about 100 kernels at 5 us to launch each, which no small model is under
without CUDA graphs: assumption."""

OVERLAP = 0.5
"""Share of the computing time behind which traffic can hide: assumption."""


@dataclass(frozen=True)
class TimeEstimate:
    """Predicted, never measured. `mfu` counts the model's FLOPs without recomputation, over the peak of the used devices."""

    step_time_s: float
    tokens_per_s: float
    mfu: float
    compute_s: float
    communication_s: float


def estimate_time(config: RunConfig, layout: Layout) -> TimeEstimate | None:
    """Time of one optimiser step; None where the device's peak, or a link that is needed, is unknown."""
    peak = peak_flops_per_s(config)
    communication_s = _communication_s(config, layout)
    if peak is None or communication_s is None:
        return None
    tokens = tokens_per_step(config)
    ideal_s = tokens * count(config).flops_per_token / (layout.world_size * peak)
    recompute = RECOMPUTE if layout.activation_checkpointing == "full" else 1.0
    launch_s = layout.grad_accum_steps * config.model.n_layers * BLOCK_LAUNCH_S
    compute_s = recompute * max(ideal_s / _efficiency(config.model.d_model), launch_s)
    step_time_s = compute_s + max(0.0, communication_s - OVERLAP * compute_s)
    return TimeEstimate(step_time_s, tokens / step_time_s, ideal_s / step_time_s, compute_s, communication_s)


def peak_flops_per_s(config: RunConfig) -> float | None:
    """Dense peak of one device in the run's dtype, FLOP/s; None where unknown."""
    device = config.cluster.device
    tflops = device.peak_tflops_fp32 if config.dtype == "fp32" else device.peak_tflops_bf16
    return None if tflops is None else tflops * 1e12


def _efficiency(d_model: int) -> float:
    return WIDE_EFFICIENCY * min(1.0, (d_model / WIDE) ** 0.5)


def _communication_s(config: RunConfig, layout: Layout) -> float | None:
    """Seconds that one rank's link is busy in a step, for P parameters (Rajbhandari et al. 2020, section 7).

    Gradients are reduced once a step (stage 1) or once a micro-batch (stages 2, 3), P values each time; updated weights
    are gathered once a step, or with stage 3 twice a micro-batch: 2P or 3P in all without accumulation.
    """
    if layout.dp == 1:
        return 0.0
    gb_per_s = _slowest_link(config.cluster, layout)
    if gb_per_s is None:
        return None
    accum = layout.grad_accum_steps
    volume = {1: 2, 2: accum + 1, 3: 3 * accum}[layout.zero_stage]
    sent = volume * count(config).n_params * dtype_bytes(config) * (layout.dp - 1) / layout.dp
    return sent / (gb_per_s * 1e9)


def _slowest_link(cluster: ClusterConfig, layout: Layout) -> float | None:
    links = [cluster.intra_node_gb_per_s]
    if cluster.devices_per_node is None or layout.world_size > cluster.devices_per_node:
        links.append(cluster.inter_node_gb_per_s)
    known = [link for link in links if link is not None]
    return min(known) if len(known) == len(links) else None
