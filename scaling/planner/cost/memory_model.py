"""Bytes that the fullest device holds at the peak of a training step, by what they hold.

States after Rajbhandari et al. 2020 (arXiv:1910.02054, section 5), activations after Korthikanti et
al. 2022 (arXiv:2205.05198, eq. 1 to 6), summed over the tensors of a block instead of assuming d_ff
= 4 d_model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scaling.planner.cost.constants import CONSTANTS, Constants
from scaling.planner.cost.software import Software
from scaling.planner.cost.workload import Stack, Workload
from scaling.planner.layout import Layout

GATHERED_BLOCKS = 2
"""Blocks whose weights ZeRO-3 holds whole at once, the running and the next one: assumption."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the fullest device, by what they hold.

    gathered       weights that ZeRO-3 holds whole for a while
    communication  buckets in which gradients are sent
    rings          NCCL's buffers
    runtime        the process, or the device's context and libraries
    fragments      what the allocator reserves and does not use; it is given back when memory is
                   short
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    gathered: int
    communication: int
    rings: int
    runtime: int
    fragments: int

    @property
    def total(self) -> int:
        # Written out: it is summed once or twice for each of hundreds of candidates.
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.activations
            + self.logits
            + self.gathered
            + self.communication
            + self.rings
            + self.runtime
            + self.fragments
        )

    @property
    def states(self) -> int:
        """What is held from step to step."""
        return self.weights + self.gradients + self.optimizer

    def seen(self, metric: Literal["device", "reserved", "allocated"]) -> int:
        """What a reading shows: of the device, of what the allocator reserved, or of what it gave
        out. NCCL allocates apart."""
        within = self.total - self.runtime - self.rings
        return {"device": self.total, "reserved": within, "allocated": within - self.fragments}[
            metric
        ]

    @property
    def need(self) -> int:
        """The least with which the step runs: when memory is short the allocator gives cached
        blocks back."""
        return self.total - self.fragments


def memory_of(
    work: Workload,
    layout: Layout,
    software: Software,
    *,
    gpu: bool,
    constants: Constants = CONSTANTS,
) -> MemoryEstimate:
    """Memory of the pipeline's first or last rank, whichever holds more. The first has most
    micro-batches in flight, the last has the logits."""
    first = _stage(work, layout, software, gpu, constants, last=layout.pp == 1, first=True)
    if layout.pp == 1:
        return first
    last = _stage(work, layout, software, gpu, constants, last=True, first=False)
    return max(first, last, key=lambda estimate: estimate.total)


def host_bytes_of(work: Workload, layout: Layout, software: Software) -> int:
    """States of one rank that its host's memory holds: with offload=optimizer masters, moments and
    an fp32 gradient, with offload=parameters weights and gradients besides."""
    if layout.offload == "none":
        return 0
    own = stage_params(work, layout, first=True, last=layout.pp == 1) / layout.shards
    moved = software.optimizer_bytes + 4
    if layout.offload == "parameters":
        moved += software.weight_bytes + software.gradient_bytes
    return round(own * moved)


def _stage(
    work: Workload,
    layout: Layout,
    software: Software,
    gpu: bool,
    constants: Constants,
    *,
    first: bool,
    last: bool,
) -> MemoryEstimate:
    n_params = stage_params(work, layout, first=first, last=last)
    ranks, stage = layout.shards, layout.zero_stage
    share = [1 / ranks if stage >= at else 1.0 for at in (1, 2, 3)]
    if not software.shards_gradients and layout.grad_accum_steps > 1:
        share[1] = 1.0
    on_device = {"none": (1, 1), "optimizer": (1, 0), "parameters": (0, 0)}[layout.offload]
    kept, one_block = _block_activations(
        work, layout, software, n_in_flight=in_flight(layout) if first else 1
    )
    logits = _logit_bytes(work, layout, software) if last else 0.0
    gathered = _gathered_bytes(work, layout, software)
    bucket = _bucket_bytes(n_params, layout, software)
    # A recomputed block and the loss are never alive at once, and no block's weights are gathered
    # during the loss.
    if one_block + gathered > logits:
        logits = 0.0 if one_block else logits
    elif one_block:
        one_block = gathered = 0.0
    passing = kept + one_block + logits + gathered + bucket
    reserved = (constants.fragments - 1) * passing if gpu else 0.0
    n_groups = sum(degree > 1 for degree in (layout.tp, layout.pp, layout.replicas)) if gpu else 0
    context = constants.context_bytes if software.context_bytes is None else software.context_bytes
    return MemoryEstimate(
        weights=round(software.weight_bytes * n_params * share[2] * on_device[0]),
        gradients=round(software.gradient_bytes * n_params * share[1] * (on_device[0] or 0)),
        optimizer=round(software.optimizer_bytes * n_params * share[0] * on_device[1]),
        activations=round(kept + one_block),
        logits=round(logits),
        gathered=round(gathered),
        communication=round(bucket),
        rings=round(n_groups * constants.ring_bytes),
        runtime=round(context),
        fragments=round(reserved),
    )


