"""Config + cluster -> RunPlan: what will be run, how, and what that is predicted to take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, TypeVar

from scaling import markup
from scaling.config.recorded import renamed
from scaling.config.run_config import RunConfig
from scaling.errors import PlanError
from scaling.planner.budget import schedule_tokens, token_budget, tokens_per_step
from scaling.planner.choose import choose_layout
from scaling.planner.cost.constants import CONSTANTS
from scaling.planner.cost.counts import ModelCounts, count
from scaling.planner.cost.memory import estimate_memory
from scaling.planner.cost.memory_model import MemoryEstimate
from scaling.planner.cost.setting import usd_per_device_hour
from scaling.planner.cost.time import TimeEstimate, estimate_time
from scaling.planner.layout import Layout
from scaling.planner.machines.detect import n_devices
from scaling.planner.prediction import SURE, p_fits
from scaling.units import counted, format_bytes, format_count, format_duration, format_flops

T = TypeVar("T")


@dataclass(frozen=True)
class RunPlan:
    """All that follows from a configuration. Predictions (memory, time, hours, usd, kwh) are
    estimates; None is unknown.

    n_tokens         of the whole run, n_steps x tokens_per_step
    decay_tokens     of the final decay of schedule=wsd, else 0
    time_scale       factor on predicted times (plan.calibrate), which `time` has in it
    flops            of the whole run, without recomputation
    usd, kwh         of all devices of the cluster, used or not; kwh at the board power limit,
                     without host or cooling
    """

    layout: Layout
    counts: ModelCounts
    n_tokens: int
    tokens_per_step: int
    n_steps: int
    warmup_tokens: int
    decay_tokens: int
    flops: int
    memory: MemoryEstimate
    device_memory_bytes: int
    time: TimeEstimate | None
    time_scale: float
    hours: float | None
    usd: float | None
    kwh: float | None

    def device_holds(self, n_workers: int) -> bool:
        """Whether so many workers of such a run surely fit on one device together."""
        return (
            p_fits(n_workers * self.memory.need, CONSTANTS.usable * self.device_memory_bytes)
            >= SURE
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, nested as the fields are; memory also has its total."""
        plan = asdict(self)
        plan["memory"]["total"] = self.memory.total
        plan["layout"]["world_size"] = self.layout.world_size
        return plan

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The plan that `to_dict` wrote, also that of an earlier version; derived values are
        ignored."""
        parts = (
            ("layout", Layout),
            ("counts", ModelCounts),
            ("memory", MemoryEstimate),
            ("time", TimeEstimate),
        )
        values = {**values, "layout": renamed("layout", values["layout"])}
        whole = {name: values[name] and _read(kind, values[name]) for name, kind in parts}
        return _read(cls, {**values, **whole})

    def _repr_html_(self) -> str:
        """A table in a notebook."""
        return markup.table((), self._rows(), "Plan")

    def _rows(self) -> Iterator[tuple[str, str]]:
        """The plan's numbers; a prediction that cannot be made is "unknown"."""
        layout, time = self.layout, self.time
        degrees = f"dp={layout.dp} tp={layout.tp} pp={layout.pp} cp={layout.cp}"
        devices = counted(layout.world_size, "device")
        engine = f"{layout.engine} engine, ZeRO stage {layout.zero_stage}"
        yield "layout", f"{degrees} on {devices}, {engine}"
        yield "micro-batch", f"{layout.micro_batch_size} x {layout.grad_accum_steps} a rank"
        yield "parameters", format_count(self.counts.n_params)
        yield "tokens", f"{format_count(self.n_tokens)} in {counted(self.n_steps, 'step')}"
        yield "compute", format_flops(self.flops)
        memory, device = format_bytes(self.memory.total), format_bytes(self.device_memory_bytes)
        yield "memory", f"estimated {memory} of {device} a device"
        if time is None or self.hours is None:
            yield "time", "unknown"
        else:
            speed = f"{format_count(time.tokens_per_s)} tokens/s, MFU {time.mfu:.2g}"
            yield "time", f"estimated {format_duration(self.hours * 3600)}, {speed}"
        yield "cost", "unknown" if self.usd is None else f"estimated {self.usd:,.0f} USD"
        yield "energy", "unknown" if self.kwh is None else f"estimated {self.kwh:,.0f} kWh"


