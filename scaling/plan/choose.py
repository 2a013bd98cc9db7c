"""Check or choose a layout: the rules first, then the cheapest that fits in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import product
from math import prod
from typing import Literal, TypeVar

from scaling.config import RunConfig
from scaling.errors import PlanError
from scaling.plan.degrees import Engine, Layout
from scaling.plan.machine import n_devices
from scaling.plan.memory import estimate_memory
from scaling.plan.memory_model import MemoryEstimate
from scaling.plan.predict import LIKELY
from scaling.plan.rules import broken_rule, not_run_here
from scaling.plan.search import CHECKPOINTINGS, preference, search
from scaling.plan.setting import setting_of, workload_of
from scaling.units import format_bytes

T = TypeVar("T")
STAGES: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)
Grid = tuple[int, int, int, int]
"""dp, tp, pp, sp."""


def choose_layout(config: RunConfig) -> Layout:
    """The layout of `config.layout`, with what it leaves open chosen as `python -m scaling.plan` ranks: of what fits surely the
    fastest. Raises PlanError when a rule is broken or nothing fits.

    dp is the largest number that divides the global batch and for which there are devices. Where times are not known, data
    parallelism alone if anything fits so, without checkpointing, the lowest ZeRO stage, and with it the largest micro-batch.
    """
    setting, batch = setting_of(config), config.train.global_batch_size
    if config.layout.kind == "auto" and config.layout.engine == "auto":
        ranking = search(setting, batch, wanted=lambda layout: not_run_here(layout) is None)
        if ranking.fitting:
            return ranking.fitting[0].layout
    legal: list[Layout] = []
    broken: list[tuple[int, str]] = []
    for grid in _grids(config):
        for layout in _candidates(config, grid):
            rule = broken_rule(setting.work, setting.machine, layout, batch) or not_run_here(layout)
            if rule is not None:
                broken.append((layout.micro_batch_size, rule))
            else:
                legal.append(layout)
    if not legal:
        # Larger micro-batches break rules of accumulation besides.
        rule = min(broken, key=lambda found: found[0])[1] if broken else "no layout is legal"
        raise PlanError(rule, _where(config, "layout"), _legal_degrees(config))
    fitting = [found for layout in legal if (found := setting.predict(layout)).fits]
    if not fitting:
        raise _nothing_fits(config, legal)
    return min(fitting, key=preference).layout


def divisors(n: int) -> list[int]:
    """All divisors of n > 0, ascending."""
    low = [i for i in range(1, int(n**0.5) + 1) if n % i == 0]
    return sorted({*low, *(n // i for i in low)})


def _where(config: RunConfig, key: str) -> str:
    return f"model={config.model.name}, cluster={config.cluster.name}, {key}"


def _grids(config: RunConfig) -> Iterator[Grid]:
    """Degrees to look at, data parallelism alone first; of those that `config.layout` fixes, one value."""
    layout, devices = config.layout, n_devices(config)
    alone = layout.engine in ("reference", "ddp") or layout.zero_stage == 0
    choices = [1] if alone else [2**i for i in range(devices.bit_length())]
    given = [(name, value) for name in ("tp", "pp", "sp") if (value := getattr(layout, name)) is not None]
    needed = prod(value for _, value in given)
    if needed > devices:
        names = " x ".join(f"layout.{name}={value}" for name, value in given)
        raise PlanError(
            f"{names} needs {needed} devices, and the cluster has {devices}",
            _where(config, "layout"),
            f"Use degrees whose product is at most {devices}, or a larger cluster.",
        )
    grids = product(_one_or(layout.tp, choices), _one_or(layout.pp, choices), _one_or(layout.sp, choices))
    for tp, pp, sp in sorted(grids, key=prod):
        if tp * pp * sp <= devices and (layout.dp is None or tp * pp * sp == needed or layout.dp * tp * pp * sp <= devices):
            yield _data_parallel(config, tp * pp * sp), tp, pp, sp


def _data_parallel(config: RunConfig, model_ranks: int) -> int:
    """dp of replicas of `model_ranks` ranks each."""
    devices, batch, wanted = n_devices(config), config.train.global_batch_size, config.layout.dp
    legal = [dp for dp in divisors(batch) if dp * model_ranks <= devices]
    if config.layout.engine == "reference":
        if wanted not in (None, 1):
            raise PlanError(
                f"layout.engine=reference runs on one device, but layout.dp={wanted}",
                _where(config, "layout.engine"),
                "Use layout.dp=1, or layout.engine=deepspeed.",
            )
        return 1
    if wanted is None:
        return legal[-1]
    if wanted * model_ranks > devices:
        of = f" of {model_ranks} ranks each" if model_ranks > 1 else ""
        raise PlanError(
            f"layout.dp={wanted}{of} needs {wanted * model_ranks} devices, and the cluster has {devices}",
            _where(config, "layout.dp"),
            f"Use dp from {_set(legal)}, or a larger cluster.",
        )
    if batch % wanted:
        raise PlanError(
            f"layout.dp={wanted} does not divide train.global_batch_size={batch}",
            _where(config, "layout.dp"),
            f"Use dp from {_set(legal)}, or a global batch that is a multiple of {wanted}, such as {_multiple(batch, wanted)}.",
        )
    return wanted


def _engine(config: RunConfig, world_size: int) -> Engine:
    """auto is reference on one device, where ZeRO has nothing to shard, unless what it lacks was asked for."""
    layout = config.layout
    engine, stage = layout.engine, layout.zero_stage
    if engine == "auto":
        if stage == 0:
            return "ddp"
        plain = world_size == 1 and stage in (None, 1) and layout.offload in (None, "none")
        return "reference" if plain else "deepspeed"
    if engine == "reference" and (stage or 1) > 1:
        raise PlanError(
            f"layout.engine=reference has no ZeRO, but layout.zero_stage={stage}",
            _where(config, "layout.zero_stage"),
            "Leave zero_stage null, or use layout.engine=deepspeed.",
        )
    return engine


def _candidates(config: RunConfig, grid: Grid) -> Iterator[Layout]:
    """Every layout of `config.layout` with these degrees, the preferred one first; not all need be legal."""
    layout, (dp, tp, pp, sp) = config.layout, grid
    share, wanted = config.train.global_batch_size // dp, config.layout.micro_batch_size
    engine = _engine(config, dp * tp * pp * sp)
    if wanted is not None and share % wanted:
        raise PlanError(
            f"layout.micro_batch_size={wanted} does not divide the {share} sequences of a rank "
            f"(train.global_batch_size={config.train.global_batch_size} over dp={dp})",
            _where(config, "layout.micro_batch_size"),
            f"Use micro_batch_size from {_set(divisors(share))}.",
        )
    checkpointings = _one_or(layout.activation_checkpointing, CHECKPOINTINGS)
    least = 3 if layout.offload == "parameters" else 1
    open_stages = [stage for stage in STAGES if stage >= least] if engine == "deepspeed" and dp * sp > 1 and pp == 1 else [least]
    stages = _one_or(layout.zero_stage, [0] if engine == "ddp" else open_stages)
    micro_batches = _one_or(wanted, reversed(divisors(share)))
    shared = layout.sequence_parallel
    if shared is None:
        shared = tp > 1 and all(stack.length % tp == 0 for stack in workload_of(config).stacks)
    ulysses = sp == 1 or workload_of(config).n_heads // tp % sp == 0
    for checkpointing, stage, micro in product(checkpointings, stages, micro_batches):
        yield Layout(
            dp, tp, pp, stage, micro, share // micro, checkpointing, engine, sp=sp, sequence_parallel=shared,
            sp_attention=layout.sp_attention or ("ulysses" if ulysses else "ring"), pp_schedule=layout.pp_schedule or "1f1b",
            offload=layout.offload or "none",
        )  # fmt: skip


def _legal_degrees(config: RunConfig) -> str:
    """What of `config.layout` would be legal with the rest: without a choice that is set, or with other tp, pp or sp, the first
    of these that is set."""
    for name in ("pp_schedule", "sp_attention"):
        if getattr(config.layout, name) is not None and _is_legal(config, name, None):
            return f"Leave layout.{name} null."
    for name in ("tp", "pp", "sp"):
        if (getattr(config.layout, name) or 1) == 1:
            continue
        legal = [value for value in range(1, n_devices(config) + 1) if _is_legal(config, name, value)]
        if legal:
            return f"Use {name} from {_set(legal)}."
    return "Leave null what need not be fixed, or use layout=auto."


def _is_legal(config: RunConfig, name: str, value: int | None) -> bool:
    """Whether a layout is legal with another value of one key."""
    changed = config.model_copy(update={"layout": config.layout.model_copy(update={name: value})})
    setting, batch = setting_of(config), config.train.global_batch_size
    try:
        layouts = [layout for grid in _grids(changed) for layout in _candidates(changed, grid)]
    except PlanError:
        return False
    return any(broken_rule(setting.work, setting.machine, layout, batch) is None for layout in layouts)


def _one_or(given: T | None, choices: Iterable[T]) -> list[T]:
    return list(choices) if given is None else [given]


def _nothing_fits(config: RunConfig, candidates: list[Layout]) -> PlanError:
    """The error that says how far off the smallest layout is, and what would help."""
    setting, device = setting_of(config), config.cluster.device
    least = min((setting.predict(layout) for layout in candidates), key=lambda found: found.need_bytes)
    smallest, memory = least.layout, least.memory
    what = (
        f"{config.model.name} does not fit: the smallest layout needs {format_bytes(least.need_bytes)} on each device "
        f"({describe(smallest)}: {parts(memory)}), and {format_bytes(least.usable_bytes)} of {device.name} can be used: it would "
        f"run with a probability of {least.p_fits:.0%}, and {LIKELY:.0%} are asked for"
    )
    return PlanError(what, _where(config, "layout"), " ".join(_remedies(config, smallest)))


def _remedies(config: RunConfig, smallest: Layout) -> Iterator[str]:
    open_layout = {"zero_stage": None, "micro_batch_size": None, "activation_checkpointing": None, "engine": "deepspeed"}
    relaxed = config.model_copy(update={"layout": config.layout.model_copy(update=open_layout)})
    setting = setting_of(config)
    fitting = (
        layout
        for layout in _candidates(relaxed, (smallest.dp, smallest.tp, smallest.pp, smallest.sp))
        if broken_rule(setting.work, setting.machine, layout, config.train.global_batch_size) is None
        and setting.predict(layout).fits
    )
    if (layout := next(fitting, None)) is not None:
        yield f"With the same dp this fits: {describe(layout)}."
    elif (needed := _devices_needed(config)) is not None:
        yield f"It would fit on {needed} such devices (dp={needed}, zero_stage=3); the cluster has {n_devices(config)}."
    else:
        yield "No number of such devices is enough with data parallelism alone; it takes devices with more memory."
    memory = estimate_memory(config, smallest)
    if memory.activations + memory.logits > memory.total / 2:
        yield f"A train.seq_len shorter than {config.train.seq_len} helps too."
    else:
        yield "A smaller model helps too."


def _devices_needed(config: RunConfig) -> int | None:
    """Fewest ranks that divide the batch and hold the model at ZeRO-3 with full checkpointing and micro-batches of one."""
    batch, setting = config.train.global_batch_size, setting_of(config)
    for dp in divisors(batch):
        if setting.predict(Layout(dp, 1, 1, 3, 1, batch // dp, "full", "deepspeed")).fits:
            return dp
    return None


def describe(layout: Layout) -> str:
    """dp=8, zero_stage=2, micro_batch_size=4 x 16, activation_checkpointing=none."""
    degrees = [
        f"dp={layout.dp}",
        *(f"{name}={n}" for name, n in (("tp", layout.tp), ("pp", layout.pp), ("sp", layout.sp)) if n > 1),
        *([f"sp_attention={layout.sp_attention}"] if layout.sp_attention != "ulysses" else []),
        *([f"pp_schedule={layout.pp_schedule}"] if layout.pp_schedule != "1f1b" else []),
    ]
    return ", ".join(
        [
            *degrees,
            f"zero_stage={layout.zero_stage}",
            f"micro_batch_size={layout.micro_batch_size}",
            f"activation_checkpointing={layout.activation_checkpointing}",
        ]
    )


def parts(memory: MemoryEstimate) -> str:
    """weights 1 GB, gradients 1 GB, ..."""
    held = ((field.name, getattr(memory, field.name)) for field in fields(memory))
    return ", ".join(f"{name} {format_bytes(n_bytes)}" for name, n_bytes in held if n_bytes)


def _set(values: list[int], most: int = 12) -> str:
    """{1, 2, 4}; of a long list the first ones."""
    shown = ", ".join(map(str, values[:most]))
    return "{" + shown + (", ..." if len(values) > most else "") + "}"


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of
