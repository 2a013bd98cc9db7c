"""Which layouts are legal: the rules of the model, the machine and DeepSpeed 0.19.8, and what the
engines here run today."""

from __future__ import annotations

from scaling.planner.cost.workload import Workload
from scaling.planner.layout import Layout
from scaling.planner.machines.rates import Machine
from scaling.units import counted


def broken_rule(
    work: Workload, machine: Machine, layout: Layout, global_batch_size: int
) -> str | None:
    """The first rule that a layout breaks, with its numbers; None for a legal one."""
    return (
        _degrees(machine, layout, global_batch_size)
        or _tensor(work, machine, layout)
        or _pipeline(work, layout)
        or _context(work, layout)
        or _deepspeed(layout)
    )


def not_run_here(layout: Layout) -> str | None:
    """Why no engine of this package runs a legal layout: the one place to change when an engine
    learns more."""
    return (
        f"virtual_pp={layout.virtual_pp}: the engines run plain 1F1B"
        if layout.virtual_pp > 1
        else None
    )


def _degrees(machine: Machine, layout: Layout, batch: int) -> str | None:
    if layout.world_size > machine.n_devices:
        return (
            f"dp x tp x pp x cp = {layout.world_size} needs more than the "
            f"{counted(machine.n_devices, 'device')}"
        )
    if batch % (layout.dp * layout.micro_batch_size):
        return (
            f"dp={layout.dp} x micro_batch_size={layout.micro_batch_size} does not divide "
            f"train.global_batch_size={batch}"
        )
    return None


def _tensor(work: Workload, machine: Machine, layout: Layout) -> str | None:
    """Megatron's split of heads and columns (Shoeybi et al. 2019, arXiv:1909.08053, section 3)."""
    tp = layout.tp
    if tp == 1:
        return "sequence_parallel=true needs tp above 1" if layout.sequence_parallel else None
    if tp > machine.devices_per_node:
        return (
            f"tp={tp} is more than the {counted(machine.devices_per_node, 'device')} of a node, "
            "whose links its all-reduces need"
        )
    for name, value in (
        ("n_heads", work.n_heads),
        ("n_kv_heads", work.n_kv_heads),
        ("d_ff", work.d_ff),
    ):
        if value % tp:
            return f"tp={tp} does not divide {name}={value}"
    if layout.sequence_parallel and any(stack.length % tp for stack in work.stacks):
        return (
            f"tp={tp} does not divide the {work.stacks[0].length} positions that sequence "
            "parallel ranks share"
        )
    return None


def _pipeline(work: Workload, layout: Layout) -> str | None:
    if layout.pp == 1:
        if layout.is_dualpipev:
            return "pp_schedule=dualpipev needs pp above 1"
        if layout.virtual_pp > 1:
            return f"virtual_pp={layout.virtual_pp} needs pp above 1"
        return None
    if not work.distinct_blocks:
        return f"pp={layout.pp}: shared blocks would have to be on every stage"
    stages = f"pp={layout.pp}" + (
        " x 2 stages of pp_schedule=dualpipev" if layout.is_dualpipev else ""
    )
    if layout.n_stages > work.n_blocks:
        return f"{stages} is more than the {counted(work.n_blocks, 'block')} of all layers"
    # Fewer micro-batches than stages leave some stage without work at every moment.
    if layout.grad_accum_steps < layout.n_stages:
        rank_has = counted(layout.grad_accum_steps, "micro-batch", "micro-batches")
        return f"{stages} would idle: a rank has {rank_has}"
    return None


def _context(work: Workload, layout: Layout) -> str | None:
    """Ulysses deals positions for linear layers and heads for attention (Jacobs et al. 2023,
    arXiv:2309.14509); in a ring keys and values go round (Liu et al. 2023, arXiv:2310.01889)."""
    cp = layout.cp
    if cp == 1:
        return "cp_attention=ring needs cp above 1" if layout.cp_attention == "ring" else None
    heads = work.n_heads // layout.tp  # key/value heads are repeated where they are too few
    if layout.cp_attention == "ulysses" and heads % cp:
        return (
            f"cp={cp} does not divide the {heads} of n_heads={work.n_heads} that a tp rank has, "
            "as cp_attention=ulysses needs"
        )
    if layout.cp_attention == "ring" and not work.full_attention:
        return (
            f"cp={cp} with cp_attention=ring: only attention=full, gqa and mqa can pass keys round"
        )
    for stack in work.stacks:
        if stack.length % cp:
            return f"cp={cp} does not divide the {stack.length} positions of a stack"
    if work.n_experts > 1:
        return (
            f"cp={cp} with n_experts={work.n_experts}: the term that balances experts needs whole "
            "sequences"
        )
    return (
        f"cp={cp} x pp={layout.pp}: DeepSpeed's pipeline does not deal positions"
        if layout.pp > 1
        else None
    )


def _plain(layout: Layout) -> str | None:
    """The reference engine, on one device, and DistributedDataParallel, where every rank holds the
    whole model."""
    engine = layout.engine
    if layout.tp * layout.pp * layout.cp > 1:
        return (
            f"engine={engine} with tp={layout.tp}, pp={layout.pp}, cp={layout.cp}: only deepspeed "
            "shares a model out"
        )
    if layout.offload != "none":
        return (
            f"offload={layout.offload} with engine={engine}: only deepspeed keeps states in the "
            "host's memory"
        )
    if engine == "reference":
        return (
            f"engine=reference with dp={layout.dp}: it runs on one device"
            if layout.dp > 1
            else None
        )
    return (
        f"engine=ddp with zero_stage={layout.zero_stage}: it has no ZeRO, which is stage 0"
        if layout.zero_stage
        else None
    )


def _deepspeed(layout: Layout) -> str | None:
    if layout.engine != "deepspeed":
        return _plain(layout)
    stage = layout.zero_stage
    if stage == 0:
        return (
            "zero_stage=0: DeepSpeed's bf16 optimiser makes a step at its start (0.19.8); "
            "engine=ddp has no ZeRO"
        )
    if layout.pp > 1 and stage > 1:
        return (
            f"zero_stage={stage} with pp={layout.pp}: DeepSpeed's pipeline engine takes stage 1 "
            "only"
        )
    if layout.virtual_pp > 1:
        return f"virtual_pp={layout.virtual_pp}: DeepSpeed's pipeline has no interleaved schedule"
    if layout.offload == "parameters" and stage < 3:
        return f"offload=parameters with zero_stage={stage}: weights are offloaded at stage 3 only"
    if layout.offload != "none" and layout.pp > 1:
        return (
            f"offload={layout.offload} with pp={layout.pp}: the pipeline keeps its states on the "
            "device"
        )
    return None
