"""A study before it starts: the remaining work of each trial and of all together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scaling.planner.cost.counts import count
from scaling.planner.run_plan import RunPlan
from scaling.screen import Column, FittedTable
from scaling.studies.labels import common_name, short_names, shown, shown_keys, varied_columns
from scaling.studies.trials import Standing, Study, Trial
from scaling.units import counted, format_count, format_duration, format_flops


@dataclass(frozen=True)
class Remaining:
    """The remaining work of one trial or of several; None: unknown."""

    tokens: float
    flops: float
    device_hours: float | None
    usd: float | None


def remaining(trial: Trial, standing: Standing, flops_per_device_s: float | None) -> Remaining:
    """Estimate by the plan's own prediction or, for devices of unknown peak, by a measured rate."""
    plan = trial.plan
    if plan is None or standing.state in ("finished", "pruned", "given up", "damaged"):
        return Remaining(0.0, 0.0, 0.0, 0.0)
    begun = max(standing.step, trial.branch.step if trial.branch is not None else 0)
    share = max(0.0, 1 - begun / plan.n_steps)
    hours = None if plan.hours is None else plan.hours * plan.layout.world_size
    # a CPU has no known peak, and so no predicted time
    if hours is None and flops_per_device_s:
        hours = plan.flops / flops_per_device_s / 3600
    return Remaining(
        share * plan.n_tokens,
        share * plan.flops,
        None if hours is None else share * hours,
        None if plan.usd is None else share * plan.usd,
    )


def measured_rate(study: Study, standings: Mapping[str, Standing]) -> float | None:
    """FLOP/s per device over the study's finished trials; None until one has finished."""
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
            # the trunk has computed the part before the branch, in its own time
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
    """One row per trial: its varied keys, size, devices and state. The totals are of the remaining
    work."""
    rate = measured_rate(study, standings)
    rests = [remaining(trial, standings[trial.identity], rate) for trial in study.trials]
    keys, names = shown_keys(study.trials), short_names([trial.name for trial in study.trials])
    known = any(rest.device_hours is not None or rest.usd is not None for rest in rests)
    # otherwise the note below the table reports it once
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
    n_trials = counted(len(study.trials), "trial")
    title = f"Study {study.name}: {n_trials}{common_name(names, study.trials)}"
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


def _hours(device_hours: float | None) -> str:
    return "unknown" if device_hours is None else format_duration(3600 * device_hours)


def _usd(usd: float | None) -> str:
    return "unknown" if usd is None else f"{usd:,.2f}" if usd < 100 else f"{usd:,.0f}"
