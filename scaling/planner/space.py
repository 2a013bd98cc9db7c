"""The one generator of candidates: every layout that leaves what is fixed as it is.

`layout=auto` fixes nothing but, where it is set, the engine; `layout=manual` fixes what is not
null. A fixed value is always generated, also one that breaks a rule: the rules then refuse it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from math import prod
from typing import NamedTuple, TypeVar, get_args

from scaling.config.cluster import Checkpointing, LayoutConfig, PipelineSchedule
from scaling.planner.cost.setting import Setting
from scaling.planner.cost.workload import Workload
from scaling.planner.layout import Engine, Layout
from scaling.planner.machines.rates import Machine

T = TypeVar("T")

OPEN = LayoutConfig(kind="auto")
"""Nothing is fixed."""

MOST_MICRO_BATCH = 128
"""Sequences of a micro-batch, beyond which products have long been full: assumption."""

ZERO_STAGES = (1, 2, 3)
CHECKPOINTINGS: tuple[Checkpointing, ...] = get_args(Checkpointing)
"""The one that costs least time first."""


class Grid(NamedTuple):
    """Degrees of the axes."""

    dp: int
    tp: int
    pp: int
    cp: int

    @property
    def world_size(self) -> int:
        return prod(self)


def families(
    setting: Setting, batch: int, fixed: LayoutConfig = OPEN, *, everything: bool = False
) -> Iterator[Iterator[Layout]]:
    """Layouts that differ in their micro-batch alone, the smallest first. everything: with kinds
    that no legal layout is of, for the rules to refuse."""
    for grid in grids(setting.work, setting.machine, batch, fixed):
        for base in _kinds(setting.work, grid, batch, fixed, everything):
            yield _micro_batches(base, batch, fixed.micro_batch_size)


def grids(work: Workload, machine: Machine, batch: int, fixed: LayoutConfig = OPEN) -> list[Grid]:
    """Degrees to look at, those with the fewest ranks a replica first: data parallelism alone.

    A replica's ranks divide the devices, unless what is fixed leaves devices idle anyway. tp and cp
    are powers of two where they are open. dp is the largest number of replicas that divides the
    global batch and for which there are devices.
    """
    n = machine.n_devices
    # These hold the whole model on each device, so dp alone is open.
    alone = fixed.engine in ("reference", "ddp") or fixed.zero_stage == 0
    # tp communicates in every layer, and links between nodes are slower.
    open_tp = _powers(1 if alone else min(n, machine.devices_per_node, work.n_heads))
    open_cp = _powers(1 if alone else min(n, work.n_heads))
    open_pp = range(1, 2 if alone else min(n, work.n_blocks) + 1)
    idle = n % prod(degree or 1 for degree in (fixed.tp, fixed.pp, fixed.cp)) != 0
    found = []
    for tp, cp, pp in product(
        _or(fixed.tp, open_tp), _or(fixed.cp, open_cp), _or(fixed.pp, open_pp)
    ):
        most = n // (tp * cp * pp)
        if most and (idle or fixed.dp or n % (tp * cp * pp) == 0):
            dp = 1 if fixed.engine == "reference" else fixed.dp or _largest_divisor(batch, most)
            if dp <= most:
                found.append(Grid(dp, tp, pp, cp))
    # The sort is stable: of equal ranks a replica, the order of `product` stays.
    return sorted(found, key=lambda grid: grid.tp * grid.pp * grid.cp)


def _kinds(
    work: Workload, grid: Grid, batch: int, fixed: LayoutConfig, everything: bool
) -> Iterator[Layout]:
    """Checkpointing, ZeRO stages, engines and schedules that go with these degrees."""
    dp, tp, pp, cp = grid
    # Ring attention serves where there are too few heads to swap for positions.
    attention = fixed.cp_attention or ("ring" if work.n_heads // tp % cp else "ulysses")
    parallel = fixed.sequence_parallel
    if parallel is None:
        parallel = tp > 1 and all(stack.length % tp == 0 for stack in work.stacks)
    schedules: tuple[PipelineSchedule, ...] = ("1f1b", "dualpipev") if pp > 1 else ("1f1b",)
    for checkpointing in _or(fixed.activation_checkpointing, CHECKPOINTINGS):
        for stage in _stages(grid, fixed, everything):
            base = Layout(
                dp=dp,
                tp=tp,
                pp=pp,
                zero_stage=stage,
                micro_batch_size=1,
                grad_accum_steps=batch // dp,
                activation_checkpointing=checkpointing,
                engine=_engine(grid, stage, fixed),
                cp=cp,
                cp_attention=attention,
                sequence_parallel=parallel,
                offload=fixed.offload or "none",
            )
            for schedule in _or(fixed.pp_schedule, schedules):
                yield replace(base, pp_schedule=schedule)
            if everything and pp > 1:
                yield replace(base, virtual_pp=2)
            if everything and stage == 0 and base.engine == "ddp":
                yield replace(base, engine="deepspeed")


def _stages(grid: Grid, fixed: LayoutConfig, everything: bool) -> tuple[int, ...]:
    """ZeRO stages: higher ones only where replicas have something to shard; 0 without any."""
    dp, tp, pp, cp = grid
    if fixed.zero_stage is not None:
        return (fixed.zero_stage,)
    if fixed.engine != "auto" and fixed.engine != "deepspeed":
        return (0,) if fixed.engine == "ddp" else (1,)
    least = 3 if fixed.offload == "parameters" else 1
    # cp ranks hold the same weights, so ZeRO shards over them as over replicas.
    shards = dp * cp > 1 and (pp == 1 or everything)
    stages = tuple(stage for stage in ZERO_STAGES if stage >= least) if shards else (least,)
    plain = fixed.engine == "auto" and fixed.offload in (None, "none")
    has_ddp = plain and dp > 1 and (everything or tp * pp * cp == 1)
    return (*stages, 0) if has_ddp else stages


def _engine(grid: Grid, stage: int, fixed: LayoutConfig) -> Engine:
    """auto is reference on one device, where ZeRO has nothing to shard, unless what it lacks is
    fixed."""
    if fixed.engine != "auto":
        return fixed.engine
    if stage == 0:
        return "ddp"
    plain = grid.world_size == 1 and stage == 1 and fixed.offload in (None, "none")
    return "reference" if plain else "deepspeed"


def _micro_batches(base: Layout, batch: int, fixed: int | None) -> Iterator[Layout]:
    rows = batch // base.dp
    for micro in _or(fixed, divisors(rows)):
        if fixed is None and micro > MOST_MICRO_BATCH:
            return
        yield replace(base, micro_batch_size=micro, grad_accum_steps=rows // micro)


@cache
def divisors(n: int) -> tuple[int, ...]:
    """All divisors of n > 0, ascending."""
    low = [i for i in range(1, int(n**0.5) + 1) if n % i == 0]
    return tuple(sorted({*low, *(n // i for i in low)}))


def _largest_divisor(n: int, most: int) -> int:
    return max(divisor for divisor in divisors(n) if divisor <= most)


def _powers(most: int) -> list[int]:
    """Powers of two up to `most`."""
    return [2**i for i in range(most.bit_length())]


def _or(fixed: T | None, choices: Iterable[T]) -> Iterable[T]:
    return choices if fixed is None else (fixed,)
