"""Every legal layout of a workload on a machine, predicted and ranked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from scaling.planner.cost.constants import CONSTANTS, Constants
from scaling.planner.cost.setting import Setting
from scaling.planner.cost.workload import Workload
from scaling.planner.layout import Checkpointing, Layout, Offload
from scaling.planner.machines.rates import Machine
from scaling.planner.prediction import Prediction
from scaling.planner.rules import broken_rule, not_run_here

MOST_MICRO_BATCH = 128
"""Sequences of a micro-batch, beyond which products have long been full: assumption."""

ZERO_STAGES = (1, 2, 3)
CHECKPOINTINGS: tuple[Checkpointing, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Ranking:
    """fitting: legal layouts that fit, the preferred first; too_large: legal ones that do not, the
    one that needs least first; refused: the others, with the rule that each breaks."""

    fitting: list[Prediction]
    too_large: list[Prediction]
    n_legal: int
    refused: list[tuple[Layout, str]]

    @property
    def smallest(self) -> Prediction | None:
        """Of what does not fit."""
        return self.too_large[0] if self.too_large else None


def search(setting: Setting, global_batch_size: int, *, offload: Offload = "none") -> Ranking:
    """Every legal layout that uses all devices, or where none can, as many as the global batch lets
    it."""
    return rank(
        setting, global_batch_size, every_family(setting, global_batch_size, offload=offload)
    )


def rank(
    setting: Setting,
    global_batch_size: int,
    families: Iterable[Iterable[Layout]],
    *,
    constants: Constants = CONSTANTS,
    keep_refused: bool = False,
) -> Ranking:
    """Predict layouts. Those of a family need more memory from one to the next: of those that do
    not fit, the first is enough."""
    fitting: list[Prediction] = []
    too_large: list[Prediction] = []
    refused: list[tuple[Layout, str]] = []
    n_legal = 0
    for family in families:
        for layout in family:
            rule = broken_rule(setting.work, setting.machine, layout, global_batch_size)
            if rule is not None:
                if keep_refused:
                    refused.append((layout, rule))
                continue
            n_legal += 1
            found = setting.predict(layout, constants)
            if not found.fits:
                too_large.append(found)
                break
            fitting.append(found)
    fitting.sort(key=preference)
    too_large.sort(key=lambda found: found.need_bytes)
    return Ranking(fitting, too_large, n_legal, refused)


def preference(found: Prediction) -> tuple[float, ...]:
    """Of predictions that fit, as a sort key: those that surely fit first; by rate of the whole
    cluster; then by memory.

    Where no rate is known: what the engines run, most dp ranks, without recomputation, DeepSpeed,
    the lowest ZeRO stage, the largest micro-batch.
    """
    layout, unsure = found.layout, found.verdict != "fits"
    if found.tokens_per_s is not None:
        return (unsure, -found.tokens_per_s, found.need_bytes)
    costs = (
        CHECKPOINTINGS.index(layout.activation_checkpointing),
        layout.engine == "ddp",
        layout.zero_stage,
    )
    return (unsure, not_run_here(layout) is not None, -layout.dp, *costs, -layout.micro_batch_size)


def every_family(
    setting: Setting, batch: int, everything: bool = False, *, offload: Offload = "none"
) -> Iterator[Iterator[Layout]]:
    """Layouts that differ in their micro-batch alone, the smallest first. everything: kinds too
    that no legal layout is of, for the rules to refuse."""
    for tp, pp, cp, dp in _grids(setting.work, setting.machine, batch):
        for base in _kinds(setting.work, tp, pp, cp, dp, batch, offload, everything):
            yield _micro_batches(base, batch)


def _kinds(
    work: Workload,
    tp: int,
    pp: int,
    cp: int,
    dp: int,
    batch: int,
    offload: Offload,
    everything: bool,
) -> Iterator[Layout]:
    """Of these degrees: engines, ZeRO stages, checkpointing and schedules."""
    shared = tp > 1 and all(stack.length % tp == 0 for stack in work.stacks)
    alone, ring = tp * pp * cp == 1, work.n_heads // tp % cp
    for checkpointing in CHECKPOINTINGS:
        for stage in ZERO_STAGES:
            base = Layout(
                dp=dp,
                tp=tp,
                pp=pp,
                zero_stage=stage,
                micro_batch_size=1,
                grad_accum_steps=batch // dp,
                activation_checkpointing=checkpointing,
                engine="deepspeed",
                cp=cp,
                cp_attention="ring" if ring else "ulysses",
                sequence_parallel=shared,
                offload=offload,
            )
            if (stage > 1 and dp * cp == 1) or (stage > 1 and pp > 1 and not everything):
                continue
            yield (
                replace(base, engine="reference")
                if base.world_size == 1 and offload == "none"
                else base
            )
            if pp > 1:
                yield replace(base, pp_schedule="dualpipev")
            if pp > 1 and everything:
                yield replace(base, virtual_pp=2)
        if alone and dp > 1 and offload == "none":
            yield Layout(
                dp=dp,
                tp=1,
                pp=1,
                zero_stage=0,
                micro_batch_size=1,
                grad_accum_steps=batch // dp,
                activation_checkpointing=checkpointing,
                engine="ddp",
            )
        if everything and dp > 1:
            yield replace(base, zero_stage=0)


def _micro_batches(base: Layout, batch: int) -> Iterator[Layout]:
    share = batch // base.dp
    for micro in range(1, min(share, MOST_MICRO_BATCH) + 1):
        if share % micro == 0:
            yield replace(base, micro_batch_size=micro, grad_accum_steps=share // micro)


def _grids(work: Workload, machine: Machine, batch: int) -> Iterator[tuple[int, int, int, int]]:
    """(tp, pp, cp, dp) with as many dp ranks as divide the batch and have devices. tp and cp are
    powers of two."""
    for tp, pp, cp, dp in _all_grids(work, machine):
        yield tp, pp, cp, max(fewer for fewer in range(1, dp + 1) if batch % fewer == 0)


def _all_grids(work: Workload, machine: Machine) -> Iterator[tuple[int, int, int, int]]:
    n = machine.n_devices
    for tp in _powers(min(n, machine.devices_per_node, work.n_heads)):
        for cp in _powers(min(n // tp, work.n_heads)):
            for pp in range(1, min(n // (tp * cp), work.n_blocks) + 1):
                if n % (tp * cp * pp) == 0:
                    yield tp, pp, cp, n // (tp * cp * pp)


def _powers(most: int) -> Iterator[int]:
    power = 1
    while power <= most:
        yield power
        power *= 2
