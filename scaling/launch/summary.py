"""The end of a run: its numbers in one file, on the screen, and as a picture."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from scaling.config.run_config import RunConfig
from scaling.data.corpus import Corpus
from scaling.errors import ScalingError
from scaling.metrics import names
from scaling.metrics.record import Record, read_metrics
from scaling.planner.measured.calibrate import learn
from scaling.planner.run_plan import RunPlan
from scaling.runs.directory import CURVE, RunDir
from scaling.runs.goodput import Seconds, account, goodput
from scaling.screen import visible
from scaling.units import counted, format_count, format_duration, format_flops, number_text

_BASELINE_TOKENS = 20_000_000
"""Corpora up to this size are read once more for their n-gram baselines: 0.4 s a million tokens
(measured)."""

_LOSSES = (names.TRAIN_LOSS, names.VAL_LOSS, names.VAL_PPL, names.VAL_BITS_PER_BYTE)
_SUMMARISED = (
    *names.POSITION,
    *_LOSSES,
    names.TRAIN_SKIPPED_STEPS,
    names.TOKENS_PER_S,
    names.STEP_TIME_S,
)
"""What `summarise` reads of a record."""

_COUNTING = threading.Lock()
_KNOWN_BASELINES: dict[tuple[str, str], dict[str, float]] = {}
"""Baselines that this process has counted: of a corpus, or of a run whose objective scores some
targets only. Trials share them."""


def finish(
    config: RunConfig, plan: RunPlan, run_dir: RunDir, corpus: Corpus, result: dict[str, Any]
) -> dict[str, Any]:
    """Write loss.png and summary.json and note the end in events.jsonl; returns the summary."""
    baselines = _baselines(config, corpus)
    _plot(config, run_dir, baselines)
    records = read_metrics(run_dir.metrics, only=_SUMMARISED)
    summary = summarise(plan, records, run_dir.read_events()) | {"sample": result["sample"]}
    summary["baselines"] = baselines
    summary["energy_kwh"] = _energy_kwh(config, summary["device_s"])
    if config.plan.calibrate_from_run and plan.time is not None and summary["tokens_per_s"]:
        predicted = plan.time.tokens_per_s * plan.time_scale
        path, scale = learn(
            config,
            run=str(run_dir.path),
            n_devices=plan.layout.world_size,
            predicted=predicted,
            measured=summary["tokens_per_s"],
        )
        summary["calibration"] = {"file": str(path), "time_scale": scale}
    run_dir.write_summary(summary)
    run_dir.event("finished", step=result["step"], world_size=plan.layout.world_size)
    return summary


def _plot(config: RunConfig, run_dir: RunDir, baselines: dict[str, float]) -> None:
    from scaling.metrics.curve import plot_loss_curve  # matplotlib is wanted only here

    plot_loss_curve(
        run_dir.metrics,
        run_dir.path / CURVE,
        baselines=baselines,
        title=f"{config.name}-{config.run_id}",
    )


def draw_curve(config: RunConfig, run_dir: RunDir) -> None:
    """loss.png of a run that ended early, where it has a loss to show; no trouble with it may hide
    why the run ended."""
    with contextlib.suppress(ScalingError):
        if run_dir.metrics.exists():
            _plot(config, run_dir, {})


def _baselines(config: RunConfig, corpus: Corpus) -> dict[str, float]:
    """What counting reaches on the held-out targets; none for a large corpus, a mixture, or one
    without its damaged shards."""
    from scaling.data.baselines import baselines  # torch too

    if corpus.mixed or corpus.skipped or corpus.n_tokens("train") > _BASELINE_TOKENS:
        return {}
    key = (corpus.fingerprint, "" if config.objective.kind == "causal_lm" else config.semantic_hash)
    with _COUNTING:
        if key not in _KNOWN_BASELINES:
            _KNOWN_BASELINES[key] = baselines(config, corpus.location)
        return _KNOWN_BASELINES[key]


def count_ahead(config: RunConfig, corpus: Corpus) -> None:
    """Count the baselines of a corpus beside what this process does: the end of the first run on it
    then need not wait for them.

    `finish` reports what goes wrong here, and then counts itself.
    """

    def counted() -> None:
        with contextlib.suppress(ScalingError):
            _baselines(config, corpus)

    threading.Thread(target=counted, name="baselines", daemon=True).start()


def _calibration(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return (
        f"times on these devices x {found['time_scale']:.3g}: "
        f"plan.calibrate={found['file']} plans with it"
    )


def _energy_kwh(config: RunConfig, device_s: float) -> float | None:
    """Energy at the devices' power limit, an upper bound; None where that is unknown."""
    power_w = config.cluster.device.power_w
    return None if power_w is None else power_w * device_s / 3.6e6


