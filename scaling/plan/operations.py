"""Seconds of one block, and of the head, for one micro-batch on one rank: products, attention, element-wise kernels, traffic."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.plan.constants import Constants
from scaling.plan.degrees import Layout
from scaling.plan.links import reduce_s, tensor_bytes_per_s
from scaling.plan.machine_model import Machine
from scaling.plan.software import Software
from scaling.plan.workload import Stack, Workload

ALIGNED = 64
"""Widths of products that run at full rate on tensor cores are multiples of 128 bytes (NVIDIA, Matrix Multiplication
Background User's Guide, section 2.1)."""

FUSED_BACKWARD = 2.5
"""Backward of fused attention makes five products where the forward makes two (Dao 2023, arXiv:2307.08691, section 3.1)."""

SCORE_PASSES = {"softmax": 13.0, "eager": 21.0}
"""Bytes read and written for each score of 2 bytes in the forward: written by the product 2, read and written by mask,
scale and softmax 4 (each for itself: 12), by dropout 5, read by the second product 2."""


@dataclass(frozen=True)
class Work:
    """Seconds of one micro-batch: all compute, traffic that waits, and of compute the backward with its recomputation."""

    compute_s: float
    traffic_s: float
    backward_s: float

    def plus(self, other: Work, times: float) -> Work:
        return Work(
            self.compute_s + times * other.compute_s,
            self.traffic_s + times * other.traffic_s,
            self.backward_s + times * other.backward_s,
        )


def block_work(work: Workload, stack: Stack, layout: Layout, software: Software, machine: Machine, constants: Constants) -> Work:
    """One block of `stack`."""
    tokens = layout.micro_batch_size * stack.length / layout.sp
    products = _products_s(work, stack, layout, tokens, machine, constants, fp8=software.fp8)
    core, core_backward = _attention_s(work, stack, layout, software, tokens, machine, constants)
    rest = _elementwise_s(work, layout, software, tokens, machine, constants)
    launch = software.kernels * constants.kernel_s
    forward = max(products + core + rest, launch)
    backward = max(2 * products + core_backward + 1.6 * rest, 1.6 * launch)
    again = {"none": 0.0, "selective": core, "full": forward}[layout.activation_checkpointing]
    once = _tensor_traffic_s(work, layout, software, tokens, machine, constants)
    times = 3.0 if layout.activation_checkpointing == "full" else 2.0
    times *= 1.5 if stack.cross_length else 1.0  # three sublayers end in a sum instead of two
    ring = _context_traffic_s(work, layout, software, tokens, core, machine, constants)
    waits = times * once * (1 - constants.overlap if software.hides_tensor else 1.0)
    return Work(forward + backward + again, waits + ring, backward + again)


def head_work(work: Workload, layout: Layout, software: Software, machine: Machine, constants: Constants) -> Work:
    """Logits and loss."""
    tokens = layout.micro_batch_size * work.head_positions / layout.sp
    product = product_s(tokens, work.vocab_size / layout.tp, work.d_model, machine, constants)
    assert machine.bytes_per_s is not None
    passes = 2 * software.logit_bytes * tokens * work.vocab_size / layout.tp / (constants.bandwidth * machine.bytes_per_s)
    return Work(3 * product + passes, 0.0, 2 * product + passes / 2)


def product_s(rows: float, columns: float, inner: float, machine: Machine, constants: Constants, *, fp8: bool = False) -> float:
    """Of a rows x inner by inner x columns product of 2-byte values: the slower of arithmetic and memory.

    The share of the peak falls as each dimension shrinks to that of a few tiles, and where widths are not aligned.
    """
    assert machine.peak_flops_per_s is not None
    assert machine.bytes_per_s is not None
    share = gemm_share(machine, constants) * (constants.fp8 if fp8 else 1.0)
    half = constants.gemm_half
    slow = (1 + half / rows) * (1 + half / columns) * (1 + half / inner)
    if machine.kind == "gpu" and (columns % ALIGNED or inner % ALIGNED):
        slow *= constants.misaligned
    arithmetic = 2 * rows * columns * inner * slow / (share * machine.peak_flops_per_s)
    memory = 2 * (rows * inner + inner * columns + rows * columns) / (constants.bandwidth * machine.bytes_per_s)
    return max(arithmetic, memory)


def gemm_share(machine: Machine, constants: Constants) -> float:
    """Share of the dense peak that this device's products reach; Ampere's for generations that no source measured: assumption."""
    return float(getattr(constants, f"gemm_{machine.generation}", constants.gemm_ampere))


def _products_s(
    work: Workload, stack: Stack, layout: Layout, tokens: float, machine: Machine, constants: Constants, *, fp8: bool
) -> float:
    tp, d_model = layout.tp, work.d_model
    inputs = product_s(tokens, (work.q_width + 2 * work.kv_width) / tp, d_model, machine, constants, fp8=fp8)
    output = product_s(tokens, d_model, work.q_width / tp, machine, constants, fp8=fp8)
    routed = tokens * work.experts_per_token / work.n_experts
    wide = product_s(routed, work.d_ff * (2 if work.gated else 1) / tp, d_model, machine, constants, fp8=fp8)
    narrow = product_s(routed, d_model, work.d_ff / tp, machine, constants, fp8=fp8)
    cross = (1 + stack.cross_length / stack.length) * output if stack.cross_length else 0.0
    return inputs + output + work.n_experts * (wide + narrow) + cross


def _attention_s(
    work: Workload, stack: Stack, layout: Layout, software: Software, tokens: float, machine: Machine, constants: Constants
) -> tuple[float, float]:
    """Forward and backward of scores, weights and their products, cross-attention's too."""
    assert machine.peak_flops_per_s is not None
    assert machine.bytes_per_s is not None
    seen = stack.attended + stack.cross_length
    rate = gemm_share(machine, constants) * machine.peak_flops_per_s
    flops = 4 * tokens * seen * work.q_width / layout.tp
    if software.attention == "fused":
        if stack.causal and stack.attended >= stack.length:
            flops /= 2
        share = constants.attention_share * (constants.attention_hopper if machine.generation in ("hopper", "blackwell") else 1.0)
        forward = flops / (rate * share)
        return forward, FUSED_BACKWARD * forward
    half, d_head = constants.gemm_half, work.d_head
    slow = (1 + half / d_head) * (1 + half / stack.length) * (constants.misaligned if d_head % 8 else 1.0)
    scores = tokens * seen * work.n_heads / layout.tp
    passes = SCORE_PASSES[software.attention] * scores / (constants.bandwidth * machine.bytes_per_s)
    return flops * slow / rate + passes, 2 * flops * slow / rate + 1.5 * passes


def _elementwise_s(
    work: Workload, layout: Layout, software: Software, tokens: float, machine: Machine, constants: Constants
) -> float:
    """Forward of norms (read and written), residual sums with bias and dropout, the activation, rotation of queries and keys.

    22 values of 1 byte a d_model, of which sequence parallel ranks share; 4 (6 where gated) a d_ff; 4 a query and key.
    """
    assert machine.bytes_per_s is not None
    whole = 11 * software.residual_width * work.d_model / (layout.tp if layout.sequence_parallel else 1)
    wide = (3 if work.gated else 2) * work.experts_per_token * work.d_ff
    shared = software.width * (wide + 2 * (work.q_width + work.kv_width)) / layout.tp
    return software.elementwise * tokens * (whole + shared) / (constants.bandwidth * machine.bytes_per_s)


def _tensor_traffic_s(
    work: Workload, layout: Layout, software: Software, tokens: float, machine: Machine, constants: Constants
) -> float:
    """Two all-reduces of the residual stream a forward of a block, and as many a backward (Shoeybi et al. 2019,
    arXiv:1909.08053, section 3); with sequence parallel each is a reduce-scatter and an all-gather, the same traffic."""
    if layout.tp == 1:
        return 0.0
    rate = tensor_bytes_per_s(layout.tp, machine, constants)
    return 4 * reduce_s(tokens * work.d_model * software.residual_width, layout.tp, rate, constants)


def _context_traffic_s(
    work: Workload, layout: Layout, software: Software, tokens: float, core_s: float, machine: Machine, constants: Constants
) -> float:
    """Keys and values of a block passed around the sp ranks, forward and twice backward, behind attention."""
    if layout.sp == 1:
        return 0.0
    rate = tensor_bytes_per_s(layout.tp * layout.sp, machine, constants)
    passed = 3 * (layout.sp - 1) * 2 * tokens * work.kv_width / layout.tp * software.width / rate
    return max(passed - constants.overlap * 3.5 * core_s, 0.0) + 3 * layout.sp * constants.latency_s
