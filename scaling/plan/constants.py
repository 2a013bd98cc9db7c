"""The few numbers of the planner that no data sheet gives. `tools/fit_planner.py` fits them on published measurements."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """Shares of a peak, seconds, bytes. Each begins at a physical guess, to which the fit is held by a prior.

    Provenance: the values are that script's fit on the ten sources that docs/planner.md names (2182 rows, 2026-11); but
    gemm_blackwell, squeezed and usable are assumptions, the latter two chosen with the verdicts of those sources in view.

    gemm_<generation>  share of the dense peak that a large, aligned matrix product reaches
    fp8                factor on the rate of products in 8 bits, casts included
    gemm_half          dimension at which a product reaches half of that share
    misaligned         factor on the time of a product whose inner or outer width is no multiple of 64
    attention_share    share of the product's rate that fused attention reaches
    attention_hopper   factor on it on Hopper and later, whose asynchronous units the published kernels of 2023 leave idle
    bandwidth          share of the memory bandwidth that element-wise kernels reach
    kernel_s           host seconds to launch a kernel
    fabric_intra, fabric_inter  share of a link's rate that collectives reach, within a node and between nodes
    hop_s              seconds that a ring of collectives takes for each of its ranks
    latency_s          seconds that a collective takes beside its traffic
    overlap            share of backward behind which gradients and gathered weights hide
    step_s             seconds of a step beside all else, for each rank's optimiser, loss scale and logging
    jitter             part of a step lost for each doubling of the nodes
    context_bytes      of CUDA and its libraries, on a GPU
    ring_bytes         of NCCL's buffers, for each kind of group (tp, pp, dp) that a rank belongs to
    fragments          memory reserved for each byte of short-lived tensors
    squeezed           part of those fragments that the allocator gives back when memory is short
    time_spread, memory_spread  half of an 80 % interval, in the logarithm: of errors on sources that the fit had not seen
    usable             part of a device's memory that can be allocated before it fails
    """

    gemm_volta: float = 0.6473
    gemm_ampere: float = 0.7354
    gemm_hopper: float = 0.6265
    gemm_blackwell: float = 0.62
    fp8: float = 1.447
    gemm_half: float = 109.1
    misaligned: float = 1.366
    attention_share: float = 0.4229
    attention_hopper: float = 0.6732
    bandwidth: float = 0.7337
    kernel_s: float = 2.115e-05
    fabric_intra: float = 0.6322
    fabric_inter: float = 0.4007
    hop_s: float = 3.19e-06
    latency_s: float = 2.294e-05
    overlap: float = 0.6383
    step_s: float = 0.009866
    jitter: float = 0.004729
    context_bytes: float = 1.306e09
    ring_bytes: float = 1.563e09
    fragments: float = 1.294
    squeezed: float = 0.7
    usable: float = 0.96
    time_spread: float = 0.2173
    memory_spread: float = 0.132


CONSTANTS = Constants()
