"""Why a layout is first, what would help it most, and what would make a model fit that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from scaling.config.cluster import Offload
from scaling.planner.cost.memory_model import host_bytes_of
from scaling.planner.cost.setting import Setting
from scaling.planner.cost.time_model import PARTS
from scaling.planner.layout import Layout
from scaling.planner.machines.rates import Machine
from scaling.planner.prediction import Prediction
from scaling.planner.ranking import Ranking, search
from scaling.planner.space import OPEN
from scaling.units import format_bytes

MOST_DEVICES = 2**16
"""Most devices to which a cluster is doubled in search of one that is large enough."""


def short(layout: Layout) -> str:
    """dp=8 tp=2 zero_stage=1 micro_batch_size=4, and what else is not usual."""
    words = [f"dp={layout.dp}"]
    words += [
        f"{name}={degree}"
        for name, degree in (("tp", layout.tp), ("pp", layout.pp), ("cp", layout.cp))
        if degree > 1
    ]
    words += [f"cp_attention={layout.cp_attention}"] if layout.cp_attention != "ulysses" else []
    words += [f"pp_schedule={layout.pp_schedule}"] if layout.is_dualpipev else []
    words += [f"zero_stage={layout.zero_stage}", f"micro_batch_size={layout.micro_batch_size}"]
    words += (
        [f"activation_checkpointing={layout.activation_checkpointing}"]
        if layout.activation_checkpointing != "none"
        else []
    )
    return " ".join(words + ([f"offload={layout.offload}"] if layout.offload != "none" else []))


def why_first(ranking: Ranking) -> str:
    """One line: the first against the next that differs in more than its micro-batch, by the part
    of time that decides."""
    first = ranking.fitting[0]
    if first.time is None:
        return (
            f"{short(first.layout)} is what the launcher prefers: speeds are unknown, as a peak "
            "or a link of the devices is."
        )
    others = (found for found in ranking.fitting[1:] if _kind(found.layout) != _kind(first.layout))
    other = next(others, None)
    if other is None or other.time is None:
        return f"{short(first.layout)} is first: no other kind of layout fits."
    slower = other.time.step_time_s / first.time.step_time_s - 1
    saved = {name: _per_device(other, name) - _per_device(first, name) for name in PARTS}
    part = max(saved, key=lambda name: saved[name])
    return (
        f"{short(first.layout)} is first: {short(other.layout)} takes {slower:.1%} longer a step, "
        f"most of it {_words(part)} ({_per_device(other, part):.3g} s against "
        f"{_per_device(first, part):.3g} s)."
    )


def what_would_help(
    setting: Setting, ranking: Ranking, batch: int, again: Callable[[Setting, int], Ranking]
) -> str | None:
    """The single change, of a few that can be bought or set, after which the best layout is
    fastest. again: ranks the same layouts in another setting or with another global batch."""
    best = _rate(ranking)
    if best is None:
        return None
    gains = [
        (rate / best - 1, name)
        for name, other, size in _changes(setting, batch)
        if (rate := _rate(again(other, size)))
    ]
    gain, name = max(gains, default=(0.0, ""))
    return (
        f"Most would help: {name}, {gain:+.1%} tokens/s."
        if gain > 0.005
        else "No single change tried would gain 0.5 %."
    )


def _changes(setting: Setting, batch: int) -> Iterator[tuple[str, Setting, int]]:
    machine = setting.machine
    yield (
        "twice the memory a device",
        replace(setting, machine=replace(machine, memory_bytes=2 * machine.memory_bytes)),
        batch,
    )
    yield "twice the global batch", setting, 2 * batch
    if machine.intra_bytes_per_s and machine.n_devices > 1:
        faster = replace(machine, intra_bytes_per_s=2 * machine.intra_bytes_per_s)
        yield "links within a node twice as fast", replace(setting, machine=faster), batch
    if machine.inter_bytes_per_s and machine.n_nodes > 1:
        faster = replace(machine, inter_bytes_per_s=2 * machine.inter_bytes_per_s)
        yield "links between nodes twice as fast", replace(setting, machine=faster), batch
    if setting.compiled is not None:
        yield "train.compile=true", replace(setting, engines=setting.compiled), batch


def what_would_fit(setting: Setting, batch: int) -> Iterator[str]:
    """Where nothing fits: offloading, or more devices, with numbers."""
    machine = setting.machine
    offloads: tuple[Offload, ...] = ("optimizer", "parameters")
    for offload in offloads:
        found = search(setting, batch, OPEN.model_copy(update={"offload": offload}))
        if found.fitting:
            first = found.fitting[0]
            host = (
                host_bytes_of(setting.work, first.layout, setting.engines["deepspeed"])
                * machine.devices_per_node
            )
            own = f"if a node has {format_bytes(host)} of its own to spare"
            yield f"With layout.offload={offload} it fits, {own}: {_needs(first)}."
            break
    else:
        yield "Offloading does not make it fit."
    larger = _doubled(machine)
    while larger.n_devices <= MOST_DEVICES:
        found = search(replace(setting, machine=larger), batch)
        if found.fitting:
            yield f"On {larger.n_devices} such devices it fits: {_needs(found.fitting[0])}."
            return
        larger = _doubled(larger)
    yield (
        f"No number of such devices up to {MOST_DEVICES} is enough: use a shorter train.seq_len, "
        "or devices with more memory."
    )


def how_far_off(ranking: Ranking, machine: Machine) -> str:
    """The smallest legal layout, where none fits."""
    smallest = ranking.too_large[0]
    return (
        f"The smallest legal layout, {short(smallest.layout)}, needs "
        f"{format_bytes(smallest.need_bytes)} on each device, and "
        f"{format_bytes(smallest.usable_bytes)} of {format_bytes(machine.memory_bytes)} can be "
        f"used: estimated chance of fitting {smallest.p_fits:.0%}."
    )


def _doubled(machine: Machine) -> Machine:
    """Twice the devices: a node is filled up to eight first."""
    return replace(
        machine,
        n_devices=2 * machine.n_devices,
        devices_per_node=max(machine.devices_per_node, min(8, 2 * machine.n_devices)),
    )


def _needs(found: Prediction) -> str:
    return f"{short(found.layout)} needs {format_bytes(found.need_bytes)}"


def _rate(ranking: Ranking) -> float | None:
    return ranking.fitting[0].tokens_per_s if ranking.fitting else None


def _kind(layout: Layout) -> Layout:
    return replace(layout, micro_batch_size=1, grad_accum_steps=1)


def _per_device(found: Prediction, part: str) -> float:
    assert found.time is not None
    return float(getattr(found.time, part))


def _words(part: str) -> str:
    return part.removesuffix("_s").replace("_", " ")