def _read(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from its fields by name."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: values[name] for name in names if name in values})


@dataclass(frozen=True)
class _Shape:
    """What of a plan follows from the shape of a run alone: neither its length, its rates, its seed
    nor its name matter."""

    layout: Layout
    time: TimeEstimate | None
    memory: MemoryEstimate


_UNSEEN: Any = {
    "run": True,
    "logger": True,
    "study": True,
    "schedule": True,
    "dry_run": True,
    "optim": {"lr", "beta1", "beta2", "eps", "weight_decay"},
    "train": {"n_tokens", "seed", "parent", "extend"},
}
"""Keys of a configuration that layouts, memory and times do not depend on."""


class Shapes:
    """The shapes that were planned already, for one who plans many runs: most trials of a study
    differ in a rate."""

    def __init__(self) -> None:
        self._known: dict[str, _Shape | PlanError] = {}

    def of(self, config: RunConfig) -> _Shape:
        """Raises PlanError, the same each time."""
        key = config.model_dump_json(exclude=_UNSEEN)
        if key not in self._known:
            try:
                self._known[key] = _shape(config)
            except PlanError as error:
                # Remembered too: a study asks again for each trial of this shape.
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, PlanError):
            raise found
        return found


def _shape(config: RunConfig) -> _Shape:
    layout = choose_layout(config)
    return _Shape(layout, estimate_time(config, layout), estimate_memory(config, layout))


def make_plan(
    config: RunConfig, *, time_scale: float = 1.0, shapes: Shapes | None = None
) -> RunPlan:
    """Plan the run of a configuration whose cluster is resolved (`machine.resolve_cluster`). Takes
    nothing and starts nothing.

    Raises PlanError when no legal layout fits, an explicit one breaks a rule, the schedule is
    longer than the run, or what is planned is not what would run.
    """
    warmup, decay = schedule_tokens(config)
    if config.plan.fp8:
        raise PlanError(
            "plan.fp8=true plans products in 8 bits, which no engine here runs",
            None,
            "Leave plan.fp8=false to run.",
        )
    shape, counts, n_tokens = (shapes or Shapes()).of(config), count(config), token_budget(config)
    n_steps = n_tokens // tokens_per_step(config)
    time = shape.time
    if time is None and config.plan.calibrate_from_run:
        raise PlanError(
            f"plan.calibrate_from_run=true: times on {config.cluster.device.name} are not "
            "predicted, so cannot be compared",
            f"cluster={config.cluster.name}",
            "Set cluster.device.peak_tflops_fp32 or peak_tflops_bf16, "
            "cluster.device.memory_gb_per_s and "
            "cluster.intra_node_gb_per_s, or use devices of conf/cluster/device.",
        )
    if time is not None:
        time = time.scaled(time_scale)
    hours = n_steps * time.step_time_s / 3600 if time is not None else None
    cluster = config.cluster
    return RunPlan(
        layout=shape.layout,
        counts=counts,
        n_tokens=n_tokens,
        tokens_per_step=tokens_per_step(config),
        n_steps=n_steps,
        warmup_tokens=warmup,
        decay_tokens=decay,
        flops=n_tokens * counts.flops_per_token,
        memory=shape.memory,
        device_memory_bytes=round((cluster.device.memory_gb or 0) * 1e9),
        time=time,
        time_scale=time_scale,
        hours=hours,
        usd=_of_cluster(config, hours, usd_per_device_hour(config)),
        kwh=_of_cluster(config, hours, cluster.device.power_w, scale=1e-3),
    )


def _of_cluster(
    config: RunConfig, hours: float | None, per_device_hour: float | None, scale: float = 1.0
) -> float | None:
    """`per_device_hour` over the whole run and cluster; None where either is unknown."""
    if hours is None or per_device_hour is None:
        return None
    return hours * n_devices(config) * per_device_hour * scale
