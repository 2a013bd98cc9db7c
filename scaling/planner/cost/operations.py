"""Seconds of one block, and of the head, for one micro-batch on one rank: products, attention,
element-wise kernels, traffic."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.planner.cost.constants import Constants
from scaling.planner.cost.links import reduce_s, tensor_bytes_per_s
from scaling.planner.cost.software import Software
from scaling.planner.cost.workload import Stack, Workload
from scaling.planner.layout import Layout
from scaling.planner.machines.rates import FLASH_3_GENERATIONS, Machine

ALIGNED, VECTOR = 64, 8
"""Widths of products that run at full rate on tensor cores are multiples of 128 bytes, and those
that run well at all of 16 (NVIDIA, Matrix Multiplication Background User's Guide, section 2.2)."""

FLASH = {1: 1.0, 2: 1.7, 3: 1.7}
FLASH_3_HOPPER = 3.0
"""Rate of fused attention over that of FlashAttention 1: 2 is 1.7 to 3.0 times as fast forward and
backward (Dao 2023, arXiv:2307.08691, section 4.1), and on Hopper 3 is 1.5 to 2.0 times as fast as 2
(Shah et al. 2024, arXiv:2407.08608)."""

FUSED_BACKWARD = 2.5
"""Backward of fused attention makes five products where the forward makes two (Dao 2023, section
3.1)."""

EAGER_SCORE_BYTES = 8.0
"""Read and written for each score by scale and mask apart from the softmax: 4 each."""

GATE_BYTES, ROTATION_BYTES, NORM_BYTES = 4, 12, 28
"""Moved more than by one kernel, where each operation is a kernel, a value of 2 bytes (counted):
SiLU and product of d_ff (10 against 6); rotation of a query or key (16 against 4); RMSNorm in fp32,
squared, averaged, scaled and cast back (32 against 4)."""

PARTLY = 3
"""Exponent with which host and device wait for each other: max(host, device) is infinity, their sum
1: assumption."""


@dataclass(frozen=True)
class Work:
    """Seconds of one micro-batch: all compute, traffic that waits, and of compute the backward with
    its recomputation."""

    compute_s: float
    traffic_s: float
    backward_s: float

    def plus(self, other: Work, times: float) -> Work:
        return Work(
            self.compute_s + times * other.compute_s,
            self.traffic_s + times * other.traffic_s,
            self.backward_s + times * other.backward_s,
        )


def block_work(
    work: Workload,
    stack: Stack,
    layout: Layout,
    software: Software,
    machine: Machine,
    constants: Constants,
) -> Work:
    """One block of `stack`."""
    tokens = layout.micro_batch_size * stack.length / layout.cp
    products = _products_s(work, stack, layout, tokens, machine, constants, fp8=software.fp8)
    core, core_backward = _attention_s(work, stack, layout, software, tokens, machine, constants)
    rest = _elementwise_s(work, layout, software, tokens, machine, constants)
    launch = software.kernels * constants.kernel_s
    forward = _longer(products + core + rest, launch)
    backward = _longer(2 * products + core_backward + 1.6 * rest, 1.6 * launch)
    again = 0.0 if layout.activation_checkpointing == "none" else forward
    if layout.activation_checkpointing == "selective":
        again = {"core": core, "pointwise": rest, "half": products / 2 + rest}[software.selective]
    once = _tensor_traffic_s(work, layout, software, tokens, machine, constants)
    times = 3.0 if layout.activation_checkpointing == "full" else 2.0
    times *= 1.5 if stack.cross_length else 1.0  # three sublayers end in a sum instead of two
    ring = _context_traffic_s(work, layout, software, tokens, core, machine, constants)
    waits = times * once * (1 - constants.overlap if software.hides_tensor else 1.0)
    return Work(forward + backward + again, waits + ring, backward + again)


def head_work(
    work: Workload, layout: Layout, software: Software, machine: Machine, constants: Constants
) -> Work:
    """Logits and loss."""
    tokens = layout.micro_batch_size * work.head_positions / layout.cp
    entries = software.vocabulary(work.vocab_size, layout.tp)
    product = product_s(tokens, entries, work.d_model, machine, constants)
    assert machine.bytes_per_s is not None
    passes = (
        2 * software.logit_bytes * tokens * entries / (constants.bandwidth * machine.bytes_per_s)
    )
    return Work(3 * product + passes, 0.0, 2 * product + passes / 2)


def product_s(
    rows: float,
    columns: float,
    inner: float,
    machine: Machine,
    constants: Constants,
    *,
    fp8: bool = False,
) -> float:
    """Seconds of a product of rows x inner and inner x columns values of 2 bytes: its arithmetic
    and part of its memory traffic.

    So the share of the peak falls as a dimension nears the machine's ratio of peak to bandwidth;
    and where widths are not aligned.
    """
    assert machine.peak_flops_per_s is not None
    assert machine.bytes_per_s is not None
    share = gemm_share(machine, constants) * (constants.fp8 if fp8 else 1.0)
    slow = unaligned(machine, constants, columns, inner)
    arithmetic = 2 * rows * columns * inner * slow / (share * machine.peak_flops_per_s)
    memory = (
        2
        * (rows * inner + inner * columns + rows * columns)
        / (constants.bandwidth * machine.bytes_per_s)
    )
    return arithmetic + constants.gemm_memory * memory


def unaligned(machine: Machine, constants: Constants, *widths: float) -> float:
    """Factor on the time of a product whose widths do not suit tensor cores."""
    if machine.kind == "cpu":
        return 1.0
    slow = 1.0
    for width in widths:
        if width % VECTOR:
            return constants.unaligned
        if width % ALIGNED:
            slow = constants.misaligned
    return slow


def _longer(device_s: float, host_s: float) -> float:
    return float((device_s**PARTLY + host_s**PARTLY) ** (1 / PARTLY))


def gemm_share(machine: Machine, constants: Constants) -> float:
    """Share of the dense peak that this device's products reach; Ampere's for generations that no
    source measured: assumption."""
    return float(getattr(constants, f"gemm_{machine.generation}", constants.gemm_ampere))


def _products_s(
    work: Workload,
    stack: Stack,
    layout: Layout,
    tokens: float,
    machine: Machine,
    constants: Constants,
    *,
    fp8: bool,
) -> float:
    tp, d_model = layout.tp, work.d_model
    inputs = product_s(
        tokens, (work.q_width + 2 * work.kv_width) / tp, d_model, machine, constants, fp8=fp8
    )
    output = product_s(tokens, d_model, work.q_width / tp, machine, constants, fp8=fp8)
    routed = tokens * work.experts_per_token / work.n_experts
    wide = product_s(
        routed, work.d_ff * (2 if work.gated else 1) / tp, d_model, machine, constants, fp8=fp8
    )
    narrow = product_s(routed, d_model, work.d_ff / tp, machine, constants, fp8=fp8)
    cross = (1 + stack.cross_length / stack.length) * output if stack.cross_length else 0.0
    return inputs + output + work.n_experts * (wide + narrow) + cross


def _attention_s(
    work: Workload,
    stack: Stack,
    layout: Layout,
    software: Software,
    tokens: float,
    machine: Machine,
    constants: Constants,
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
        forward = flops / (machine.peak_flops_per_s * _fused_share(software, machine, constants))
        return forward, FUSED_BACKWARD * forward
    slow = unaligned(machine, constants, work.d_head)
    scores = tokens * seen * work.n_heads / layout.tp
    moved = constants.score_bytes + (EAGER_SCORE_BYTES if software.attention == "eager" else 0)
    passes = moved * software.width / 2 * scores / (constants.bandwidth * machine.bytes_per_s)
    return flops * slow / rate + passes, 2 * flops * slow / rate + 1.5 * passes


def _fused_share(software: Software, machine: Machine, constants: Constants) -> float:
    """Share of the dense peak that fused attention reaches."""
    if machine.generation not in FLASH_3_GENERATIONS:
        return constants.attention_share * FLASH[software.flash]
    faster = FLASH_3_HOPPER if software.flash == 3 else FLASH[software.flash]
    return constants.attention_share * constants.attention_hopper * faster


def _elementwise_s(
    work: Workload,
    layout: Layout,
    software: Software,
    tokens: float,
    machine: Machine,
    constants: Constants,
) -> float:
    """Forward of norms (read and written), residual sums with bias and dropout, the activation,
    rotation of queries and keys.

    22 values of 1 byte a d_model, of which sequence parallel ranks share; 4 (6 where gated) a d_ff;
    4 a query and key. Of blocks with a gate, which go with RMSNorm and rotation, what is not fused
    moves more.
    """
    assert machine.bytes_per_s is not None
    whole = software.elementwise * 11 * software.residual_width * work.d_model
    d_ff, rotated = work.experts_per_token * work.d_ff, work.q_width + work.kv_width
    shared = software.elementwise * software.width * ((3 if work.gated else 2) * d_ff + 2 * rotated)
    if work.gated and not software.fuses_gate:
        shared += software.width / 2 * (GATE_BYTES * d_ff + ROTATION_BYTES * rotated)
    if work.gated and not software.fuses_norms:
        whole += 2 * NORM_BYTES * work.d_model
    each = whole / (layout.tp if layout.sequence_parallel else 1) + shared / layout.tp
    return tokens * each / (constants.bandwidth * machine.bytes_per_s)


def _tensor_traffic_s(
    work: Workload,
    layout: Layout,
    software: Software,
    tokens: float,
    machine: Machine,
    constants: Constants,
) -> float:
    """Two all-reduces of the residual stream a forward of a block, and as many a backward (Shoeybi
    et al. 2019, arXiv:1909.08053, section 3); with sequence parallel each is a reduce-scatter and
    an all-gather, the same traffic."""
    if layout.tp == 1:
        return 0.0
    rate = tensor_bytes_per_s(layout.tp, machine, constants)
    return 4 * reduce_s(tokens * work.d_model * software.residual_width, layout.tp, rate, constants)


def _context_traffic_s(
    work: Workload,
    layout: Layout,
    software: Software,
    tokens: float,
    core_s: float,
    machine: Machine,
    constants: Constants,
) -> float:
    """Seconds of a block's traffic among the cp ranks.

    ring: keys and values go around once forward and twice backward, behind attention. ulysses:
    queries, keys, values and outputs are exchanged forward and backward, and attention waits.
    """
    cp = layout.cp
    if cp == 1:
        return 0.0
    rate = tensor_bytes_per_s(layout.tp * cp, machine, constants)
    if layout.cp_attention == "ulysses":
        dealt = 2 * (work.q_width + work.kv_width) * tokens / layout.tp * software.width
        times = 3 if layout.activation_checkpointing == "full" else 2
        return times * ((cp - 1) / cp * dealt / rate + 4 * constants.latency_s)
    passed = 3 * (cp - 1) * 2 * tokens * work.kv_width / layout.tp * software.width / rate
    return max(passed - constants.overlap * 3.5 * core_s, 0.0) + 3 * cp * constants.latency_s
