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
from scaling.planner.machines.detect import n_devices
from scaling.planner.manual import candidates, grids, some, where
from scaling.planner.prediction import LIKELY, Prediction
from scaling.planner.rules import broken_rule, not_run_here
from scaling.planner.space import Ranking, every_family, rank
from scaling.units import format_bytes


def ranking_of(
    config: RunConfig, setting: Setting | None = None, *, keep_refused: bool = False
) -> Ranking:
    """The layouts of `config.layout`, ranked: all there are, or those that leave what it fixes as
    it is. `setting`: another one than the configuration's.

    Raises PlanError where something is fixed that no legal layout has.
    """
    setting, batch, layout = (
        setting or setting_of(config),
        config.train.global_batch_size,
        config.layout,
    )
    if layout.kind == "auto" and layout.engine == "auto":
        return rank(
            setting, batch, every_family(setting, batch, keep_refused), keep_refused=keep_refused
        )
    families = ((one,) for grid in grids(config) for one in candidates(config, grid))
    ranking = rank(setting, batch, families, keep_refused=True)
    if not ranking.n_legal:
        # Larger micro-batches break rules of accumulation besides.
        first = min(ranking.refused, key=lambda found: found[0].micro_batch_size, default=None)
        raise PlanError(
            first[1] if first else "no layout is legal",
            where(config, "layout"),
            _legal_degrees(config),
        )
    return ranking


def choose_layout(config: RunConfig) -> Layout:
    """The first layout that `python -m scaling.plan` ranks, of those that the engines run. Raises
    PlanError when a rule is broken or nothing fits.

    dp is the largest number that divides the global batch and for which there are devices. Where
    times are not known, data parallelism alone if anything fits so, without checkpointing, the
    lowest ZeRO stage, and with it the largest micro-batch.
    """
    ranking = ranking_of(config)
    chosen = next(
        (found.layout for found in ranking.fitting if not_run_here(found.layout) is None), None
    )
    if chosen is not None:
        return chosen
    if ranking.fitting:
        raise PlanError(
            not_run_here(ranking.fitting[0].layout) or "",
            where(config, "layout"),
            "Use layout=auto.",
        )
    if ranking.smallest is None:
        raise PlanError(
            "no layout is legal",
            where(config, "layout"),
            "python -m scaling.plan ... --refused lists the rules.",
        )
    raise _nothing_fits(config, ranking.smallest)


def _legal_degrees(config: RunConfig) -> str:
    """What of `config.layout` would be legal with the rest: without a choice that is set, or with
    other tp, pp or cp, the first of these that is set."""
    for name in ("pp_schedule", "cp_attention"):
        if getattr(config.layout, name) is not None and _is_legal(config, name, None):
            return f"Leave layout.{name} null."
    for name in ("tp", "pp", "cp"):
        if (getattr(config.layout, name) or 1) == 1:
            continue
        legal = [
            value for value in range(1, n_devices(config) + 1) if _is_legal(config, name, value)
        ]
        if legal:
            return f"Use {name} from {some(legal)}."
    return "Leave null what need not be fixed, or use layout=auto."


def _is_legal(config: RunConfig, name: str, value: int | None) -> bool:
    """Whether a layout is legal with another value of one key."""
    changed = config.model_copy(update={"layout": config.layout.model_copy(update={name: value})})
    setting, batch = setting_of(config), config.train.global_batch_size
    try:
        layouts = [layout for grid in grids(changed) for layout in candidates(changed, grid)]
    except PlanError:
        return False
    return any(
        broken_rule(setting.work, setting.machine, layout, batch) is None for layout in layouts
    )


def _nothing_fits(config: RunConfig, least: Prediction) -> PlanError:
    """The error that says how far off the smallest layout is, and what would help."""
    device, smallest, memory = config.cluster.device, least.layout, least.memory
    what = (
        f"{config.model.name} does not fit: the smallest layout needs {format_bytes(least.need_bytes)} on each device "
        f"({short(smallest)}: {parts(memory)}), and {format_bytes(least.usable_bytes)} of {device.name} can be used: it would "
        f"run with a probability of {least.p_fits:.0%}, and {LIKELY:.0%} are asked for"
    )
    return PlanError(what, where(config, "layout"), " ".join(_remedies(config, least)))


def _remedies(config: RunConfig, least: Prediction) -> Iterator[str]:
    setting, smallest, batch = setting_of(config), least.layout, config.train.global_batch_size
    open_layout = {
        "zero_stage": None,
        "micro_batch_size": None,
        "activation_checkpointing": None,
        "engine": "deepspeed",
    }
    relaxed = config.model_copy(update={"layout": config.layout.model_copy(update=open_layout)})
    same = (
        (one,) for one in candidates(relaxed, (smallest.dp, smallest.tp, smallest.pp, smallest.cp))
    )
    if fitting := rank(setting, batch, same).fitting:
        yield f"With the same degrees this fits: {short(fitting[0].layout)}."
    else:
        yield from what_would_fit(setting, batch)
    memory = least.memory
    if memory.activations + memory.logits > memory.total / 2:
        yield f"A train.seq_len shorter than {config.train.seq_len} helps too."
    else:
        yield "A smaller model helps too."


def parts(memory: MemoryEstimate) -> str:
    """weights 1 GB, gradients 1 GB, ..."""
    held = ((field.name, getattr(memory, field.name)) for field in fields(memory))
    return ", ".join(f"{name} {format_bytes(n_bytes)}" for name, n_bytes in held if n_bytes)
