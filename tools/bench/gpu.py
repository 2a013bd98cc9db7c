"""Measure MFU and peak memory of training on one GPU, beside the planner's prediction and a plain
PyTorch loop.

Usage: python tools/bench/gpu.py CLUSTER [FILE.jsonl [GROUP ...]]      e.g. 1xH100; appends a line
  for each row to the file

The cases of a group share a process, one after another, each on a random batch in bf16: two steps
of two micro-batches to warm up, and four that are timed. `allocated` and `reserved` are
torch.cuda.max_memory_allocated and _reserved; in brackets is the prediction over the measurement,
less one. `plain` is plain.py, from the same weights on the same batch; compare its losses.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scaling.composition.compose import compose
from scaling.config.run_config import RunConfig
from scaling.planner.cost.setting import setting_of
from scaling.planner.layout import Layout
from scaling.planner.machines.detect import resolve_cluster

WARM_UP, STEPS, ACCUM = 2, 4, 2
LLAMA = ("model=gpt_50m", "tokenizer=bpe_50k", "train.seq_len=2048")
SHAPES = {
    "llama_125m": ("model.n_layers=12", "model.d_model=768", "model.n_heads=12"),
    "llama_1b": ("model.n_layers=24", "model.d_model=2048", "model.n_heads=16"),
}
ONE = Layout(
    dp=1,
    tp=1,
    pp=1,
    zero_stage=1,
    micro_batch_size=8,
    grad_accum_steps=ACCUM,
    activation_checkpointing="none",
    engine="reference",
)


@dataclass(frozen=True)
class Case:
    """A trained configuration. side: reference, deepspeed or plain."""

    model: str
    micro_batch_size: int
    recompute: str = "none"
    compile: bool = False
    side: str = "reference"
    zero_stage: int = 1

    @property
    def layout(self) -> Layout:
        engine = "deepspeed" if self.side == "deepspeed" else "reference"
        return replace(
            ONE,
            micro_batch_size=self.micro_batch_size,
            activation_checkpointing=self.recompute,
            engine=engine,
            zero_stage=self.zero_stage,
        )

    def config(self, cluster: str) -> RunConfig:
        model = (*LLAMA, *SHAPES[self.model]) if self.model in SHAPES else (f"model={self.model}",)
        batch = f"train.global_batch_size={self.micro_batch_size * ACCUM}"
        words = [
            *model,
            batch,
            f"cluster={cluster}",
            "precision=bf16",
            f"train.compile={str(self.compile).lower()}",
        ]
        return resolve_cluster(compose(words))


def group(model: str, *rest: tuple[Any, ...]) -> list[Case]:
    return [Case(model, *one) for one in rest]


# ZeRO-3 comes last in a process, because parts of its engine stay in memory.
GROUPS = [
    group("gpt_125m", (8,), (32,), (32, "selective"), (32, "full"), (16, "none", True)),
    group("gpt_350m", (8,), (16,), (32, "full")),
    group("gpt_760m", (8,), (16, "selective"), (32, "full")),
    group("gpt_1b", (4,), (8,), (16,), (32,), (16, "selective"), (16, "full"), (8, "none", True)),
    group("gpt_3b", (4,), (8,), (16,), (8, "selective"), (16, "full")),
    group("gpt_125m", *((32, "none", False, "deepspeed", stage) for stage in (1, 2, 3))),
    group(
        "gpt_1b",
        (16, "full", False, "deepspeed", 1),
        *((8, "none", False, "deepspeed", stage) for stage in (1, 2, 3)),
    ),
    group("gpt_3b", (4, "full", False, "deepspeed", 1)),
    group(
        "llama_125m",
        (16,),
        (16, "none", False, "plain"),
        (16, "none", True),
        (16, "none", True, "plain"),
    ),
    group(
        "llama_1b", (8,), (8, "none", False, "plain"), (8, "none", True), (8, "none", True, "plain")
    ),
]


def run_group(cases: list[Case], cluster: str, path: str) -> None:
    """Train each case in a process of its own, and add its row to the file."""
    import torch
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    initialise = importlib.import_module("scaling.model.initialise")
    initialise.initial_values = on_the_device  # type: ignore[attr-defined]
    if cases[0].side == "deepspeed":
        dist.init_process_group(
            "nccl", init_method=f"file://{tempfile.mkdtemp()}/rendezvous", rank=0, world_size=1
        )
    for case in cases:
        began_s = time.monotonic()
        row = asdict(case) | predicted(case, cluster)
        try:
            row |= {"status": "ok"} | measured(case, cluster)
        except torch.OutOfMemoryError:
            row |= {"status": "oom"}
        except Exception as error:  # a failed case does not stop the others
            row |= {"status": "failed", "why": f"{type(error).__name__}: {error}"[:2000]}
        gc.collect()
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        row["took_s"] = round(time.monotonic() - began_s, 1)
        with Path(path).open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(line_of(row), flush=True)


def on_the_device(name: str, shape: Sequence[int], config: Any, seed: int) -> Any:
    """Make initial weights quickly on the device. Their values do not affect speed, but plain.py
    must start from the same ones."""
    import torch

    if len(shape) > 1:
        generator = torch.Generator("cuda").manual_seed(zlib.crc32(name.encode()))
        return torch.empty(*shape, device="cuda").normal_(0.0, config.init_std, generator=generator)
    return torch.ones(*shape) if name.endswith("norm.weight") else torch.zeros(*shape)


def predicted(case: Case, cluster: str) -> dict[str, Any]:
    found = setting_of(case.config(cluster)).predict(case.layout)
    assert found.time is not None
    return {
        "verdict": found.verdict,
        "allocated_predicted": found.memory.seen("allocated"),
        "reserved_predicted": found.memory.seen("reserved"),
        "step_s_predicted": found.time.step_time_s,
        "mfu_predicted": found.mfu,
    }


def measured(case: Case, cluster: str) -> dict[str, Any]:
    import torch

    config, device = case.config(cluster), torch.device("cuda", 0)
    rows = torch.randint(
        config.vocab_size,
        (case.micro_batch_size * ACCUM, config.train.seq_len + 1),
        generator=torch.Generator().manual_seed(0),
    )
    torch.cuda.reset_peak_memory_stats()
    step, close = (plain_step if case.side == "plain" else engine_step)(case, config, rows, device)
    first = float(step())
    for _ in range(WARM_UP - 1):
        step()
    torch.cuda.synchronize()
    times = []
    for _ in range(STEPS):
        began_s = time.perf_counter()
        loss = step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began_s)
    free, whole = torch.cuda.mem_get_info()
    close()
    return {
        "step_s": statistics.median(times),
        "tokens_per_s": rows[:, 1:].numel() / statistics.median(times),
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "device_bytes": whole - free,
        "first_loss": first,
        "loss": float(loss),
    }


def engine_step(
    case: Case, config: RunConfig, rows: Any, device: Any
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    from scaling.batch import Batch
    from scaling.engine.build import build_engine
    from scaling.parallel.grid import Ranks

    engine = build_engine(config, case.layout, Ranks(0, 1, 0), device)
    batches = [
        Batch(row[:, :-1].contiguous(), row[:, 1:].contiguous()).to(device)
        for row in rows.split(case.micro_batch_size)
    ]
    return lambda: engine.step(batches, lr=1e-4).loss, engine.close


def plain_step(
    case: Case, config: RunConfig, rows: Any, device: Any
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    import torch
    from plain import PlainGPT, PlainLoop

    from scaling.model import build_model, initialise

    ours = build_model(config, device=device)
    initialise(ours, config.train.seed)
    with torch.device(device):
        model = PlainGPT(
            config.model, config.vocab_size, config.train.seq_len, config.position.theta
        ).to(device)
    model.load_state_dict(ours.state_dict())
    del ours
    if case.compile:
        for block in model.blocks:
            block.compile()
    batches = [
        (row[:, :-1].contiguous().to(device), row[:, 1:].contiguous().to(device))
        for row in rows.split(case.micro_batch_size)
    ]
    loop = PlainLoop(model, batches, config.optim.model_copy(update={"lr": 1e-4}), bf16=True)
    return lambda: loop.accumulated(ACCUM), lambda: None


def line_of(row: dict[str, Any]) -> str:
    name = (
        f"{row['model']:<11} {row['side']:<9} zero{row['zero_stage']} "
        f"micro {row['micro_batch_size']:<3} {row['recompute']:<9}"
    )
    took = f"({row['took_s']} s)"
    name += " compile" if row["compile"] else "        "
    if row["status"] != "ok":
        return f"{name} {row['status']}; predicted: {row['verdict']} {row.get('why', '')} {took}"
    mfu = row["mfu_predicted"] * row["step_s_predicted"] / row["step_s"]
    cells = [
        f"{row['tokens_per_s']:8.0f} tokens/s  MFU {mfu:.3f} "
        f"({row['mfu_predicted'] / mfu - 1:+.0%})"
    ]
    for what in ("allocated", "reserved"):
        cells.append(
            f"{what} {row[what] / 1e9:6.2f} GB ({row[what + '_predicted'] / row[what] - 1:+.0%})"
        )
    losses = f"{row['first_loss']:.5f} {row['loss']:.5f}"
    return f"{name} {'  '.join(cells)}  loss {losses}  {row['verdict']} {took}"


def main() -> None:
    cluster, path = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else os.devnull
    context = multiprocessing.get_context("spawn")
    chosen = [GROUPS[int(word)] for word in sys.argv[3:]] or GROUPS
    for cases in chosen:
        process = context.Process(target=run_group, args=(cases, cluster, path))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
