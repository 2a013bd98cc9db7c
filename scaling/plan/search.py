"""Every legal layout of a workload on a machine, predicted and ranked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from scaling.plan.constants import CONSTANTS, Constants
from scaling.plan.degrees import Checkpointing, Layout, Offload
from scaling.plan.machine_model import Machine
from scaling.plan.predict import Prediction
from scaling.plan.rules import broken_rule, not_run_here
from scaling.plan.setting import Setting
from scaling.plan.workload import Workload

MOST_MICRO_BATCH = 128
"""Sequences of a micro-batch, beyond which products have long been full: assumption."""

ZERO_STAGES = (1, 2, 3)
CHECKPOINTINGS: tuple[Checkpointing, ...] = ("none", "selective", "full")


@dataclass(frozen=True)
class Ranking:
    """fitting: legal layouts that fit, the fastest first; smallest: of those that do not, the one that needs least."""

    fitting: list[Prediction]
    smallest: Prediction | None
    n_legal: int
    refused: list[tuple[Layout, str]]


def search(
    setting: Setting, global_batch_size: int, *, constants: Constants = CONSTANTS, offload: Offload = "none",
    wanted: Callable[[Layout], bool] | None = None, keep_refused: bool = False,
) -> Ranking:  # fmt: skip
    """Predict every legal layout that uses all devices, or where none can, as many as the global batch lets it.

    wanted: layouts to look at; None: all. Micro-batches beyond the first that does not fit are not predicted.
    """
    fitting: list[Prediction] = []
    smallest: Prediction | None = None
    refused: list[tuple[Layout, str]] = []
    n_legal = 0
    for family in _families(setting.work, setting.machine, global_batch_size, offload):
        for layout in family:
            if wanted is not None and not wanted(layout):
                continue
            rule = broken_rule(setting.work, setting.machine, layout, global_batch_size)
            if rule is not None:
                if keep_refused:
                    refused.append((layout, rule))
                continue
            n_legal += 1
            found = setting.predict(layout, constants)
            if not found.fits:
                if smallest is None or found.need_bytes < smallest.need_bytes:
                    smallest = found
                break
            fitting.append(found)
    fitting.sort(key=preference)
    return Ranking(fitting, smallest, n_legal, refused)


def preference(found: Prediction) -> tuple[float, ...]:
    """Of predictions that fit, as a sort key: those that surely fit first; by rate of the whole cluster; then by memory.

    Where no rate is known: what the engines run, most dp ranks, without recomputation, the lowest ZeRO stage, the largest
    micro-batch.
    """
    layout, unsure = found.layout, found.verdict != "fits"
    if found.tokens_per_s is not None:
        return (unsure, -found.tokens_per_s, found.need_bytes)
    recomputes = layout.activation_checkpointing != "none"
    return (unsure, not_run_here(layout) is not None, -layout.dp, recomputes, layout.zero_stage, -layout.micro_batch_size)


def _families(work: Workload, machine: Machine, batch: int, offload: Offload) -> Iterator[Iterator[Layout]]:
    """Layouts that differ in their micro-batch alone, the smallest first: the first that does not fit ends its family."""
    for tp, pp, sp, dp in _grids(work, machine, batch):
        shared = tp > 1 and all(stack.length % tp == 0 for stack in work.stacks)
        for stage in ZERO_STAGES:
            if stage > 1 and (pp > 1 or dp * sp == 1):
                continue
            for checkpointing in CHECKPOINTINGS:
                base = Layout(
                    dp, tp, pp, stage, 1, batch // dp, checkpointing, "deepspeed", sp=sp, sequence_parallel=shared,
                    sp_attention="ring" if work.n_heads // tp % sp else "ulysses", offload=offload,
                )  # fmt: skip
                if base.world_size == 1 and offload == "none":
                    base = replace(base, engine="reference")
                yield _micro_batches(base, batch)
                if pp > 1:
                    yield _micro_batches(replace(base, pp_schedule="dualpipev"), batch)


def _micro_batches(base: Layout, batch: int) -> Iterator[Layout]:
    share = batch // base.dp
    for micro in range(1, min(share, MOST_MICRO_BATCH) + 1):
        if share % micro == 0:
            yield replace(base, micro_batch_size=micro, grad_accum_steps=share // micro)


def _grids(work: Workload, machine: Machine, batch: int) -> Iterator[tuple[int, int, int, int]]:
    """(tp, pp, sp, dp) with as many dp ranks as divide the batch and have devices. tp and sp are powers of two."""
    for tp, pp, sp, dp in _all_grids(work, machine):
        yield tp, pp, sp, max(fewer for fewer in range(1, dp + 1) if batch % fewer == 0)


def _all_grids(work: Workload, machine: Machine) -> Iterator[tuple[int, int, int, int]]:
    n = machine.n_devices
    for tp in _powers(min(n, machine.devices_per_node, work.n_heads)):
        for sp in _powers(min(n // tp, work.n_heads)):
            for pp in range(1, min(n // (tp * sp), work.n_blocks) + 1):
                if n % (tp * sp * pp) == 0:
                    yield tp, pp, sp, n // (tp * sp * pp)


def _powers(most: int) -> Iterator[int]:
    power = 1
    while power <= most:
        yield power
        power *= 2
