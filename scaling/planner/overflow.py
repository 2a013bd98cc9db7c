"""The error for a device that ran out of memory in spite of the plan: which part is the largest,
and what would need less."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

from scaling.config.run_config import RunConfig
from scaling.errors import PlanError
from scaling.planner.choose import parts
from scaling.planner.cost.setting import setting_of
from scaling.planner.layout import Layout
from scaling.planner.rules import broken_rule, not_run_here
from scaling.planner.space import CHECKPOINTINGS, divisors
from scaling.units import format_bytes

CLEARLY_LESS = 0.9
"""A remedy's predicted need over the present one's, at most: assumption, about the median error of
the memory model."""


def explain_overflow(config: RunConfig, layout: Layout, message: str) -> PlanError:
    """The error for a run of `layout` that overflowed a device. message: what the device's
    library reported.

    Names the largest part of the planned memory, and as overrides for the command line the first of
    these that is legal and predicted to need clearly less: a smaller micro-batch, recomputation, a
    higher ZeRO stage, offload, more tensor parallel ranks, more stages.
    """
    setting = setting_of(config)
    now = setting.predict(layout)
    sizes = {field.name: getattr(now.memory, field.name) for field in fields(now.memory)}
    largest = max(sizes, key=lambda name: sizes[name])
    what = (
        f"a device ran out of memory: planned were {format_bytes(now.memory.total)} "
        f"({parts(now.memory)}), of which "
        f"{largest} are the most. The device reported: {' '.join(message.split())[:300]}"
    )
    for remedy in _remedies(layout):
        rule = broken_rule(
            setting.work, setting.machine, remedy, config.train.global_batch_size
        ) or not_run_here(remedy)
        if (
            rule is None
            and (found := setting.predict(remedy)).need_bytes <= CLEARLY_LESS * now.need_bytes
        ):
            less = 1 - found.need_bytes / now.need_bytes
            fix = (
                f"{overrides(remedy)} is predicted to need {less:.0%} less; the same run "
                "continues from its last checkpoint."
            )
            return PlanError(what, f"model={config.model.name}, cluster={config.cluster.name}", fix)
    fix = (
        "No layout of these devices is predicted to need clearly less; use more or larger ones, "
        "or a shorter train.seq_len."
    )
    return PlanError(what, f"model={config.model.name}, cluster={config.cluster.name}", fix)


def overrides(layout: Layout) -> str:
    """A layout as words for the command line."""
    words = [
        f"layout.{name}={getattr(layout, name)}"
        for name in ("dp", "tp", "pp", "cp", "zero_stage", "micro_batch_size")
    ]
    words.append(f"layout.activation_checkpointing={layout.activation_checkpointing}")
    words += (
        [f"layout.cp_attention={layout.cp_attention}"] if layout.cp_attention != "ulysses" else []
    )
    words += [f"layout.pp_schedule={layout.pp_schedule}"] if layout.is_dualpipev else []
    words += [f"layout.offload={layout.offload}"] if layout.offload != "none" else []
    return "layout=manual " + " ".join(words)


def _remedies(layout: Layout) -> Iterator[Layout]:
    """Changes that leave the number of devices as it is, the cheapest in time first."""
    rows = layout.micro_batch_size * layout.grad_accum_steps

    def cut(micro: int, **changes: object) -> Layout:
        changed = replace(layout, **changes)  # type: ignore[arg-type]
        share = rows * layout.dp // changed.dp
        return replace(changed, micro_batch_size=micro, grad_accum_steps=share // micro)

    for micro in reversed([m for m in divisors(rows) if m < layout.micro_batch_size]):
        yield cut(micro)
    for checkpointing in CHECKPOINTINGS[1:]:
        if layout.activation_checkpointing != checkpointing:
            yield replace(layout, activation_checkpointing=checkpointing)
    for stage in range(layout.zero_stage + 1, 4):
        yield cut(1, zero_stage=stage, activation_checkpointing="full", engine="deepspeed")
    if layout.offload == "none":
        yield cut(1, offload="optimizer", activation_checkpointing="full", engine="deepspeed")
    for axis in ("tp", "pp"):
        if layout.dp % 2 == 0:
            doubled = {
                axis: 2 * getattr(layout, axis),
                "dp": layout.dp // 2,
                "zero_stage": 1,
                "engine": "deepspeed",
            }
            yield cut(1, activation_checkpointing="full", **doubled)