def summarise(plan: RunPlan, records: list[Record], events: list[dict[str, Any]]) -> dict[str, Any]:
    """The run in a dozen numbers.

    wall_s counts the time that workers trained, evaluated and wrote checkpoints, without what was
    lost; seconds is all the time since the first command by what it went to, since_command_s their
    sum, and goodput the share of steps which count (`scaling.runs.goodput`). Of a run that branched
    from another, times are its own part's. A loss that is not finite is None, and `not_finite` has
    its text. record_gaps: first and last steps of what metrics.jsonl has lost.
    """
    train = [r for r in records if names.TRAIN_LOSS in r]
    held_out = [r for r in records if names.VAL_LOSS in r]
    last, last_train, last_val = (
        records[-1],
        next(reversed(train), Record()),
        next(reversed(held_out), Record()),
    )
    losses = {
        "train_loss": last_train.get(names.TRAIN_LOSS),
        "val_loss": last_val.get(names.VAL_LOSS),
        "best_val_loss": min(
            (r[names.VAL_LOSS] for r in held_out if math.isfinite(r[names.VAL_LOSS])), default=None
        ),
        "val_ppl": last_val.get(names.VAL_PPL),
        "val_bits_per_byte": last_val.get(names.VAL_BITS_PER_BYTE),
    }
    not_finite = {
        name: value
        for name, value in losses.items()
        if value is not None and not math.isfinite(value)
    }
    gaps = {(e["first_step"], e["last_step"]) for e in events if e["kind"] == "record_gap"}
    branched = next((e for e in events if e["kind"] == "branched"), {"step": 0, "wall_s": 0.0})
    own_wall_s = last[names.WALL_S] - branched["wall_s"]
    seconds = account([*events, {"kind": "finished", "time_s": time.time()}])
    starts = [e for e in events if e["kind"] in ("start", "resume")]
    rates = sorted(r[names.TOKENS_PER_S] for r in train if names.TOKENS_PER_S in r)
    return {
        "steps": int(last[names.STEP]),
        "n_tokens": int(last[names.N_TOKENS]),
        "flops": last[names.FLOPS],
        **{name: None if name in not_finite else value for name, value in losses.items()},
        "not_finite": not_finite,
        "skipped_steps": int(last_train.get(names.TRAIN_SKIPPED_STEPS, 0)),
        "record_gaps": sorted(gaps),
        "tokens_per_s": rates[len(rates) // 2] if rates else None,
        "wall_s": own_wall_s,
        "training_s": training_s(records, first_step=branched["step"]),
        "device_s": own_wall_s * plan.layout.world_size,
        "goodput": goodput(seconds),
        "seconds": {activity: round(spent_s, 3) for activity, spent_s in seconds.items()},
        "since_command_s": round(sum(seconds.values()), 3),
        "restarts": len(starts) - 1,
    }


def wall_text(summary: dict[str, Any]) -> str:
    """What training took, of what the account adds up to."""
    total_s = sum(summary["seconds"].values())
    return (
        f"training {format_duration(summary['wall_s'])} of {format_duration(total_s)}"
        " since the command"
    )


def time_text(seconds: Seconds) -> str:
    """The activities that took more than a tenth of a percent of the time, the longest first."""
    total = sum(seconds.values()) or 1.0
    shares = sorted(
        ((spent_s / total, activity) for activity, spent_s in seconds.items()), reverse=True
    )
    return ", ".join(f"{activity} {share:.1%}" for share, activity in shares if share >= 0.001)


def training_s(records: list[Record], first_step: float = 0) -> float:
    """Seconds that the steps after `first_step` took, evaluations, checkpoints and starts left
    out."""
    total_s, step = 0.0, first_step
    for record in records:
        if names.STEP_TIME_S in record and record[names.STEP] > step:
            total_s += (record[names.STEP] - step) * record[names.STEP_TIME_S]
            step = record[names.STEP]
    return total_s


_VALIDATION = (("val_loss", ".4f"), ("best_val_loss", ".4f"), ("val_ppl", ".2f"))


def _train_loss(summary: dict[str, Any]) -> str:
    """Loss of the last interval, where one step that is not finite is enough to spoil the mean."""
    word = summary.get("not_finite", {}).get("train_loss")
    return (
        f"not finite ({word}) in the last interval,"
        if word
        else number_text(summary["train_loss"], ".4f")
    )


def print_summary(console: Console, run_dir: RunDir, summary: dict[str, Any]) -> None:
    table = Table(
        box=box.HORIZONTALS,
        show_header=False,
        title="Summary",
        title_justify="left",
        title_style="bold",
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    bits, steps = summary["val_bits_per_byte"], counted(summary["steps"], "step")
    val, best, perplexity = (number_text(summary[name], style) for name, style in _VALIDATION)
    skipped, gaps = summary.get("skipped_steps"), summary.get("record_gaps") or []
    rows = {
        "training loss": f"{_train_loss(summary)} nats per token",
        "validation loss": f"{val} nats per token (best {best})",
        "for comparison": ", ".join(
            f"{name} model {nats:.4f}" for name, nats in summary["baselines"].items()
        ),
        "perplexity": perplexity + (f", {bits:.3f} bits per byte" if bits is not None else ""),
        "trained": f"{steps}, {format_count(summary['n_tokens'])} tokens, "
        f"{format_flops(summary['flops'])}",
        "left out": f"{skipped} of {summary['steps']} updates (train.on_nonfinite, train.on_spike)"
        if skipped
        else "",
        "not recorded": ", ".join(f"steps {first} to {last}" for first, last in gaps),
        "time": f"{wall_text(summary)}, restarts {summary['restarts']}",
        "where it went": time_text(summary["seconds"]),
        "speed": f"{format_count(summary['tokens_per_s'])} tokens/s"
        if summary["tokens_per_s"]
        else "unknown",
        "calibration": _calibration(summary.get("calibration")),
        "loss curve": str(run_dir.path / CURVE),
        "record": str(run_dir.metrics),
    }
    if summary.get("sample"):
        rows["sample"] = summary["sample"].strip("\n")
    for name, text in rows.items():
        if text:
            table.add_row(name, visible(text))
    console.print(table, markup=False, highlight=False)
