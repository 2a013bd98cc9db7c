"""The end of a run: its numbers in one file, on the screen, and as a picture."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from scaling.config import RunConfig
from scaling.data.opened import Corpus
from scaling.metrics import names
from scaling.metrics.record import Record, read_metrics
from scaling.plan.layout import RunPlan
from scaling.rundir import RunDir
from scaling.units import format_count, format_duration, format_flops

CURVE = "loss.png"
_BASELINE_TOKENS = 20_000_000
"""Corpora up to this size are read once more for their n-gram baselines: 0.4 s a million tokens (measured)."""


def finish(config: RunConfig, plan: RunPlan, run_dir: RunDir, corpus: Corpus, result: dict[str, Any]) -> dict[str, Any]:
    """Write loss.png and summary.json and note the end in events.jsonl; returns the summary."""
    from scaling.curve import plot_loss_curve  # matplotlib is wanted only here

    baselines = _baselines(config, corpus)
    plot_loss_curve(run_dir.metrics, run_dir.path / CURVE, baselines=baselines, title=f"{config.name}-{config.run_id}")
    summary = summarise(plan, read_metrics(run_dir.metrics), run_dir.read_events()) | {"sample": result["sample"]}
    summary["baselines"] = baselines
    summary["energy_kwh"] = _energy_kwh(config, summary["device_s"])
    run_dir.write_summary(summary)
    run_dir.event("finished", step=result["step"], world_size=plan.layout.world_size)
    return summary


def _baselines(config: RunConfig, corpus: Corpus) -> dict[str, float]:
    """What counting reaches on the held-out targets; none for a large corpus, a mixture, or one without its damaged shards."""
    from scaling.data.baselines import baselines  # torch too

    if corpus.mixed or corpus.skipped or corpus.n_tokens("train") > _BASELINE_TOKENS:
        return {}
    return baselines(config, corpus.location)


def _energy_kwh(config: RunConfig, device_s: float) -> float | None:
    """At the devices' power limit, an upper bound; None where that is unknown."""
    power_w = config.cluster.device.power_w
    return None if power_w is None else power_w * device_s / 3.6e6


def summarise(plan: RunPlan, records: list[Record], events: list[dict[str, Any]]) -> dict[str, Any]:
    """The run in a dozen numbers.

    wall_s counts the time that workers trained, evaluated and wrote checkpoints; goodput is the share of the time since the
    first start that was spent in steps which count.
    """
    train = [r for r in records if names.TRAIN_LOSS in r]
    held_out = [r for r in records if names.VAL_LOSS in r]
    last = records[-1]
    productive_s, step = 0.0, 0.0
    for record in train:
        productive_s += (record[names.STEP] - step) * record.get(names.STEP_TIME_S, 0.0)
        step = record[names.STEP]
    starts = [e for e in events if e["kind"] in ("start", "resume")]
    elapsed_s = max(e["time_s"] for e in events) - starts[0]["time_s"]
    rates = sorted(r[names.TOKENS_PER_S] for r in train if names.TOKENS_PER_S in r)
    return {
        "steps": int(last[names.STEP]),
        "n_tokens": int(last[names.N_TOKENS]),
        "flops": last[names.FLOPS],
        "train_loss": train[-1][names.TRAIN_LOSS],
        "val_loss": held_out[-1][names.VAL_LOSS],
        "best_val_loss": min(r[names.VAL_LOSS] for r in held_out),
        "val_ppl": held_out[-1][names.VAL_PPL],
        "val_bits_per_byte": held_out[-1].get(names.VAL_BITS_PER_BYTE),
        "tokens_per_s": rates[len(rates) // 2] if rates else None,
        "wall_s": last[names.WALL_S],
        "device_s": last[names.WALL_S] * plan.layout.world_size,
        "goodput": min(1.0, productive_s / elapsed_s) if elapsed_s > 0 else None,
        "restarts": len(starts) - 1,
    }


def print_summary(console: Console, run_dir: RunDir, summary: dict[str, Any]) -> None:
    table = Table(box=box.HORIZONTALS, show_header=False, title="Summary", title_justify="left", title_style="bold")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    bits = summary["val_bits_per_byte"]
    rows = {
        "training loss": f"{summary['train_loss']:.4f} nats per token",
        "validation loss": f"{summary['val_loss']:.4f} nats per token (best {summary['best_val_loss']:.4f})",
        "for comparison": ", ".join(f"{name} model {nats:.4f}" for name, nats in summary["baselines"].items()),
        "perplexity": f"{summary['val_ppl']:.2f}" + (f", {bits:.3f} bits per byte" if bits is not None else ""),
        "trained": f"{summary['steps']} steps, {format_count(summary['n_tokens'])} tokens, {format_flops(summary['flops'])}",
        "time": f"{format_duration(summary['wall_s'])}, restarts {summary['restarts']}",
        "speed": f"{format_count(summary['tokens_per_s'])} tokens/s" if summary["tokens_per_s"] else "unknown",
        "loss curve": str(run_dir.path / CURVE),
        "record": str(run_dir.metrics),
    }
    if summary.get("sample"):
        rows["sample"] = summary["sample"].strip("\n")
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    console.print(table, markup=False, highlight=False)
