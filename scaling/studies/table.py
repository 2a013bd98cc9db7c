"""A study before it starts: its trials, what each will take, and all of them together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scaling.planner.cost.counts import count
from scaling.planner.run_plan import RunPlan
from scaling.screen import Column, FittedTable
from scaling.studies.trials import Standing, Study, Trial
from scaling.units import counted, format_count, format_duration, format_flops

_SHAPE = (
    "model.n_layers",
    "model.d_model",
    "model.n_heads",
    "model.n_kv_heads",
    "model.d_head",
    "model.d_ff",
)
_TOLD = ("train.n_tokens", "train.parent")
"""What the column of tokens says already."""


@dataclass(frozen=True)
class Remaining:
    """What is still to be done of a trial, or of several. None is unknown."""

    tokens: float
    flops: float
    device_hours: float | None
    usd: float | None


def remaining(trial: Trial, standing: Standing, flops_per_device_s: float | None) -> Remaining:
    """By the plan's own prediction, or, where the devices' peak is not known, at a measured
    rate."""
    plan = trial.plan
    if plan is None or standing.state in ("finished", "pruned", "given up", "damaged"):
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
        if (
            standings[trial.identity].state == "finished"
            and (summary := trial.run_dir.read_summary()) is not None
        ):
            begun = (
                trial.branch.step / max(1, summary.get("steps", 1))
                if trial.branch is not None
                else 0.0
            )
            flops += (1 - begun) * summary.get("flops", 0.0)
            device_s += summary.get("device_s", 0.0)
    return flops / device_s if device_s > 0 else None


def total(parts: Sequence[Remaining]) -> Remaining:
    def added(name: str) -> float | None:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else sum(values)

    return Remaining(
        sum(part.tokens for part in parts),
        sum(part.flops for part in parts),
        added("device_hours"),
        added("usd"),
    )


def study_table(study: Study, standings: Mapping[str, Standing]) -> FittedTable:
    """One row a trial, with what it varies, its size, its devices and how it stands; totals are of
    what is still to be done."""
    rate = measured_rate(study, standings)
    rests = [remaining(trial, standings[trial.identity], rate) for trial in study.trials]
    keys, names = shown_keys(study.trials), short_names([trial.name for trial in study.trials])
    known = any(rest.device_hours is not None or rest.usd is not None for rest in rests)
    # else the note says so, once
    costs = (Column("device time", 3), Column("USD", 6)) if known else ()
    columns = (
        *varied_columns(keys),
        Column("trial", wraps=True),
        Column("params", 2),
        Column("tokens", 2),
        Column("compute", 4),
        Column("devices", 5),
        *costs,
        Column("state", left=True),
    )
    title = f"Study {study.name}: {counted(len(study.trials), 'trial')}{common_name(names, study.trials)}"
    table = FittedTable(columns, title, note=_still_to_do(total(rests)))
    for trial, rest in zip(study.trials, rests, strict=True):
        table.add(
            *_row(
                trial, names[trial.name], standings[trial.identity], keys, rest if known else None
            )
        )
    return table


def _still_to_do(whole: Remaining) -> str:
    work = f"{format_count(whole.tokens)} tokens, {format_flops(whole.flops)}"
    if whole.device_hours is None and whole.usd is None:
        return f"Still to do: {work}; device time and cost unknown."
    usd = "cost unknown" if whole.usd is None else f"{_usd(whole.usd)} USD"
    return f"Still to do: {work}, device time {_hours(whole.device_hours)}, {usd}."


def _row(
    trial: Trial, name: str, standing: Standing, keys: Sequence[str], rest: Remaining | None
) -> Iterator[str]:
    yield from (shown(trial.varied[key]) for key in keys)
    yield name
    yield format_count(count(trial.config).n_params)
    yield format_count(trial.n_tokens) + (
        f" from {format_count(_branch_tokens(trial))}" if trial.branch else ""
    )
    yield format_flops(trial.flops)
    if trial.plan is None:
        yield from ("-",) if rest is None else ("-", "-", "-")
        yield "refused"
        return
    yield str(trial.plan.layout.world_size)
    if rest is not None:
        yield _hours(rest.device_hours)
        yield _usd(rest.usd)
    yield _state(standing, trial.plan)


def _branch_tokens(trial: Trial) -> int:
    assert trial.branch is not None
    return trial.branch.step * trial.config.train.global_batch_size * trial.config.train.seq_len


def _state(standing: Standing, plan: RunPlan) -> str:
    text: str = standing.state
    if standing.state in ("begun", "failed", "stopped", "pruned") and standing.step:
        text += f", from step {standing.step}/{plan.n_steps}"
    return text + (f", {counted(standing.failures, 'failure')}" if standing.failures else "")


def shown_keys(trials: Sequence[Trial]) -> list[str]:
    """The varied keys that get a column: of the shape's, depth and width, and what these do not
    fix."""
    varied = [key for key in trials[0].varied if key not in _TOLD] if trials else []
    keys = [key for key in varied if key not in _SHAPE]
    keys += [key for key in _SHAPE[:2] if key in varied]
    for key in _SHAPE[2:]:
        if key in varied and not _fixed(key, keys, trials):
            keys.append(key)
    return keys


def _fixed(key: str, by: Sequence[str], trials: Sequence[Trial]) -> bool:
    """Whether trials that agree in all of `by` agree in `key`."""
    values: dict[str, set[str]] = {}
    for trial in trials:
        values.setdefault(repr([trial.varied[other] for other in by]), set()).add(
            repr(trial.varied[key])
        )
    return all(len(found) == 1 for found in values.values())


def varied_columns(keys: Sequence[str]) -> list[Column]:
    return [Column(heading, 1 if number else 0) for number, heading in enumerate(headings(keys))]


def headings(keys: Sequence[str]) -> list[str]:
    """The last part of each key, or all of it where two end alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each run's name without the words that all begin with; its end is the hash of its
    configuration."""
    words = zip(*(name.split("-")[:-1] for name in names), strict=False)
    shared = list(itertools.takewhile(lambda same: len(set(same)) == 1, words))
    return {name: "-".join(name.split("-")[len(shared) :]) for name in names}


def common_name(names: Mapping[str, str], trials: Sequence[Trial]) -> str:
    """The beginning that `short_names` has taken away, for the title."""
    if not trials or names[trials[0].name] == trials[0].name:
        return ""
    first = trials[0].name
    return f", each {first.removesuffix(names[first])}TRIAL"


def labels(trials: Sequence[Trial]) -> dict[str, str]:
    """What a person calls each trial: what it varies, and its name."""
    keys, names = shown_keys(trials), short_names([trial.name for trial in trials])
    found = {}
    for trial in trials:
        values = zip(keys, (trial.varied[key] for key in keys), strict=True)
        found[trial.name] = label(dict(values), names[trial.name])
    return found


def label(values: Mapping[str, Any], name: str) -> str:
    pairs = zip(headings(list(values)), values.values(), strict=True)
    text = " ".join(f"{heading}={shown(value)}" for heading, value in pairs)
    return f"{text} ({name})" if text else name


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _hours(device_hours: float | None) -> str:
    return "unknown" if device_hours is None else format_duration(3600 * device_hours)


def _usd(usd: float | None) -> str:
    return "unknown" if usd is None else f"{usd:,.2f}" if usd < 100 else f"{usd:,.0f}"
