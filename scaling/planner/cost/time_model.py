"""Seconds of one optimiser step: a roofline of every operation, the traffic on its link, the
pipeline's bubble."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.planner.cost.constants import CONSTANTS, Constants
from scaling.planner.cost.links import (
    exposed,
    group_bytes_per_s,
    node_bytes_per_s,
    reduce_s,
    send_s,
)
from scaling.planner.cost.memory_model import blocks_of_stage, stage_params
from scaling.planner.cost.operations import Work, block_work, head_work
from scaling.planner.cost.software import Software
from scaling.planner.cost.workload import Workload
from scaling.planner.layout import Layout
from scaling.planner.machines.rates import Machine

PARTS = ("compute_s", "tensor_parallel_s", "data_parallel_s", "bubble_s", "optimizer_s")
"""Fields of `StepTime` that add up to a step's time."""

HOST_BYTES_PER_S = 25e9
"""One device's share of its host's memory bandwidth, behind which Adam runs when offloaded:
assumption (200 GB/s for eight)."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step on the slowest rank, by what they are spent on; they add up to
    `step_time_s`.

    compute            forward, backward and recomputation of this rank's blocks and head
    tensor_parallel    all-reduces among tp ranks, and keys and values among cp ranks
    data_parallel      gradients and weights among dp ranks, as far as not hidden behind compute
    bubble             waiting for other stages, and sending to them
    optimizer          the update itself, and what every step costs
    """

    compute_s: float
    tensor_parallel_s: float
    data_parallel_s: float
    bubble_s: float
    optimizer_s: float

    @property
    def step_time_s(self) -> float:
        return (
            self.compute_s
            + self.tensor_parallel_s
            + self.data_parallel_s
            + self.bubble_s
            + self.optimizer_s
        )


