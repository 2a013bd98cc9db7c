"""Rows of a table of published measurements -> what the planner plans with; a blank column is unknown."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from scaling.errors import DataError
from scaling.plan.degrees import Checkpointing, Layout, Offload
from scaling.plan.hardware import device_sheet
from scaling.plan.machine_model import Machine
from scaling.plan.software import Software
from scaling.plan.systems import software_of
from scaling.plan.workload import Stack, Workload

GIB = 2**30

NEEDED = ("source", "gpu", "n_gpus", "n_layers", "hidden")


@dataclass(frozen=True)
class Case:
    """One measured configuration. None is unknown.

    layouts          every layout that the row may mean; of several the planner takes the one that it ranks first
    peak_memory_bytes, mfu, tokens_per_s_per_device   as measured; `mfu` by the one definition of the table (`mfu_std`)
    memory_metric    device: read outside the process, its context included; reserved: by the allocator; allocated: in use
    memory_known     whether the device's memory, and so the verdict, is known
    """

    source: str
    work: Workload
    software: Software
    machine: Machine
    layouts: tuple[Layout, ...]
    row: dict[str, str]
    fits: bool | None
    peak_memory_bytes: float | None
    memory_metric: Literal["device", "reserved", "allocated"]
    mfu: float | None
    tokens_per_s_per_device: float | None
    unknowns: int


def read_cases(path: Path) -> list[Case]:
    """The rows of a CSV file. Raises DataError, naming file, line, column and value."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", None, "Give a CSV file.") from error
    if rows and (missing := [name for name in NEEDED if name not in rows[0]]):
        raise DataError(f"{path} has no column {', '.join(missing)}", None, f"It needs {', '.join(NEEDED)}, and may have more.")
    cases = []
    for number, row in enumerate(rows, 2):
        try:
            cases.append(case_of(row))
        except (ValueError, KeyError) as error:
            raise DataError(f"{path}, line {number}: {error}", None, "Leave what is unknown blank.") from error
    return cases


def case_of(row: dict[str, str]) -> Case:
    """Raises ValueError for a value that cannot be read, or a GPU that is not in the hardware table."""
    work = _workload(row)
    software = software_of(row.get("system", ""), row.get("attention_impl", ""), row.get("precision", ""), row.get("notes", ""))
    machine, memory_known = _machine(row)
    layouts = tuple(_layouts(row, work, machine)) or tuple(_layouts(row | {"micro_batch": "1"}, work, machine))
    if not layouts:
        raise ValueError("no layout divides its numbers of devices and sequences")
    metric, status = row.get("mem_metric", "").lower(), row.get("status", "").lower()
    peak = _number(row, "peak_mem_gb")
    return Case(
        source=row["source"],
        work=replace(work, dropout=software.name.startswith(("Megatron", "HF"))),
        software=software,
        machine=machine,
        layouts=layouts,
        row=row,
        fits=None if not status or not memory_known else status != "oom",
        peak_memory_bytes=None if peak is None else peak * GIB,
        memory_metric="allocated" if "allocated" in metric else "reserved" if "reserved" in metric else "device",
        mfu=_number(row, "mfu_std") if status != "oom" else None,
        tokens_per_s_per_device=_number(row, "tokens_per_s_per_gpu"),
        unknowns=sum(not row.get(name) for name in ("micro_batch", "tp", "act_checkpoint", "global_batch_seqs")),
    )


def _number(row: dict[str, str], name: str) -> float | None:
    text = (row.get(name) or "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a number") from None


def _whole(row: dict[str, str], name: str) -> int | None:
    value = _number(row, name)
    if value is None:
        return None
    if value != int(value) or value < 1:
        raise ValueError(f"{name}={row[name]!r} is not a whole number above 0")
    return int(value)


