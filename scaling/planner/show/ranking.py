"""The ranked layouts on the screen: a line each, the first one in full, and what was refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scaling.screen import Column, FittedTable
from scaling.units import counted, format_bytes, format_count, format_duration

TIME_PARTS = ("compute_s", "tensor_parallel_s", "data_parallel_s", "bubble_s", "optimizer_s")
RECOMPUTE = {"none": "none", "selective": "select", "full": "full"}
ABBREVIATIONS = (
    "tp with s: its ranks share norms and residuals too (sequence parallel); r: a ring; offload "
    "o, p: of optimizer, parameters"
)
_COLUMNS = (
    Column("dp"),
    Column("tp"),
    Column("pp"),
    Column("cp", 2),
    Column("schedule", 3),
    Column("zero", 2),
    Column("micro", 1),
    Column("accum", 5),
    Column("recompute", 2),
    Column("offload", 3),
    Column("need/dev", 2),
    Column("verdict", 1, left=True),
    Column("tok/s/dev", 6),
    Column("MFU", 1),
    Column("MFU, 80 %", 8),
    Column("hours"),
    Column("runs here", 5),
)
SHOWN_RULES, SHOWN_TOO_LARGE = 12, 5


def lines(answer: dict[str, Any], top: int) -> Iterator[str | FittedTable]:
    """What `python -m scaling.plan` prints. Estimates throughout; intervals hold 80 % of errors on
    unseen sources."""
    yield from _head(answer)
    yield ""
    if answer["layouts"]:
        yield _table(answer["layouts"][:top])
        more = answer["n_fitting"] - top
        if more > 0:
            yield (
                f"and {more} more that fit, of {answer['n_legal']} legal ones tried (plan.top=N, "
                "--json)"
            )
        yield ABBREVIATIONS
        yield ""
        yield from _first(answer)
        yield ""
        yield from (answer[key] for key in ("why", "help") if answer[key])
    else:
        yield "Nothing fits."
        yield from answer["would_fit"]
    yield from _left_out(answer)


def _head(answer: dict[str, Any]) -> Iterator[str]:
    nodes = counted(answer["n_nodes"], "node")
    spot = ", preemptible" if answer["preemptible"] else ""
    yield (
        f"{answer['model']} on {answer['cluster']}: {answer['n_devices']} x {answer['device']} in "
        f"{nodes}{spot}"
    )
    yield (
        f"{format_count(answer['n_params'])} parameters; "
        f"{format_count(answer['flops_per_token'])}FLOP a token: "
        f"{answer['flops_definition']}"
    )
    yield (
        f"{format_count(answer['n_tokens'])} tokens, "
        f"{counted(answer['global_batch_size'], 'sequence')} of "
        f"{answer['seq_len']} a step, "
        f"{answer['dtype']}"
    )
    if answer["time_scale"] != 1:
        yield f"times x {answer['time_scale']:.3g}, as calibrated"
    yield from answer["notes"]


def _table(layouts: list[dict[str, Any]]) -> FittedTable:
    table = FittedTable(_COLUMNS)
    for layout in layouts:
        shared, ring = (
            layout["sequence_parallel"],
            layout["cp"] > 1 and layout["cp_attention"] == "ring",
        )
        low, high = layout["mfu_interval"] if layout["mfu"] is not None else (None, None)
        table.add(
            str(layout["dp"]),
            f"{layout['tp']}{'s' if shared else ''}",
            str(layout["pp"]),
            f"{layout['cp']}{'r' if ring else ''}",
            layout["pp_schedule"] if layout["pp"] > 1 else "-",
            str(layout["zero_stage"]),
            str(layout["micro_batch_size"]),
            str(layout["grad_accum_steps"]),
            RECOMPUTE[layout["activation_checkpointing"]],
            "-" if layout["offload"] == "none" else layout["offload"][0],
            format_bytes(layout["memory_bytes"]["need"]),
            layout["verdict"],
            "unknown" if layout["mfu"] is None else f"{layout['tokens_per_s_per_device']:.0f}",
            "-" if layout["mfu"] is None else f"{layout['mfu']:.3f}",
            "-" if layout["mfu"] is None else f"{low:.2f} to {high:.2f}",
            "-" if layout["mfu"] is None else f"{layout['cost']['hours']:.1f}",
            "yes" if layout["runs_here"] else "no",
        )
    return table


def _first(answer: dict[str, Any]) -> Iterator[str]:
    layout = answer["layouts"][0]
    memory = layout["memory_bytes"]
    held = ", ".join(
        f"{name} {format_bytes(n_bytes)}"
        for name, n_bytes in memory.items()
        if n_bytes and name not in ("total", "need")
    )
    low, high = layout["memory_interval_bytes"]
    yield (
        f"memory a device: {format_bytes(memory['total'])} ({format_bytes(low)} to "
        f"{format_bytes(high)}): {held}"
    )
    yield (
        f"  it runs with {format_bytes(memory['need'])}; the probability that it fits is "
        f"{layout['p_fits']:.0%}"
    )
    if layout["host_bytes_per_node"]:
        yield f"  and {format_bytes(layout['host_bytes_per_node'])} of a node's own memory"
    if layout["mfu"] is None:
        yield "time: unknown, since the devices' peak FLOP/s or a link is not known"
        return
    low, high = layout["step_time_interval_s"]
    slow, fast = layout["tokens_per_s_per_device_interval"]
    parts = ", ".join(
        f"{name.removesuffix('_s').replace('_', ' ')} {layout['time_s'][name]:.3g} s"
        for name in TIME_PARTS
        if layout["time_s"][name]
    )
    yield f"a step: {layout['step_time_s']:.3g} s ({low:.3g} to {high:.3g}): {parts}"
    yield f"  {layout['tokens_per_s_per_device']:.0f} tokens/s a device ({slow:.0f} to {fast:.0f})"
    yield from _cost(answer, layout["cost"], layout["hours_interval"])
    if not layout["runs_here"]:
        yield f"python -m scaling.run does not run this layout yet: {layout['not_run_because']}"


def _cost(answer: dict[str, Any], cost: dict[str, Any], hours: list[float]) -> Iterator[str]:
    low, high = (format_duration(3600 * end) for end in hours)
    yield (
        f"the run: {format_duration(3600 * cost['hours'])} ({low} to {high}), "
        f"{cost['device_hours']:,.0f} device-hours"
    )
    usd = "cost unknown: set cluster.usd_per_device_hour"
    if cost["usd"] is not None:
        usd = f"{cost['usd']:,.0f} USD at {answer['usd_per_device_hour']:g} a device-hour"
    energy = (
        "energy unknown"
        if cost["kwh"] is None
        else f"{cost['kwh']:,.0f} kWh at the power limit, {cost['kg_co2e']:,.0f} kg CO2e"
    )
    yield f"  {usd}; {energy}"
    kind = "failure or preemption" if answer["preemptible"] else "failure"
    yield (
        f"with failures: one {kind} in {format_duration(3600 * cost['hours_between_failures'])}, "
        f"{format_duration(cost['restart_s'])} to restart; a checkpoint stops training for "
        f"{format_duration(cost['stall_s'])} "
        f"and is written {format_duration(cost['write_s'])} later:"
    )
    paid = "" if cost["expected_usd"] is None else f", {cost['expected_usd']:,.0f} USD"
    yield (
        f"  best is a checkpoint every {format_duration(cost['checkpoint_every_s'])}; goodput "
        f"{cost['goodput']:.1%}, so "
        f"{format_duration(3600 * cost['expected_hours'])}{paid} expected"
    )


def _left_out(answer: dict[str, Any]) -> Iterator[str]:
    refused = answer.get("refused", [])
    if refused:
        yield "\nRefused: layouts, the first rule that each breaks, and one of them.\n"
    for entry in refused[:SHOWN_RULES]:
        yield f"{entry['n_layouts']:>6}  {entry['rule']}\n        {entry['such_as'][0]}"
    if len(refused) > SHOWN_RULES:
        others = sum(entry["n_layouts"] for entry in refused[SHOWN_RULES:])
        yield f"{others:>6}  by {len(refused) - SHOWN_RULES} more rules (--json)"
    too_large = answer.get("too_large", [])
    if too_large:
        usable = format_bytes(too_large[0]["usable_bytes"])
        yield (
            f"\n{len(too_large)} legal kinds do not fit; those that need least, where {usable} "
            "can be used:\n"
        )
    for entry in too_large[:SHOWN_TOO_LARGE]:
        yield (
            f"{format_bytes(entry['need_bytes']):>8}  fits with a probability of "
            f"{entry['p_fits']:.0%}: {entry['layout']}"
        )
