"""Check or choose a layout: the rules first, then the cheapest that fits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from scaling.config.run_config import RunConfig
from scaling.errors import PlanError
from scaling.planner.cost.memory_model import MemoryEstimate
from scaling.planner.cost.setting import Setting, setting_of
from scaling.planner.explain import short, what_would_fit
from scaling.planner.layout import Layout
from scaling.planner.prediction import LIKELY, Prediction
from scaling.planner.ranking import Ranking, rank, search
from scaling.planner.refusals import check_fixed, illegal, where
from scaling.planner.rules import not_run_here
from scaling.planner.space import families
from scaling.units import format_bytes


def ranking_of(
    config: RunConfig, setting: Setting | None = None, *, keep_refused: bool = False
) -> Ranking:
    """The layouts that leave what `config.layout` fixes as it is, ranked. `setting`: another one
    than the configuration's.

    Raises PlanError where something is fixed that no legal layout has.
    """
    check_fixed(config)
    setting = setting or setting_of(config)
    batch = config.train.global_batch_size
    candidates = families(setting, batch, config.layout, everything=keep_refused)
    ranking = rank(setting, batch, candidates, keep_refused=keep_refused)
    if not ranking.n_legal:
        raise illegal(config, setting)
    return ranking


def choose_layout(config: RunConfig) -> Layout:
    """The first layout that `python -m scaling.plan` ranks, of those that the engines run. Raises
    PlanError when a rule is broken or nothing fits.

    dp is the largest number that divides the global batch and for which there are devices. Where
    times are not known, data parallelism alone if anything fits so, without checkpointing, the
    lowest ZeRO stage, and with it the largest micro-batch.
    """
    ranking = ranking_of(config)
    if not ranking.fitting:
        raise _nothing_fits(config, ranking.too_large[0])
    # A legal layout can be one that no engine here runs.
    for found in ranking.fitting:
        if not_run_here(found.layout) is None:
            return found.layout
    raise PlanError(
        not_run_here(ranking.fitting[0].layout) or "",
        where(config, "layout"),
        "Use layout=auto.",
    )


def _nothing_fits(config: RunConfig, least: Prediction) -> PlanError:
    """The error that says how far off the smallest layout is, and what would help."""
    device, smallest, memory = config.cluster.device, least.layout, least.memory
    what = (
        f"{config.model.name} does not fit: the smallest layout needs "
        f"{format_bytes(least.need_bytes)} on each device ({short(smallest)}: {parts(memory)}), "
        f"and {format_bytes(least.usable_bytes)} of {device.name} can be used: estimated chance "
        f"of fitting {least.p_fits:.0%}; at least {LIKELY:.0%} is required"
    )
    return PlanError(what, where(config, "layout"), " ".join(_remedies(config, least)))


def _remedies(config: RunConfig, least: Prediction) -> Iterator[str]:
    setting, smallest, batch = setting_of(config), least.layout, config.train.global_batch_size
    same_degrees = {name: getattr(smallest, name) for name in ("dp", "tp", "pp", "cp")}
    opened = {
        "engine": "deepspeed",
        "zero_stage": None,
        "micro_batch_size": None,
        "activation_checkpointing": None,
    }
    relaxed = config.layout.model_copy(update=same_degrees | opened)
    if fitting := search(setting, batch, relaxed).fitting:
        yield f"With the same degrees this fits: {short(fitting[0].layout)}."
    else:
        yield from what_would_fit(setting, batch)
    memory = least.memory
    # Only these grow with the length; the rest follows the number of parameters.
    if memory.activations + memory.logits > memory.total / 2:
        yield f"A train.seq_len shorter than {config.train.seq_len} helps too."
    else:
        yield "A smaller model helps too."


def parts(memory: MemoryEstimate) -> str:
    """weights 1 GB, gradients 1 GB, ..."""
    held = ((field.name, getattr(memory, field.name)) for field in fields(memory))
    return ", ".join(f"{name} {format_bytes(n_bytes)}" for name, n_bytes in held if n_bytes)
