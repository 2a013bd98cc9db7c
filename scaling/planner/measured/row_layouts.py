"""Which layouts a row of a table may mean: what is blank takes every value that divides, or what
its program does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import TypeVar, get_args

from scaling.config.cluster import Checkpointing, Offload
from scaling.planner.cost.software import Software
from scaling.planner.cost.workload import Workload
from scaling.planner.layout import Layout
from scaling.planner.machines.rates import Machine
from scaling.planner.measured.cells import whole

SPLITS = ("Megatron", "Megatron-Core", "Megatron-DeepSpeed", "nanotron", "XLA")
"""Programs that split tensors and blocks; another one whose row does not say so does neither."""

MICRO_BATCHES = (1, 2, 4, 8, 16)
STEPS_PER_STAGE = 8
"""Micro-batches a pipeline stage of a row without a global batch; without stages it is one:
assumption."""

T = TypeVar("T")


def layouts_of(
    row: Mapping[str, str], work: Workload, software: Software, machine: Machine
) -> tuple[Layout, ...]:
    found = tuple(_layouts(row, work, software, machine))
    return found or tuple(_layouts({**row, "micro_batch": "1"}, work, software, machine))


def _layouts(
    row: Mapping[str, str], work: Workload, software: Software, machine: Machine
) -> Iterator[Layout]:
    n, cp = machine.n_devices, whole(row, "cp") or 1
    shardings = _shardings(row.get("zero_stage_or_sharding", ""), software, machine)
    batch, wanted_micro, given_dp = (
        whole(row, "global_batch_seqs"),
        whole(row, "micro_batch"),
        whole(row, "dp"),
    )
    words = " ".join(row.get(key, "") for key in ("system", "attention_impl", "notes")).lower()
    for tp, pp in _model_degrees(row, work, software, machine):
        dp = given_dp or n // (tp * pp * cp)
        if dp < 1 or (given_dp is None and dp * tp * pp * cp != n):
            continue
        for micro in _or(wanted_micro, MICRO_BATCHES):
            total = batch or micro * dp * (1 if pp == 1 else STEPS_PER_STAGE * pp)
            if wanted_micro is None and total % (micro * dp):
                continue
            accum = max(1, round(total / (micro * dp)))
            for checkpointing, (stage, shard) in product(
                _checkpointing(row.get("act_checkpoint", "").lower()), shardings
            ):
                yield Layout(
                    dp=dp,
                    tp=tp,
                    pp=pp,
                    zero_stage=stage,
                    micro_batch_size=micro,
                    grad_accum_steps=accum,
                    activation_checkpointing=checkpointing,
                    engine="deepspeed",
                    cp=cp,
                    cp_attention="ring" if cp > 1 and "ulysses" not in words else "ulysses",
                    sequence_parallel=_sequence_parallel(row, software, tp),
                    virtual_pp=_virtual(row, work, pp),
                    offload=_offload(row.get("offload", "")),
                    shard_ranks=shard,
                )


def _model_degrees(
    row: Mapping[str, str], work: Workload, software: Software, machine: Machine
) -> Iterator[tuple[int, int]]:
    """(tp, pp)"""
    may = software.name in SPLITS
    tensor = (
        [d for d in (1, 2, 4, 8) if work.n_heads % d == 0 and d <= machine.devices_per_node]
        if may
        else [1]
    )
    stages = [p for p in (1, 2, 4, 8, 16) if work.n_blocks % p == 0] if may else [1]
    for tp in _or(whole(row, "tp"), tensor):
        for pp in _or(whole(row, "pp"), stages):
            yield tp, pp


def _or(given: T | None, choices: tuple[T, ...] | list[T]) -> list[T]:
    return list(choices) if given is None else [given]


def _sequence_parallel(row: Mapping[str, str], software: Software, tp: int) -> bool:
    """Unknown is yes where a program is newer than the idea (2022) and splits tensors."""
    text = row.get("seq_parallel", "").lower()
    newer = software.name in ("Megatron-Core", "nanotron", "FSDP")
    return tp > 1 and (text in ("yes", "true", "1") or (not text and newer))


def _virtual(row: Mapping[str, str], work: Workload, pp: int) -> int:
    given = whole(row, "virtual_pp")
    if given is not None:
        return given if pp > 1 else 1
    if pp > 1 and "interleav" in row.get("notes", "").lower():
        chunks = work.n_blocks // pp
        return max((d for d in (1, 2, 3, 4) if chunks % d == 0), default=1)
    return 1


def _checkpointing(text: str) -> list[Checkpointing]:
    if not text:
        return list(get_args(Checkpointing))
    if text in ("none", "no", "false", "off", "0"):
        return ["none"]
    return ["selective"] if "select" in text or "partial" in text else ["full"]


def _offload(text: str) -> Offload:
    text = text.lower()
    if not text or text in ("none", "no", "false"):
        return "none"
    return "parameters" if "param" in text else "optimizer"


def _shardings(text: str, software: Software, machine: Machine) -> list[tuple[int, int | None]]:
    """Blank: full shards of FSDP, the optimiser's states of what splits models, and of others
    either."""
    if text:
        return [_sharding(text.lower(), machine)]
    if software.name == "FSDP":
        return [(3, None)]
    return [(1, None)] if software.name in SPLITS else [(1, None), (3, None)]


def _sharding(text: str, machine: Machine) -> tuple[int, int | None]:
    """ZeRO stage, and the ranks of a shard where those are not all."""
    if "hsdp" in text or "hybrid" in text:
        return 3, machine.devices_per_node
    if "grad" in text:
        return 2, None
    if "fsdp" in text or "full" in text:
        return 3, None
    digit = re.search(r"[0-3]", text)
    if digit:
        return int(digit.group()), None
    return (1, None) if "distributed" in text else (0, None)
