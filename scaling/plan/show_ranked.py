"""The ranked layouts on the screen: a line each, the first one in full, and what was refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scaling.units import format_bytes, format_count, format_duration

TIME_PARTS = ("compute_s", "tensor_parallel_s", "data_parallel_s", "bubble_s", "optimizer_s")


def lines(answer: dict[str, Any], top: int) -> Iterator[str]:
    """What `python -m scaling.plan` prints. Estimates throughout; intervals hold 80 % of errors on unseen sources."""
    yield from _head(answer)
    if answer["layouts"]:
        yield ""
        yield from _table(answer["layouts"][:top])
        more = len(answer["layouts"]) - top
        if more > 0:
            yield f"and {more} more that fit, of {answer['n_legal']} legal ones tried (plan.top=N, --json)"
        yield ""
        yield from _first(answer["layouts"][0])
        yield ""
        yield from (answer[key] for key in ("why", "help") if answer[key])
    else:
        yield ""
        yield "Nothing fits."
        yield from answer["would_fit"]
    for number, entry in enumerate(answer.get("refused", [])):
        yield ("\nRefused (layouts and the first rule that each breaks):\n" if number == 0 else "") + (
            f"{entry['n_layouts']:>6}  {entry['rule']}"
        )


def _head(answer: dict[str, Any]) -> Iterator[str]:
    yield f"{answer['model']} on {answer['cluster']}: {answer['n_devices']} x {answer['device']} in {answer['n_nodes']} node(s)"
    yield (
        f"{format_count(answer['n_params'])} parameters; {format_count(answer['flops_per_token'])}FLOP a token: "
        f"{answer['flops_definition']}"
    )
    yield (
        f"{format_count(answer['n_tokens'])} tokens, {answer['global_batch_size']} sequences of {answer['seq_len']} a step, "
        f"{answer['dtype']}"
    )
    if answer["time_scale"] != 1:
        yield f"times x {answer['time_scale']:.3g}, as calibrated"


def _table(layouts: list[dict[str, Any]]) -> Iterator[str]:
    yield (
        "   dp  tp  pp  sp  schedule zero micro accum recompute  need/dev  verdict     tok/s/dev  MFU (80 %)     "
        "     hours  runs here"
    )
    for layout in layouts:
        degrees = "".join(f"{layout[name]:>4}" for name in ("tp", "pp", "sp"))
        degrees += f"{layout['pp_schedule'] if layout['pp'] > 1 else '-':>10}"
        cut = f"{layout['zero_stage']:>5}{layout['micro_batch_size']:>6}{layout['grad_accum_steps']:>6}"
        state = (
            f"{layout['activation_checkpointing']:>10}{format_bytes(layout['memory_bytes']['need']):>10}  {layout['verdict']:<10}"
        )
        yield f"{layout['dp']:>5}{degrees}{cut}{state}{_rate(layout)}  {'yes' if layout['runs_here'] else 'no'}"


def _rate(layout: dict[str, Any]) -> str:
    if layout["mfu"] is None:
        return f"{'unknown':>11}"
    low, high = layout["mfu_interval"]
    hours = layout["cost"]["hours"]
    return f"{layout['tokens_per_s_per_device']:>11.0f}  {layout['mfu']:.3f} ({low:.2f} to {high:.2f}) {hours:>9.1f}"


def _first(layout: dict[str, Any]) -> Iterator[str]:
    memory = layout["memory_bytes"]
    held = ", ".join(
        f"{name} {format_bytes(n_bytes)}" for name, n_bytes in memory.items() if n_bytes and name not in ("total", "need")
    )
    low, high = layout["memory_interval_bytes"]
    yield f"memory a device: {format_bytes(memory['total'])} ({format_bytes(low)} to {format_bytes(high)}): {held}"
    if layout["mfu"] is None:
        yield "time: unknown, since the devices' peak FLOP/s or a link is not known"
        return
    low, high = layout["step_time_interval_s"]
    parts = ", ".join(
        f"{name.removesuffix('_s').replace('_', ' ')} {layout['time_s'][name]:.3g} s"
        for name in TIME_PARTS
        if layout["time_s"][name]
    )
    yield f"a step: {layout['step_time_s']:.3g} s ({low:.3g} to {high:.3g}): {parts}"
    yield from _cost(layout["cost"], layout["hours_interval"])
    if not layout["runs_here"]:
        yield f"python -m scaling.run does not run this layout yet: {layout['not_run_because']}"


def _cost(cost: dict[str, Any], hours: list[float]) -> Iterator[str]:
    low, high = (format_duration(3600 * end) for end in hours)
    yield f"the run: {format_duration(3600 * cost['hours'])} ({low} to {high}), {cost['device_hours']:,.0f} device-hours"
    usd = "cost unknown" if cost["usd"] is None else f"{cost['usd']:,.0f} USD"
    energy = (
        "energy unknown" if cost["kwh"] is None else f"{cost['kwh']:,.0f} kWh at the power limit, {cost['kg_co2e']:,.0f} kg CO2e"
    )
    yield f"  {usd}, {energy}"
    yield (
        f"with failures: goodput {cost['goodput']:.1%}, {format_duration(3600 * cost['expected_hours'])} expected, "
        f"best with a checkpoint every {format_duration(cost['checkpoint_every_s'])}"
    )