def blocks_of_stage(work: Workload, layout: Layout) -> int:
    """Blocks of the fullest pipeline rank."""
    return -(-work.n_blocks // layout.pp)


def stage_params(work: Workload, layout: Layout, *, first: bool, last: bool) -> float:
    """Parameters that one rank of a stage holds, before ZeRO shards them. The last of many holds a
    tied embedding's copy."""
    share = blocks_of_stage(work, layout) / work.n_blocks
    blocks = share * (work.n_params - work.embedding_params - work.head_params)
    ends = work.embedding_params if first else 0
    if last:
        ends += work.head_params
        ends += work.vocab_size * work.d_model if work.tied and not first else 0
    return (blocks + ends) / layout.tp


def in_flight(layout: Layout) -> float:
    """Micro-batches whose activations the first pipeline rank holds: 1F1B keeps pp; chunks of it
    keep a part more (Korthikanti et al. 2022, section 4.2.3). DualPipeV keeps 2 pp + 1 in one of
    its two stages (counted in DeepSpeed's)."""
    if layout.pp == 1:
        return 1.0
    if layout.is_dualpipev:
        return layout.pp + 0.5
    if layout.virtual_pp > 1:
        return layout.pp * (1 + (layout.pp - 1) / (layout.pp * layout.virtual_pp))
    return float(min(layout.pp, layout.grad_accum_steps))


def _block_activations(
    work: Workload, layout: Layout, software: Software, n_in_flight: float
) -> tuple[float, float]:
    """What the forward keeps for the backward on one rank, the loss apart; and of one block what is
    made again."""
    stage_share = blocks_of_stage(work, layout) / work.n_blocks
    residual_tp = layout.tp if layout.sequence_parallel else 1
    total = most_anew = positions = 0.0
    for stack in work.stacks:
        here = layout.micro_batch_size * stack.length / layout.cp
        block = kept = here * block_bytes_per_token(work, stack, layout, software)
        positions += here
        if layout.activation_checkpointing == "full":
            partition = layout.tp if software.partitions_checkpoints else residual_tp
            kept = here * software.residual_width * work.d_model / partition
            most_anew = max(most_anew, block)
        elif layout.activation_checkpointing == "selective":
            kept = min(block, here * _selected_bytes_per_token(work, stack, layout, software))
            most_anew = max(most_anew, block - kept)
        total += stack.n_blocks * stage_share * kept * n_in_flight
    return total + positions * 2 * software.residual_width * work.d_model / residual_tp, most_anew


def _selected_bytes_per_token(
    work: Workload, stack: Stack, layout: Layout, software: Software
) -> float:
    """What selective recomputation keeps of a block: all but attention's T x T; or its input, what
    attention made, and what products made: queries, keys, values, two of d_model, one of d_ff (two
    where gated), or of these every second."""
    if software.selective == "core":
        return block_bytes_per_token(work, stack, layout, software, core=False)
    part = 0.5 if software.selective == "half" else 1.0
    cross = (
        work.q_width + 2 * work.kv_width * stack.cross_length / stack.length
        if stack.cross_length
        else 0.0
    )
    products = (
        work.q_width
        + 2 * work.kv_width
        + cross
        + (2 if work.gated else 1) * work.experts_per_token * work.d_ff
    )
    attention = work.q_width * (2 if stack.cross_length else 1)
    whole = (
        software.residual_width * work.d_model
        + part * software.width * (3 if stack.cross_length else 2) * work.d_model
    )
    shared = software.width * (attention + part * products) + 4 * work.n_heads
    return whole / (layout.tp if layout.sequence_parallel else 1) + shared / layout.tp


def block_bytes_per_token(
    work: Workload, stack: Stack, layout: Layout, software: Software, *, core: bool = True
) -> float:
    """Bytes that one block keeps per position of one rank; core=False leaves attention's T x T out
    (selective recompute).

    Shared by the tp ranks: queries, keys, values, attention's output, the feed-forward layer's
    values, 4 bytes of fp32 log-sum a head. Whole on each, unless sequence parallel: two inputs of
    norms, inputs of linear layers, masks of dropout. With 2-byte values, GELU and dropout: s b h
    (10 + 24 / t + 5 a s / (h t)), eq. 2 of the paper, of which fused attention keeps no last term.
    SwiGLU keeps four values of d_ff instead of two. Products in 8 bits keep their inputs so.
    """
    width, residual, d_model = software.width, software.residual_width, work.d_model
    kept_ff = software.kept_gated if work.gated else 2
    input_width = 1 if software.fp8 else width
    attention = 2 * work.q_width + 2 * work.kv_width
    feed_forward = (
        work.experts_per_token
        * (kept_ff + software.kept_ff_extra - 1 + input_width / width)
        * work.d_ff
    )
    # each expert's part of the input and of the output, the latter in fp32 before and after its
    # weight
    if work.n_experts > 1:
        feed_forward += work.experts_per_token * d_model * (1 + 8 // width)
    whole = residual * 2 * d_model + (2 * d_model if work.dropout else 0)
    whole += 2 * software.kept_norm * d_model if work.gated else 0
    inputs = input_width * 2 * d_model
    shared = (
        width * (attention + feed_forward) + 4 * work.n_heads + (stack.extra_bytes if core else 0)
    )
    if software.attention != "fused" and core:
        kept = 2 * width + 1 if work.dropout else width
        shared += kept * work.n_heads * stack.attended / layout.cp
    if stack.cross_length:
        whole += residual * 2 * d_model + (d_model if work.dropout else 0)
        shared += width * (2 * work.q_width + 2 * work.kv_width * stack.cross_length / stack.length)
    if software.gathers_again:
        whole, inputs = whole + inputs, 0
    return whole / (layout.tp if layout.sequence_parallel else 1) + inputs + shared / layout.tp


def _logit_bytes(work: Workload, layout: Layout, software: Software) -> float:
    """The peak of the loss. In chunks, each makes its gradient in the forward: of a chunk the
    logits and what becomes of them, of all the gradient of the head's V x D matrix in fp32, one
    chunk's part of it, and of the input."""
    width = software.width
    tokens = layout.micro_batch_size * work.head_positions / layout.cp
    entries = software.vocabulary(work.vocab_size, layout.tp)
    if software.loss_chunk_rows is None:
        return software.logit_bytes * tokens * entries
    rows = min(tokens, software.loss_chunk_rows)
    return (
        entries * (software.logit_bytes * rows + (4 + width) * work.d_model)
        + width * tokens * work.d_model
    )


def _gathered_bytes(work: Workload, layout: Layout, software: Software) -> float:
    """Bytes that ZeRO-3 gathers: the blocks in use, or the embedding if it is larger, and a block's
    gradients. A program's limit on what is alive bounds it, the widest matrix and its gradient
    apart."""
    if layout.zero_stage < 3 or layout.replicas == 1:
        return 0.0
    block = max(stack.block_params for stack in work.stacks)
    elsewhere = work.n_params * (1 - 1 / layout.shards)
    held = max(GATHERED_BLOCKS * block, block + work.vocab_size * work.d_model) + block
    if software.live_parameters is not None:
        held = min(
            held, software.live_parameters + 2 * max(work.d_ff, work.vocab_size) * work.d_model
        )
    return software.width * min(elsewhere, held) / layout.tp


def _bucket_bytes(n_params: float, layout: Layout, software: Software) -> float:
    if layout.replicas == 1 and not software.buckets_alone:
        return 0.0
    return software.width * software.n_buckets * min(n_params, software.bucket_elements)
