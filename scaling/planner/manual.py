"""The layouts that `config.layout` leaves open where it fixes some of their degrees; a value that
cannot be is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from math import prod
from typing import Literal, TypeVar

from scaling.config.run_config import RunConfig
from scaling.errors import PlanError
from scaling.planner.cost.setting import workload_of
from scaling.planner.layout import Engine, Layout
from scaling.planner.machines.detect import n_devices
from scaling.planner.space import CHECKPOINTINGS
from scaling.units import counted

T = TypeVar("T")
STAGES: tuple[Literal[1, 2, 3], ...] = (1, 2, 3)
Grid = tuple[int, int, int, int]
"""dp, tp, pp, cp."""


def divisors(n: int) -> list[int]:
    """All divisors of n > 0, ascending."""
    low = [i for i in range(1, int(n**0.5) + 1) if n % i == 0]
    return sorted({*low, *(n // i for i in low)})


def where(config: RunConfig, key: str) -> str:
    return f"model={config.model.name}, cluster={config.cluster.name}, {key}"


def grids(config: RunConfig) -> Iterator[Grid]:
    """Degrees to look at, data parallelism alone first; of those that `config.layout` fixes, one
    value."""
    layout, devices = config.layout, n_devices(config)
    alone = layout.engine in ("reference", "ddp") or layout.zero_stage == 0
    choices = [1] if alone else [2**i for i in range(devices.bit_length())]
    given = [
        (name, value) for name in ("tp", "pp", "cp") if (value := getattr(layout, name)) is not None
    ]
    needed = prod(value for _, value in given)
    if needed > devices:
        names = " x ".join(f"layout.{name}={value}" for name, value in given)
        raise PlanError(
            f"{names} needs {counted(needed, 'device')}, and the cluster has {devices}",
            where(config, "layout"),
            f"Use degrees whose product is at most {devices}, or a larger cluster.",
        )
    grids = product(
        _one_or(layout.tp, choices), _one_or(layout.pp, choices), _one_or(layout.cp, choices)
    )
    for tp, pp, cp in sorted(grids, key=prod):
        if tp * pp * cp <= devices and (
            layout.dp is None or tp * pp * cp == needed or layout.dp * tp * pp * cp <= devices
        ):
            yield _data_parallel(config, tp * pp * cp), tp, pp, cp


def _data_parallel(config: RunConfig, model_ranks: int) -> int:
    """dp of replicas of `model_ranks` ranks each."""
    devices, batch, wanted = n_devices(config), config.train.global_batch_size, config.layout.dp
    legal = [dp for dp in divisors(batch) if dp * model_ranks <= devices]
    if config.layout.engine == "reference":
        if wanted not in (None, 1):
            raise PlanError(
                f"layout.engine=reference runs on one device, but layout.dp={wanted}",
                where(config, "layout.engine"),
                "Use layout.dp=1, or layout.engine=deepspeed.",
            )
        return 1
    if wanted is None:
        return legal[-1]
    if wanted * model_ranks > devices:
        of = f" of {model_ranks} ranks each" if model_ranks > 1 else ""
        raise PlanError(
            f"layout.dp={wanted}{of} needs {wanted * model_ranks} devices, and the cluster has {devices}",
            where(config, "layout.dp"),
            f"Use dp from {some(legal)}, or a larger cluster.",
        )
    if batch % wanted:
        raise PlanError(
            f"layout.dp={wanted} does not divide train.global_batch_size={batch}",
            where(config, "layout.dp"),
            f"Use dp from {some(legal)}, or a global batch that is a multiple of {wanted}, such as {_multiple(batch, wanted)}.",
        )
    return wanted


def _engine(config: RunConfig, world_size: int) -> Engine:
    """auto is reference on one device, where ZeRO has nothing to shard, unless what it lacks was
    asked for."""
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
            where(config, "layout.zero_stage"),
            "Leave zero_stage null, or use layout.engine=deepspeed.",
        )
    return engine


def candidates(config: RunConfig, grid: Grid) -> Iterator[Layout]:
    """Every layout of `config.layout` with these degrees, the preferred one first; not all need be
    legal."""
    layout, (dp, tp, pp, cp) = config.layout, grid
    share, wanted = config.train.global_batch_size // dp, config.layout.micro_batch_size
    engine = _engine(config, dp * tp * pp * cp)
    if wanted is not None and share % wanted:
        raise PlanError(
            f"layout.micro_batch_size={wanted} does not divide the {share} sequences of a rank "
            f"(train.global_batch_size={config.train.global_batch_size} over dp={dp})",
            where(config, "layout.micro_batch_size"),
            f"Use micro_batch_size from {some(divisors(share))}.",
        )
    checkpointings = _one_or(layout.activation_checkpointing, CHECKPOINTINGS)
    least = 3 if layout.offload == "parameters" else 1
    open_stages = (
        [stage for stage in STAGES if stage >= least]
        if engine == "deepspeed" and dp * cp > 1 and pp == 1
        else [least]
    )
    stages = _one_or(layout.zero_stage, [0] if engine == "ddp" else open_stages)
    micro_batches = _one_or(wanted, reversed(divisors(share)))
    shared = layout.sequence_parallel
    if shared is None:
        shared = tp > 1 and all(stack.length % tp == 0 for stack in workload_of(config).stacks)
    ulysses = cp == 1 or workload_of(config).n_heads // tp % cp == 0
    for checkpointing, stage, micro in product(checkpointings, stages, micro_batches):
        yield Layout(
            dp=dp,
            tp=tp,
            pp=pp,
            zero_stage=stage,
            micro_batch_size=micro,
            grad_accum_steps=share // micro,
            activation_checkpointing=checkpointing,
            engine=engine,
            cp=cp,
            sequence_parallel=shared,
            cp_attention=layout.cp_attention or ("ulysses" if ulysses else "ring"),
            pp_schedule=layout.pp_schedule or "1f1b",
            offload=layout.offload or "none",
        )


def _one_or(given: T | None, choices: Iterable[T]) -> list[T]:
    return list(choices) if given is None else [given]


def some(values: list[int], most: int = 12) -> str:
    """{1, 2, 4}; of a long list the first ones."""
    shown = ", ".join(map(str, values[:most]))
    return "{" + shown + (", ..." if len(values) > most else "") + "}"


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of
