"""Fixed values of `config.layout` that cannot be: what is wrong, and what would work."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from math import gcd, prod

from scaling.config.run_config import RunConfig
from scaling.errors import PlanError
from scaling.planner.cost.setting import Setting
from scaling.planner.machines.detect import n_devices
from scaling.planner.ranking import rank
from scaling.planner.rules import broken_rule
from scaling.planner.space import divisors, families, grids
from scaling.units import counted


def where(config: RunConfig, key: str) -> str:
    return f"model={config.model.name}, cluster={config.cluster.name}, {key}"


def check_fixed(config: RunConfig) -> None:
    """Raise PlanError for values that no layout has, whatever model it is for."""
    layout, devices = config.layout, n_devices(config)
    given = [
        (name, value) for name in ("tp", "pp", "cp") if (value := getattr(layout, name)) is not None
    ]
    ranks = prod(value for _, value in given)
    if ranks > devices:
        names = " x ".join(f"layout.{name}={value}" for name, value in given)
        raise PlanError(
            f"{names} needs {counted(ranks, 'device')}, and the cluster has {devices}",
            where(config, "layout"),
            f"Use degrees whose product is at most {devices}, or a larger cluster.",
        )
    if layout.engine == "reference":
        _check_reference(config)
    elif layout.dp is not None:
        _check_dp(config, layout.dp, ranks)


def _check_reference(config: RunConfig) -> None:
    dp, stage = config.layout.dp, config.layout.zero_stage
    if dp not in (None, 1):
        raise PlanError(
            f"layout.engine=reference runs on one device, but layout.dp={dp}",
            where(config, "layout.engine"),
            "Use layout.dp=1, or layout.engine=deepspeed.",
        )
    if (stage or 1) > 1:
        raise PlanError(
            f"layout.engine=reference has no ZeRO, but layout.zero_stage={stage}",
            where(config, "layout.zero_stage"),
            "Leave zero_stage null, or use layout.engine=deepspeed.",
        )


def _check_dp(config: RunConfig, dp: int, ranks: int) -> None:
    """ranks: of a replica, at least."""
    devices, batch = n_devices(config), config.train.global_batch_size
    legal = some(divisor for divisor in divisors(batch) if divisor * ranks <= devices)
    if dp * ranks > devices:
        each = f" of {ranks} ranks each" if ranks > 1 else ""
        raise PlanError(
            f"layout.dp={dp}{each} needs {dp * ranks} devices, and the cluster has {devices}",
            where(config, "layout.dp"),
            f"Use dp from {legal}, or a larger cluster.",
        )
    if batch % dp:
        raise PlanError(
            f"layout.dp={dp} does not divide train.global_batch_size={batch}",
            where(config, "layout.dp"),
            f"Use dp from {legal}, or a global batch that is a multiple of {dp}, such as "
            f"{_multiple(batch, dp)}.",
        )


def illegal(config: RunConfig, setting: Setting) -> PlanError:
    """The error where every candidate breaks a rule."""
    batch, fixed = config.train.global_batch_size, config.layout
    dp, micro = grids(setting.work, setting.machine, batch, fixed)[0].dp, fixed.micro_batch_size
    if micro is not None and batch // dp % micro:
        return PlanError(
            f"layout.micro_batch_size={micro} does not divide the "
            f"{counted(batch // dp, 'sequence')} of a rank "
            f"(train.global_batch_size={batch} over dp={dp})",
            where(config, "layout.micro_batch_size"),
            f"Use micro_batch_size from {some(divisors(batch // dp))}.",
        )
    refused = rank(setting, batch, families(setting, batch, fixed), keep_refused=True).refused
    # Larger micro-batches break rules of accumulation besides.
    _, rule = min(refused, key=lambda found: found[0].micro_batch_size)
    return PlanError(rule, where(config, "layout"), _what_would_work(config, setting))


def _what_would_work(config: RunConfig, setting: Setting) -> str:
    """The first change of one fixed value after which a layout is legal: a choice left open, then
    other degrees, then anything else left open."""
    fixed, work, devices = config.layout, setting.work, n_devices(config)
    for name in ("pp_schedule", "cp_attention"):
        if getattr(fixed, name) is not None and _is_legal(config, setting, name, None):
            return f"Leave layout.{name} null."
    degrees: dict[str, Iterable[int]] = {
        "tp": divisors(work.n_heads),
        "pp": range(1, work.n_blocks + 1),
        "cp": divisors(gcd(*(stack.length for stack in work.stacks))),
    }
    for name, values in degrees.items():
        if (getattr(fixed, name) or 1) == 1:
            continue
        legal = [
            value
            for value in values
            if value <= devices and _is_legal(config, setting, name, value)
        ]
        if legal:
            return f"Use {name} from {some(legal)}."
    for name in ("sequence_parallel", "offload", "zero_stage", "micro_batch_size", "dp"):
        if getattr(fixed, name) is not None and _is_legal(config, setting, name, None):
            return f"Leave layout.{name} null."
    return "Leave null what need not be fixed, or use layout=auto."


def _is_legal(config: RunConfig, setting: Setting, name: str, value: int | None) -> bool:
    """Whether a layout is legal with another value of one key."""
    fixed = config.layout.model_copy(update={name: value})
    try:
        check_fixed(config.model_copy(update={"layout": fixed}))
    except PlanError:
        return False
    batch = config.train.global_batch_size
    # Where the smallest micro-batch is illegal, larger ones are.
    smallest = (
        layout for family in families(setting, batch, fixed) for layout in islice(family, 1)
    )
    return any(
        broken_rule(setting.work, setting.machine, layout, batch) is None for layout in smallest
    )


def some(values: Iterable[int], most: int = 12) -> str:
    """{1, 2, 4}; the first ones of many."""
    values = list(values)
    shown = ", ".join(map(str, values[:most]))
    return "{" + shown + (", ..." if len(values) > most else "") + "}"


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of