def _workload(row: dict[str, str]) -> Workload:
    """A GPT decoder: heads of 128, a vocabulary of 50304 and 2048 positions where the row says nothing."""
    n_layers, d_model = _whole(row, "n_layers"), _whole(row, "hidden")
    if n_layers is None or d_model is None:
        raise ValueError("n_layers and hidden are needed")
    n_heads = _whole(row, "heads") or max(1, d_model // 128)
    kv_heads = _whole(row, "kv_heads") or n_heads
    gated = row.get("mlp", "").lower() in ("swiglu", "geglu")
    d_ff = _whole(row, "ffn") or (-(-8 * d_model // 3 // 64) * 64 if gated else 4 * d_model)
    vocab, seq_len = _whole(row, "vocab") or 50304, _whole(row, "seq_len") or 2048
    d_head = d_model / n_heads
    kv_width = d_model * kv_heads / n_heads
    matrices = int(d_model * (2 * d_model + 2 * kv_width + (3 if gated else 2) * d_ff))
    tied = not gated
    return Workload(
        name=row.get("model", ""),
        stacks=(Stack(n_layers, seq_len, seq_len, True, matrices + 2 * d_model),),
        d_model=d_model, n_heads=n_heads, n_kv_heads=kv_heads, d_head=round(d_head), d_ff=d_ff, gated=gated, dropout=False,
        vocab_size=vocab, embedding_params=vocab * d_model, head_params=0 if tied else vocab * d_model, tied=tied,
        head_positions=seq_len, seq_len=seq_len,
        flops_per_token=6 * (n_layers * matrices + d_model * vocab) + 12 * n_layers * d_model * seq_len,
    )  # fmt: skip


@cache
def _sheet(name: str) -> dict[str, Any]:
    return device_sheet(name)


def _machine(row: dict[str, str]) -> tuple[Machine, bool]:
    name, memory = row["gpu"], _number(row, "gpu_mem_gb")
    sheet = _sheet(f"{name}-{memory:g}GB" if memory else name)
    n_devices = _whole(row, "n_gpus") or 1
    nodes = _whole(row, "nodes")
    per_node = -(-n_devices // nodes) if nodes else sheet["devices_per_node"]
    intra, inter, domain = links_of(row.get("interconnect", ""), sheet, per_node)
    if "pcie" in name.lower():
        intra = min(intra, 20.0)
    return Machine(
        device=sheet["name"], kind="gpu", generation=sheet["generation"],
        memory_bytes=(memory or sheet["memory_gb"]) * GIB,
        peak_flops_per_s=sheet["peak_tflops_bf16"] * 1e12, bytes_per_s=sheet["memory_gb_per_s"] * 1e9,
        intra_bytes_per_s=intra * 1e9, inter_bytes_per_s=inter * 1e9,
        devices_per_node=domain or per_node, n_devices=n_devices,
    ), memory is not None  # fmt: skip


def links_of(text: str, sheet: dict[str, Any], per_node: int) -> tuple[float, float, int | None]:
    """GB/s of one device within and between nodes, and devices of a larger NVLink domain, of an `interconnect` column."""
    intra, inter = float(sheet["intra_node_gb_per_s"]), float(sheet["inter_node_gb_per_s"])
    domain = re.search(r"NVL(\d+)", text)
    if re.search(r"pcie", text, re.I) and not re.search(r"nvlink|nvswitch", text, re.I):
        intra = min(intra, 20.0)
    match = re.search(r"(?:(\d+)\s*x\s*)?(?:Omni-Path\s*)?(\d{2,4})\s*(Gb|per node)", text, re.I)
    if match and re.search(r"gb(it|ps|/s)|omni", text, re.I):
        inter = int(match.group(1) or 1) * int(match.group(2)) / 8 / per_node
    elif "omni-path" in text.lower():
        inter = 12.5 / per_node
    elif re.search(r"ethernet|TCP", text, re.I):
        inter = min(inter, 12.5 / per_node)
    return intra, inter, int(domain.group(1)) if domain else None


def _layouts(row: dict[str, str], work: Workload, machine: Machine) -> Iterator[Layout]:
    """Every layout that the row may mean: what is blank takes each value that divides."""
    n, cp = machine.n_devices, _whole(row, "cp") or 1
    stage, shard = _sharding(row.get("zero_stage_or_sharding", ""), machine)
    batch, wanted_micro, given_dp = _whole(row, "global_batch_seqs"), _whole(row, "micro_batch"), _whole(row, "dp")
    text = row.get("act_checkpoint", "").lower()
    for tp in _or(_whole(row, "tp"), [d for d in (1, 2, 4, 8) if work.n_heads % d == 0 and d <= machine.devices_per_node]):
        for pp in _or(_whole(row, "pp"), [p for p in (1, 2, 4, 8) if work.n_blocks % p == 0]):
            dp = given_dp or n // (tp * pp * cp)
            if dp < 1 or (given_dp is None and dp * tp * pp * cp != n):
                continue
            for micro in _or(wanted_micro, [1, 2, 4, 8]):
                total = batch or micro * dp * (1 if pp == 1 else 8 * pp)
                if wanted_micro is None and total % (micro * dp):
                    continue
                accum = max(1, round(total / (micro * dp)))
                for checkpointing in _checkpointing(text):
                    yield Layout(
                        dp, tp, pp, stage, micro, accum, checkpointing, "deepspeed", sp=cp,
                        sequence_parallel=_sequence_parallel(row, tp), virtual_pp=_virtual(row, work, pp),
                        offload=_offload(row.get("offload", "")), shard_ranks=shard,
                    )  # fmt: skip


def _or(given: int | None, choices: list[int]) -> list[int]:
    return choices if given is None else [given]


def _sequence_parallel(row: dict[str, str], tp: int) -> bool:
    """Unknown is yes where a program is newer than the idea (2022) and splits tensors."""
    text = row.get("seq_parallel", "").lower()
    newer = any(name in row.get("system", "").lower() for name in ("nemo", "bridge", "core", "nanotron", "titan"))
    return tp > 1 and (text in ("yes", "true", "1") or (not text and newer))


def _virtual(row: dict[str, str], work: Workload, pp: int) -> int:
    given = _whole(row, "virtual_pp")
    if given is not None:
        return given if pp > 1 else 1
    if pp > 1 and "interleav" in row.get("notes", "").lower():
        chunks = work.n_blocks // pp
        return max((d for d in (1, 2, 3, 4) if chunks % d == 0), default=1)
    return 1


def _checkpointing(text: str) -> list[Checkpointing]:
    if not text:
        return ["none", "selective", "full"]
    if text in ("none", "no", "false", "off", "0"):
        return ["none"]
    return ["selective"] if "select" in text or "partial" in text else ["full"]


def _offload(text: str) -> Offload:
    text = text.lower()
    if not text or text in ("none", "no", "false"):
        return "none"
    return "parameters" if "param" in text else "optimizer"


def _sharding(text: str, machine: Machine) -> tuple[int, int | None]:
    """ZeRO stage, and the ranks of a shard where those are not all."""
    text = text.lower()
    if not text:
        return 1, None
    if "hsdp" in text or "hybrid" in text:
        return 3, machine.devices_per_node
    if "fsdp" in text or "full" in text:
        return 3, None
    if "grad" in text:
        return 2, None
    digit = re.search(r"[0-3]", text)
    if digit:
        return int(digit.group()), None
    return (1, None) if "distributed" in text else (0, None)
