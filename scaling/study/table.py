"""A study before it starts: its trials, what each will take, and all of them together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scaling.plan.counts import count
from scaling.plan.layout import RunPlan
from scaling.study.trials import Standing, Study, Trial
from scaling.units import format_count, format_duration, format_flops

if TYPE_CHECKING:
    from rich.table import Table

_MAX_VARIED = 6
"""Columns of varied keys; more would not fit a screen."""
_TOLD = (
    "model.n_layers", "model.d_model", "model.n_heads", "model.n_kv_heads", "model.d_head", "model.d_ff", "train.n_tokens",
    "train.parent",
)  # fmt: skip
"""What the columns of parameters and tokens say already."""


@dataclass(frozen=True)
class Remaining:
    """What is still to be done of a trial, or of several. None is unknown."""

    tokens: float
    flops: float
    device_hours: float | None
    usd: float | None


def remaining(trial: Trial, standing: Standing, flops_per_device_s: float | None) -> Remaining:
    """By the plan's own prediction, or, where the devices' peak is not known, at a measured rate."""
    plan = trial.plan
    if plan is None or standing.state in ("finished", "stopped", "given up", "damaged"):
        return Remaining(0.0, 0.0, 0.0, 0.0)
    begun = max(standing.step, trial.branch.step if trial.branch is not None else 0)
    share = max(0.0, 1 - begun / plan.n_steps)
    hours = None if plan.hours is None else plan.hours * plan.layout.world_size
    if hours is None and flops_per_device_s:
        hours = plan.flops / flops_per_device_s / 3600
    return Remaining(
        share * plan.n_tokens,
        share * plan.flops,
        None if hours is None else share * hours,
        None if plan.usd is None else share * plan.usd,
    )


def measured_rate(study: Study, standings: Mapping[str, Standing]) -> float | None:
    """FLOP/s of a device over the study's finished trials; None before there are any."""
    flops = device_s = 0.0
    for trial in study.trials:
        if standings[trial.identity].state == "finished" and (summary := trial.run_dir.read_summary()) is not None:
            begun = trial.branch.step / max(1, summary["steps"]) if trial.branch is not None else 0.0
            flops += (1 - begun) * summary["flops"]
            device_s += summary["device_s"]
    return flops / device_s if device_s > 0 else None


def total(parts: Sequence[Remaining]) -> Remaining:
    def added(name: str) -> float | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else sum(values)

    return Remaining(sum(part.tokens for part in parts), sum(part.flops for part in parts), added("device_hours"), added("usd"))


def study_table(study: Study, standings: Mapping[str, Standing]) -> Table:
    """One row a trial, with what it varies, its size, its devices and how it stands; totals are of what is still to be done."""
    from rich import box
    from rich.table import Table

    rate = measured_rate(study, standings)
    rests = [remaining(trial, standings[trial.identity], rate) for trial in study.trials]
    keys = shown_keys(study.trials)
    table = Table(
        box=box.SIMPLE_HEAD, title=f"Study {study.name}: {len(study.trials)} trials", title_justify="left", title_style="bold",
        header_style="bold", pad_edge=False, show_footer=True, footer_style="bold",
    )  # fmt: skip
    table.add_column("trial", "still to do", overflow="fold", min_width=16)
    for heading in headings(keys):
        table.add_column(heading, justify="right", no_wrap=True)
    whole = total(rests)
    footers = ("", format_count(whole.tokens), format_flops(whole.flops), "", _hours(whole.device_hours), _usd(whole.usd), "")
    further = ("params", "tokens", "compute", "devices", "device time", "USD", "state")
    for heading, footer in zip(further, footers, strict=True):
        table.add_column(heading, footer, justify="left" if heading == "state" else "right", no_wrap=True)
    for trial, rest in zip(study.trials, rests, strict=True):
        table.add_row(*_row(trial, standings[trial.identity], keys, rest))
    return table


def _row(trial: Trial, standing: Standing, keys: Sequence[str], rest: Remaining) -> Iterator[str]:
    yield trial.name
    yield from (shown(trial.varied[key]) for key in keys)
    yield format_count(count(trial.config).n_params)
    yield format_count(trial.n_tokens) + (f" from {format_count(_branch_tokens(trial))}" if trial.branch else "")
    yield format_flops(trial.flops)
    if trial.plan is None:
        yield from ("-", "-", "-", "refused")
        return
    yield str(trial.plan.layout.world_size)
    yield _hours(rest.device_hours)
    yield _usd(rest.usd)
    yield _state(standing, trial.plan)


def _branch_tokens(trial: Trial) -> int:
    assert trial.branch is not None
    return trial.branch.step * trial.config.train.global_batch_size * trial.config.train.seq_len


def _state(standing: Standing, plan: RunPlan) -> str:
    text: str = standing.state
    if standing.state in ("begun", "failed", "stopped") and standing.step:
        text += f", from step {standing.step}/{plan.n_steps}"
    return text + (f", {standing.failures} failures" if standing.failures else "")


def shown_keys(trials: Sequence[Trial]) -> list[str]:
    """The varied keys that get a column."""
    keys = [key for key in trials[0].varied if key not in _TOLD]
    return keys[:_MAX_VARIED]


def headings(keys: Sequence[str]) -> list[str]:
    """The last part of each key, or all of it where two end alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _hours(device_hours: float | None) -> str:
    return "unknown" if device_hours is None else format_duration(3600 * device_hours)


def _usd(usd: float | None) -> str:
    return "unknown" if usd is None else f"{usd:,.2f}" if usd < 100 else f"{usd:,.0f}"