def step_time(
    work: Workload,
    layout: Layout,
    software: Software,
    machine: Machine,
    constants: Constants = CONSTANTS,
) -> StepTime | None:
    """None where the device's peak or bandwidth, or a link that is needed, is unknown."""
    if machine.peak_flops_per_s is None or machine.bytes_per_s is None:
        return None
    if layout.world_size > 1 and machine.intra_bytes_per_s is None:
        return None
    if layout.world_size > machine.devices_per_node and machine.inter_bytes_per_s is None:
        return None
    micro = layout.grad_accum_steps
    block, head = _stage_work(work, layout, software, machine, constants)
    slowest = Work(
        block.compute_s + head.compute_s, block.traffic_s, block.backward_s + head.backward_s
    )
    average = block.compute_s + head.compute_s / layout.pp + block.traffic_s
    bubble = 0.0
    if layout.pp > 1:
        bubble = bubble_s(
            layout, average, slowest.backward_s * average / (slowest.compute_s + slowest.traffic_s)
        )
        bubble += (
            2
            * micro
            * layout.n_stages
            / layout.pp
            * layout.virtual_pp
            * _pass_s(work, layout, software, machine, constants)
        )
    data = _data_parallel_s(work, layout, software, machine, constants, slowest)
    late = 1 + constants.jitter * max(
        0, (-(-layout.world_size // machine.devices_per_node)).bit_length() - 1
    )
    return StepTime(
        compute_s=late * micro * slowest.compute_s,
        tensor_parallel_s=late * micro * slowest.traffic_s,
        data_parallel_s=late * data,
        bubble_s=late * bubble,
        optimizer_s=_optimizer_s(work, layout, software, machine, constants),
    )


def bubble_s(layout: Layout, average_s: float, backward_s: float) -> float:
    """Seconds in which a rank waits for others; `average_s` a micro-batch takes on one, of which
    backward `backward_s`.

    1F1B waits for a micro-batch at each other stage, or at a chunk of it (Narayanan et al. 2021,
    arXiv:2104.04473, section 2.2). DualPipeV has two stages a rank, and waits for 2 (pp - 1)
    backwards of a stage but for one forward: found by following DeepSpeed's instructions
    (tests/planner/test_pictures.py).
    """
    if layout.is_dualpipev:
        forward_s = average_s - backward_s
        return max((layout.pp - 1) * forward_s, (layout.pp - 1) * backward_s - forward_s / 2)
    return (layout.pp - 1) * average_s / layout.virtual_pp


def _stage_work(
    work: Workload, layout: Layout, software: Software, machine: Machine, constants: Constants
) -> tuple[Work, Work]:
    """One micro-batch through the blocks of the fullest stage, and through the head."""
    share = blocks_of_stage(work, layout) / work.n_blocks
    total = Work(0.0, 0.0, 0.0)
    for stack in work.stacks:
        one = block_work(work, stack, layout, software, machine, constants)
        total = total.plus(one, stack.n_blocks * share)
    return total, head_work(work, layout, software, machine, constants)


def _pass_s(
    work: Workload, layout: Layout, software: Software, machine: Machine, constants: Constants
) -> float:
    """Seconds in which one micro-batch's activations go from stage to stage; the tp ranks send a
    part each, or whole gradients back: then the mean of the forward and the backward times."""
    tokens = layout.micro_batch_size * sum(stack.length for stack in work.stacks) / layout.cp
    inside = layout.tp * layout.replicas < machine.devices_per_node
    rate = machine.intra_bytes_per_s if inside else machine.inter_bytes_per_s
    assert rate is not None
    rate *= constants.fabric_intra if inside else constants.fabric_inter
    part = (1 + 1 / layout.tp) / 2 if software.whole_gradients else 1 / layout.tp
    return send_s(tokens * work.d_model * software.residual_width * part, rate, constants)


def _data_parallel_s(
    work: Workload,
    layout: Layout,
    software: Software,
    machine: Machine,
    constants: Constants,
    slowest: Work,
) -> float:
    """Seconds of data parallel traffic on the rank with most parameters.

    Stages 0 and 1 reduce gradients once a step, stage 2 every micro-batch where it keeps no whole
    ones. Stages 1 and 2 gather new weights. Stage 3 gathers weights twice and reduces gradients
    every micro-batch (Rajbhandari et al. 2020, section 7).
    """
    if layout.replicas == 1:
        return 0.0
    params = stage_params(work, layout, first=True, last=layout.pp == 1)
    micro, width = layout.grad_accum_steps, software.width
    reduced = min(software.gradient_bytes, 4) * params
    calls = software.gathers * blocks_of_stage(work, layout)
    if layout.zero_stage < 3:
        times = micro if layout.zero_stage == 2 and software.shards_gradients else 1
        moved = times * reduced + (width * params if layout.zero_stage else reduced)
        rate = group_bytes_per_s(layout, machine, constants, ranks=layout.replicas)
        seconds = reduce_s(moved, layout.replicas, rate, constants, calls=times + 1)
        return (
            exposed(seconds, times * slowest.backward_s, constants)
            if software.gradient_overlap
            else seconds
        )
    shard_rate = group_bytes_per_s(layout, machine, constants, ranks=layout.shards)
    once = 3 * reduce_s(width * params, layout.shards, shard_rate, constants, calls=calls)
    seconds = micro * once
    if layout.shards < layout.replicas:
        apart = node_bytes_per_s(machine, constants)
        seconds += 2 * reduce_s(
            reduced / layout.shards, layout.replicas // layout.shards, apart, constants
        )
    return (
        exposed(seconds, micro * slowest.compute_s, constants)
        if software.hides_gathers
        else seconds
    )


def _optimizer_s(
    work: Workload, layout: Layout, software: Software, machine: Machine, constants: Constants
) -> float:
    params = stage_params(work, layout, first=True, last=layout.pp == 1)
    own = params / layout.shards if layout.zero_stage >= 1 else params
    assert machine.bytes_per_s is not None
    if layout.offload == "none":
        return constants.step_s + software.adam_bytes * own / (
            constants.bandwidth * machine.bytes_per_s
        )
    moved = own * (
        2 * software.width
        if layout.offload == "optimizer"
        else 2 * software.width * (1 + layout.grad_accum_steps)
    )
    return (
        constants.step_s
        + moved / machine.host_bytes_per_s
        + software.adam_bytes * own / HOST_BYTES_PER_S
    )
