"""A plan as a table in a notebook."""

from __future__ import annotations

from collections.abc import Iterator

from scaling import markup
from scaling.planner.run_plan import RunPlan
from scaling.units import counted, format_bytes, format_count, format_duration, format_flops


def plan_html(plan: RunPlan) -> str:
    """The plan's numbers; a prediction that cannot be made is "unknown"."""
    return markup.table((), _rows(plan), "Plan")


def _rows(plan: RunPlan) -> Iterator[tuple[str, str]]:
    layout, time = plan.layout, plan.time
    degrees = f"dp={layout.dp} tp={layout.tp} pp={layout.pp} cp={layout.cp}"
    devices = counted(layout.world_size, "device")
    engine = f"{layout.engine} engine, ZeRO stage {layout.zero_stage}"
    yield "layout", f"{degrees} on {devices}, {engine}"
    yield "micro-batch", f"{layout.micro_batch_size} x {layout.grad_accum_steps} a rank"
    yield "parameters", format_count(plan.counts.n_params)
    yield "tokens", f"{format_count(plan.n_tokens)} in {plan.n_steps} steps"
    yield "compute", format_flops(plan.flops)
    memory, device = format_bytes(plan.memory.total), format_bytes(plan.device_memory_bytes)
    yield "memory", f"estimated {memory} of {device} a device"
    if time is None or plan.hours is None:
        yield "time", "unknown"
    else:
        speed = f"{format_count(time.tokens_per_s)} tokens/s, MFU {time.mfu:.2g}"
        yield "time", f"estimated {format_duration(plan.hours * 3600)}, {speed}"
    yield "cost", "unknown" if plan.usd is None else f"estimated {plan.usd:,.0f} USD"
    yield "energy", "unknown" if plan.kwh is None else f"estimated {plan.kwh:,.0f} kWh"
