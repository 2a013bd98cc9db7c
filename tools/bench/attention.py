"""Measure every attention, forward and backward, against the length of the sequence: milliseconds
and peak memory.

Usage: OMP_NUM_THREADS=1 python tools/bench/attention.py [--max-length 16384] [--max-quadratic 4096]
[--out docs/images]

One causal layer of 4 heads of 64, projections included, and one sequence, in fp32 (bf16 on a GPU),
without positions but where the name says so. The time is the least of some runs: on a CPU that of
the process, which others on the machine disturb little. The memory is the most that is held above
what was before, on a CPU by every allocation that torch makes. Exponents are slopes of log(time)
and log(memory) over the four longest lengths. Writes attention.png and prints the table of
docs/attention.md.
"""

from __future__ import annotations

import argparse
import gc
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from scaling.composition.compose import compose
from scaling.model.attention import ATTENTIONS
from scaling.model.attention.base import Attention
from scaling.model.position import POSITIONS, Context

D_MODEL, N_HEADS = 256, 4
QUADRATIC = ("gqa", "full, alibi", "full, documents", "relative")
"""Kinds of quadratic time beside full attention, whose growth shows theirs."""
VARIANTS: dict[str, tuple[str, ...]] = {
    "full": (),
    "gqa": ("attention=gqa",),
    "full, alibi": ("position=alibi",),
    "full, documents": (),
    "relative": ("attention=relative",),
    "local": ("attention=local",),
    "strided": ("attention=strided", "attention.stride=64"),
    "hierarchical": ("attention=hierarchical",),
    "linear": ("attention=linear",),
}
"""Window 128, stride and block 64: the defaults, except that the default stride grows with the
length."""


def build(name: str, length: int, device: torch.device) -> tuple[Attention, Context]:
    overrides = [
        "position=none",
        *VARIANTS[name],
        f"model.d_model={D_MODEL}",
        f"model.n_heads={N_HEADS}",
        f"train.seq_len={length}",
    ]
    config = compose(
        [
            o
            for o in overrides
            if not (o == "position=none" and any(v.startswith("position=") for v in VARIANTS[name]))
        ]
    )
    documents_BT = (
        torch.arange(length, device=device)[None] // 500 if name == "full, documents" else None
    )
    module = ATTENTIONS[config.attention.kind](config).to(device)
    return module, Context(
        bias=POSITIONS[config.position.kind](config).bias, documents_BT=documents_BT
    )


def step(module: Attention, context: Context, x_BTD: Tensor) -> None:
    module.zero_grad(set_to_none=True)
    with torch.autocast(x_BTD.device.type, torch.bfloat16, enabled=x_BTD.is_cuda):
        module(x_BTD, context).sum().backward()
    if x_BTD.is_cuda:
        torch.cuda.synchronize()


def milliseconds(module: Attention, context: Context, x_BTD: Tensor) -> float:
    """The fastest of at least three runs over half a second or more; no new run starts after six
    seconds."""
    clock = time.perf_counter if x_BTD.is_cuda else time.process_time
    step(module, context, x_BTD)
    times: list[float] = []
    while (len(times) < 3 or sum(times) < 0.5) and sum(times) < 6:
        begun_s = clock()
        step(module, context, x_BTD)
        times.append(clock() - begun_s)
    return 1000 * min(times)


def peak_bytes(module: Attention, context: Context, x_BTD: Tensor) -> int:
    """The peak memory of one step above the memory before it."""
    gc.collect()
    if x_BTD.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(module, context, x_BTD)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step(module, context, x_BTD)
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(np.cumsum(sizes).max())


def exponent(lengths: list[int], values: list[float]) -> float:
    n = min(4, len(lengths))
    return float(np.polyfit(np.log(lengths[-n:]), np.log(values[-n:]), 1)[0])


def measure(name: str, lengths: list[int], device: torch.device) -> tuple[list[float], list[float]]:
    times, sizes = [], []
    for length in lengths:
        torch.manual_seed(0)
        module, context = build(name, length, device)
        x_BTD = torch.randn(1, length, D_MODEL, device=device, requires_grad=True)
        times.append(milliseconds(module, context, x_BTD))
        x_BTD.grad = None
        sizes.append(peak_bytes(module, context, x_BTD) / 1e6)
        print(f"{name:16} {length:6} {times[-1]:9.2f} ms {sizes[-1]:9.1f} MB", flush=True)
    return times, sizes


def plot(
    results: dict[str, tuple[list[int], list[float], list[float]]], path: Path, where: str
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6))
    for (name, (lengths, times, sizes)), color in zip(
        results.items(), plt.get_cmap("tab10").colors, strict=False
    ):
        for axis, values in zip(axes, (times, sizes), strict=True):
            axis.plot(
                lengths,
                values,
                marker="o",
                markersize=3.5,
                label=f"{name} ({exponent(lengths, values):.2f})",
                color=color,
            )
    longest = sorted({n for lengths, _, _ in results.values() for n in lengths})
    for axis, title in zip(axes, ("ms, forward and backward", "peak memory, MB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="sequence length", title=title)
        axis.set_xticks(longest, [str(n) for n in longest], fontsize=8)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7.5, title="kind (exponent)", title_fontsize=8)
    figure.suptitle(
        f"One causal layer, d_model {D_MODEL}, {N_HEADS} heads, one sequence; {where}", fontsize=10
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def table(
    results: dict[str, tuple[list[int], list[float], list[float]]], lengths: list[int]
) -> str:
    """A Markdown table of milliseconds / MB at every length, and both exponents."""
    lines = [
        "| kind | " + " | ".join(map(str, lengths)) + " | exponents |",
        "| --- " * (len(lengths) + 2) + "|",
    ]
    for name, (own, times, sizes) in results.items():
        cells = dict(
            zip(own, (f"{t:.3g} / {s:.3g}" for t, s in zip(times, sizes, strict=True)), strict=True)
        )
        fits = f"{exponent(own, times):.2f} / {exponent(own, sizes):.2f}"
        lines.append(
            f"| {name} | " + " | ".join(cells.get(n, "") for n in lengths) + f" | {fits} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-length", type=int, default=16384)
    parser.add_argument(
        "--max-quadratic",
        type=int,
        default=4096,
        help="longest sequence of kinds with quadratic time, but full",
    )
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU thread"
    )
    where = f"{where}, torch {torch.__version__}"
    lengths = [n for n in (256, 512, 1024, 2048, 4096, 8192, 16384) if n <= arguments.max_length]
    results = {}
    for name in VARIANTS:
        own = [n for n in lengths if name not in QUADRATIC or n <= arguments.max_quadratic]
        results[name] = (own, *measure(name, own, device))
    plot(results, arguments.out / "attention.png", where)
    print(table(results, lengths))
    print(f"{where}, {platform.machine()}")


if __name__ == "__main__":
    main()
