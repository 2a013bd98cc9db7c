"""Rows of a table of published measurements -> what the planner plans with; a blank column is
unknown."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from scaling.config.hardware import device_sheet
from scaling.errors import DataError
from scaling.planner.cost.software import Software
from scaling.planner.cost.workload import Stack, Workload
from scaling.planner.layout import Layout
from scaling.planner.machines.rates import Machine
from scaling.planner.measured.cells import number, whole
from scaling.planner.measured.row_layouts import layouts_of
from scaling.planner.measured.row_links import links_of
from scaling.planner.measured.systems import software_of
from scaling.units import other_delimiter

GIB = 2**30

NEEDED = ("source", "gpu", "n_gpus", "n_layers", "hidden")

MATCHES = 0.02
"""Largest relative difference between a printed number of parameters and that of a shape:
assumption."""


@dataclass(frozen=True)
class Case:
    """One measured configuration. None is unknown.

    layouts          every layout that the row may mean
    fits             whether it ran; None too where the device's memory is not known
    peak_memory_bytes, mfu, tokens_per_s_per_device   as measured; `mfu` by the one definition of
      the table (`mfu_std`)
    memory_metric    device: read outside the process, its context included; reserved: by the
                     allocator; allocated: in use
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


@dataclass(frozen=True)
class Unread:
    """A line of a file that is no case, and why."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.reason}"


def read_cases(path: Path) -> list[Case]:
    """The rows of a CSV file. Raises DataError, naming file, line, column and value."""
    cases, unread = read_table(path)
    if unread:
        raise DataError(str(unread[0]), None, "Leave what is unknown blank.")
    return cases


def read_table(path: Path) -> tuple[list[Case], list[Unread]]:
    """The rows of a CSV file that can be read, and the others. Raises DataError where it is no such
    table."""
    try:
        with path.open(newline="") as file:
            delimiter = other_delimiter(file.readline())
            file.seek(0)
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}",
            None,
            "Give a CSV file.",
        ) from error
    if delimiter is not None:
        raise DataError(
            f"{path} has a {delimiter} between its columns, and a comma is wanted",
            None,
            "Write it with commas between columns and points in numbers.",
        )
    if rows and (missing := [name for name in NEEDED if name not in rows[0]]):
        raise DataError(
            f"{path} has no column {', '.join(missing)}",
            None,
            f"It needs {', '.join(NEEDED)}, and may have more.",
        )
    cases, unread = [], []
    for line, row in enumerate(rows, 2):
        try:
            cases.append(case_of({key: value or "" for key, value in row.items() if key}))
        except ValueError as error:
            unread.append(Unread(path, line, str(error)))
    return cases, unread


def case_of(row: dict[str, str]) -> Case:
    """Raises ValueError for a value that cannot be read, or a GPU that is not in the hardware
    table."""
    software = software_of(row)
    work = replace(_workload(row), dropout=software.name.startswith(("Megatron", "HF")))
    machine = _machine(row, software)
    layouts = layouts_of(row, work, software, machine)
    if not layouts:
        raise ValueError("no layout divides its numbers of devices and sequences")
    metric, status = row.get("mem_metric", "").lower(), row.get("status", "").lower()
    peak = number(row, "peak_mem_gb")
    return Case(
        source=row["source"],
        work=work,
        software=software,
        machine=machine,
        layouts=layouts,
        row=row,
        fits=status != "oom" if status and number(row, "gpu_mem_gb") else None,
        peak_memory_bytes=None if peak is None else peak * GIB,
        memory_metric=_metric(metric),
        mfu=number(row, "mfu_std") if status != "oom" else None,
        tokens_per_s_per_device=number(row, "tokens_per_s_per_gpu"),
    )


def _metric(text: str) -> Literal["device", "reserved", "allocated"]:
    """Blank: what the allocator reserved, which lies between the others and is what most programs
    print."""
    if "allocated" in text:
        return "allocated"
    return "device" if "smi" in text or "device" in text else "reserved"


def _workload(row: Mapping[str, str]) -> Workload:
    """A GPT decoder: heads of 128, a vocabulary of 50304 and 2048 positions where the row says
    nothing. Gated models have an untied head. Without `mlp`, feed-forward layers are gated where
    that alone gives the printed number of parameters."""
    text = row.get("mlp", "").lower()
    plain, gated = _decoder(row, gated=False), _decoder(row, gated=True)
    if text:
        return gated if "glu" in text else plain
    params = number(row, "params_b")
    return gated if params and _has(gated, params) and not _has(plain, params) else plain


def _has(work: Workload, params_b: float) -> bool:
    """Whether a shape has this many parameters. Sources count one matrix of the vocabulary."""
    return abs((work.n_params - work.head_params) / (1e9 * params_b) - 1) < MATCHES


def _decoder(row: Mapping[str, str], *, gated: bool) -> Workload:
    n_layers, d_model = whole(row, "n_layers"), whole(row, "hidden")
    if n_layers is None or d_model is None:
        raise ValueError("n_layers and hidden are needed")
    n_heads = whole(row, "heads") or max(1, d_model // 128)
    kv_heads = whole(row, "kv_heads") or n_heads
    d_ff = whole(row, "ffn") or (-(-8 * d_model // 3 // 64) * 64 if gated else 4 * d_model)
    vocab, seq_len = whole(row, "vocab") or 50304, whole(row, "seq_len") or 2048
    kv_width = d_model * kv_heads / n_heads
    matrices = int(d_model * (2 * d_model + 2 * kv_width + (3 if gated else 2) * d_ff))
    return Workload(
        name=row.get("model", ""),
        stacks=(Stack(n_layers, seq_len, seq_len, True, matrices + 2 * d_model),),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=kv_heads,
        d_head=round(d_model / n_heads),
        d_ff=d_ff,
        gated=gated,
        dropout=False,
        vocab_size=vocab,
        embedding_params=vocab * d_model,
        head_params=vocab * d_model if gated else 0,
        tied=not gated,
        head_positions=seq_len,
        seq_len=seq_len,
        flops_per_token=6 * (n_layers * matrices + d_model * vocab)
        + 12 * n_layers * d_model * seq_len,
    )


@cache
def _sheet(name: str, memory: float | None) -> dict[str, Any]:
    """The data sheet of the card with this memory, else of the largest card of its name. Links of a
    PCIe card come from the row."""
    name = re.sub(r"[ _-]*(pcie|nvl)\b", "", name, flags=re.IGNORECASE)
    if memory:
        with contextlib.suppress(ValueError):
            return device_sheet(f"{name}-{memory:g}GB")
    return device_sheet(name)


def _machine(row: Mapping[str, str], software: Software) -> Machine:
    """A row's machine. Without gpu_mem_gb it has the largest card of that name, and without
    interconnect the links of the card's usual node."""
    name, memory = row["gpu"], number(row, "gpu_mem_gb")
    sheet = _sheet(name, memory)
    n_devices = whole(row, "n_gpus") or 1
    nodes = whole(row, "nodes")
    per_node = -(-n_devices // nodes) if nodes else min(n_devices, sheet["devices_per_node"])
    links = links_of(row.get("interconnect", ""), sheet, per_node, pcie="pcie" in name.lower())
    return Machine(
        device=sheet["name"],
        kind="gpu",
        generation=sheet["generation"],
        memory_bytes=memory * GIB if memory else sheet["memory_gb"] * 1e9,
        peak_flops_per_s=sheet["peak_tflops_fp32" if software.width == 4 else "peak_tflops_bf16"]
        * 1e12,
        bytes_per_s=sheet["memory_gb_per_s"] * 1e9,
        intra_bytes_per_s=links.intra_gb_per_s * 1e9,
        inter_bytes_per_s=links.inter_gb_per_s * 1e9,
        devices_per_node=links.domain or per_node,
        n_devices=n_devices,
    )
