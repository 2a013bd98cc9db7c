"""The plan, for the person who waits: one table of plain words, units and the word "estimated"
where it applies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.config.run_config import DataConfig, RunConfig
from scaling.planner.choose import parts
from scaling.planner.cost.setting import usd_per_device_hour
from scaling.planner.machines.detect import n_devices
from scaling.planner.run_plan import RunPlan
from scaling.planner.stages import stage_bounds
from scaling.units import counted, format_bytes, format_count, format_duration, format_flops

if TYPE_CHECKING:
    from rich.table import Table

Row = tuple[str, str]


def plan_table(config: RunConfig, plan: RunPlan, run_dir: str | Path) -> Table:
    """The rich table that `python -m scaling.run` prints first; wraps at any width, plain where
    there is no terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = f"Plan of {config.name}"
    table = Table(
        box=box.HORIZONTALS,
        show_header=False,
        title=title,
        title_justify="left",
        title_style="bold",
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for section in (
        _model(config, plan),
        _training(config, plan),
        _execution(config, plan),
        _prediction(config, plan),
    ):
        for name, value in section:
            table.add_row(name, Text(value))
        table.add_section()
    table.add_row("run directory", Text(str(run_dir)))
    return table


def _model(config: RunConfig, plan: RunPlan) -> Iterator[Row]:
    model, counts = config.model, plan.counts
    heads = f"{counted(model.n_heads, 'head')} of {model.head_width}"
    if model.kv_heads != model.n_heads:
        heads += f" ({model.kv_heads} for keys and values)"
    yield (
        "model",
        f"{model.name}: {counted(model.n_layers, 'layer')}, d_model {model.d_model}, {heads}, "
        f"d_ff {model.ff_width}",
    )
    style = (
        f"{model.activation}, {model.norm}, {config.position.kind} positions, "
        f"{config.attention.kind} attention"
    )
    yield "", f"{style}, {'tied' if model.tie_embeddings else 'untied'} embeddings"
    without = format_count(counts.n_params_non_embedding)
    yield "parameters", f"{format_count(counts.n_params)} with embeddings, {without} without"


def _training(config: RunConfig, plan: RunPlan) -> Iterator[Row]:
    train, schedule = config.train, config.schedule
    ratio = plan.n_tokens / plan.counts.n_params
    yield "tokens", f"{format_count(plan.n_tokens)}, {ratio:.3g} per parameter"
    batch = (
        f"{counted(train.global_batch_size, 'sequence')} of {train.seq_len} = "
        f"{plan.tokens_per_step} tokens"
    )
    yield "steps", f"{plan.n_steps}, each of {batch}"
    warmup = f"warm-up {format_count(plan.warmup_tokens)} tokens"
    decay = f", decay {format_count(plan.decay_tokens)} tokens" if plan.decay_tokens else ""
    yield "learning rate", f"{config.optim.lr:g}, {schedule.kind}, {warmup}{decay}"
    yield (
        "compute",
        f"{format_flops(plan.flops)}, {format_flops(plan.counts.flops_per_token)} a token",
    )
    yield (
        "corpus",
        f"{_source(config.data)}; tokenizer {config.tokenizer.kind}, "
        f"{config.tokenizer.vocab_size} entries",
    )


def _source(data: DataConfig) -> str:
    total = sum(component.weight for component in data.components or ())
    parts = [
        f"{component.weight / total:.3g} {component.name}" for component in data.components or ()
    ]
    return " ".join(
        filter(None, [data.kind, f"of {', '.join(parts)}" if parts else None, data.path])
    )


def _execution(config: RunConfig, plan: RunPlan) -> Iterator[Row]:
    cluster, layout = config.cluster, plan.layout
    devices = n_devices(config)
    nodes = f" in {cluster.n_nodes} nodes" if cluster.n_nodes > 1 else ""
    of = f"{counted(devices, 'worker')} on" if cluster.device.kind == "cpu" else f"{devices} x"
    spot = ", preemptible" if cluster.preemptible else ""
    yield "cluster", f"{cluster.name}: {of} {cluster.device.name}{nodes}{spot}"
    zero = f", ZeRO stage {layout.zero_stage}" if layout.engine == "deepspeed" else ""
    cp = f" cp={layout.cp} ({layout.cp_attention})" if layout.cp > 1 else ""
    yield (
        "layout",
        f"dp={layout.dp} tp={layout.tp} pp={layout.pp}{cp}, {layout.engine} engine{zero}, "
        f"{config.dtype}",
    )
    if layout.offload != "none":
        yield "", f"offload={layout.offload}: held by the host's memory"
    if layout.tp > 1:
        yield from _vocabulary(config.vocab_size, layout.tp)
    if layout.pp > 1:
        blocks = ", ".join(
            f"{start}-{end - 1}" for start, end in stage_bounds(config, layout.n_stages)
        )
        yield (
            "",
            f"stages of blocks {blocks}; {layout.bubble_share:.0%} of a step idle in the "
            f"{layout.pp_schedule} bubble",
        )
    if layout.world_size < devices:
        batch, idle = config.train.global_batch_size, devices - layout.world_size
        yield (
            "",
            f"{idle} of {devices} devices {'stays' if idle == 1 else 'stay'} idle: "
            f"dp={layout.dp} "
            f"of batch {batch}",
        )
    recompute = {
        "none": "no activation checkpointing",
        "selective": "selective activation checkpointing",
        "full": "full activation checkpointing",
    }[layout.activation_checkpointing]
    yield (
        "micro-batch",
        f"{layout.micro_batch_size} x {layout.grad_accum_steps} a rank, {recompute}",
    )


def _vocabulary(n_entries: int, tp: int) -> Iterator[Row]:
    """Where the vocabulary does not divide, the parts differ by a row."""
    if n_entries % tp:
        yield (
            "",
            f"vocabulary {n_entries} over tp={tp}: parts of {n_entries // tp + 1} and "
            f"{n_entries // tp}",
        )


def _prediction(config: RunConfig, plan: RunPlan) -> Iterator[Row]:
    yield (
        "memory",
        f"estimated {format_bytes(plan.memory.total)} of "
        f"{format_bytes(plan.device_memory_bytes)} "
        "a device:",
    )
    yield "", parts(plan.memory)
    price, unknown = usd_per_device_hour(config), []
    if plan.time is None or plan.hours is None:
        unknown.append("time")
    else:
        yield (
            "time",
            f"estimated {format_duration(plan.hours * 3600)}, "
            f"{_seconds(plan.time.step_time_s)} a "
            "step",
        )
        yield "", f"{format_count(plan.time.tokens_per_s)} tokens/s, MFU {plan.time.mfu:.2g}"
        if plan.time_scale != 1:
            yield "", f"times x {plan.time_scale:.3g}, as calibrated"
    if plan.usd is not None:
        yield "cost", f"estimated {_amount(plan.usd)} USD at {price:g} USD a device-hour"
    else:
        unknown.append("cost")
    if plan.kwh is not None:
        yield "energy", f"estimated {_amount(plan.kwh)} kWh at the devices' power limit"
    else:
        unknown.append("energy")
    if unknown:
        yield "unknown", _unknown(unknown, priced=price is not None)


def _unknown(names: Sequence[str], *, priced: bool) -> str:
    """What no estimate can be given of, and why, in one line."""
    reasons = []
    if "time" in names:
        reasons.append("the peak FLOP/s or link speed of these devices is not known")
    if "cost" in names and not priced:
        reasons.append("cluster.usd_per_device_hour is not set")
    what = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{what}: {'; '.join(reasons)}" if reasons else what


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 1 else format_duration(value)
