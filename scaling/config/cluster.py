"""The machines and how a step is spread over them: groups `cluster` and `layout`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from scaling.config.recorded import RECORDED, renamed
from scaling.config.section import LONGEST_S, Section, at_most

MOST_DEVICES = 2**20
"""Ten times the largest cluster that anybody has described; a plan beyond it is a slip of the
keyboard (assumption)."""


Checkpointing = Literal["none", "selective", "full"]
Offload = Literal["none", "optimizer", "parameters"]
ContextAttention = Literal["ulysses", "ring"]
PipelineSchedule = Literal["1f1b", "dualpipev"]
Generation = Literal["volta", "ampere", "ada", "hopper", "blackwell", "cdna", "cpu"]
"""The generation of a chip; cpu stands for none."""
_MemoryGb = Annotated[float, at_most(1e6, "and no device holds a petabyte")]
_GbPerS = Annotated[float, at_most(1e6, "and nothing moves a petabyte a second")]
_Tflops = Annotated[float, at_most(1e6, "and no device computes an exaflop a second")]
_Hours = Annotated[float, at_most(1e7, "a thousand years; null: an estimate")]
_PowerW = Annotated[float, at_most(1e6, "and no board draws a megawatt")]
_UsdPerHour = Annotated[float, at_most(1e6, "and no device costs a million an hour")]


class LayoutConfig(Section):
    """How a step is executed; none of it changes the loss curve."""

    kind: Literal["auto", "manual"] = Field(
        description="auto: the planner's choice; manual: the values below"
    )
    engine: Literal["auto", "reference", "ddp", "deepspeed"] = Field(
        "auto",
        description="reference: plain PyTorch, one device; ddp: on several; deepspeed: the rest; "
        "auto: reference on one",
    )
    dp: int | None = Field(
        None,
        gt=0,
        description="data-parallel ranks; null: as many devices as divide the global batch",
    )
    tp: int | None = Field(
        None, gt=0, description="tensor-parallel ranks, which share heads and columns"
    )
    pp: int | None = Field(
        None, gt=0, description="pipeline-parallel ranks, which share the blocks"
    )
    pp_schedule: PipelineSchedule | None = Field(
        None,
        description="dualpipev: two stages a rank, there and back, and a shorter bubble; "
        "null: the faster one",
    )
    cp: int | None = Field(
        None, gt=0, description="context-parallel ranks, which share the positions of a sequence"
    )
    cp_attention: ContextAttention | None = Field(
        None,
        description="ulysses: cp ranks swap positions for heads; ring: they pass keys on; "
        "null: ring where heads are few",
    )
    zero_stage: Literal[0, 1, 2, 3] | None = Field(
        None,
        description="ZeRO shards 0: nothing (engine ddp); 1: optimiser states; 2: gradients too; "
        "3: weights too",
    )
    micro_batch_size: int | None = Field(None, gt=0, description="sequences per rank per forward")
    activation_checkpointing: Checkpointing | None = Field(
        None,
        description="made again in backward; selective: norms, activations and gates; "
        "full: every block",
    )
    offload: Offload | None = Field(
        None,
        description="held by the host's memory: the optimiser's states, or ZeRO-3's weights too; "
        "null: none",
    )
    sequence_parallel: bool | None = Field(
        None, description="tp ranks share norms and residuals too; null: where the lengths allow it"
    )

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, values: Any, info: ValidationInfo) -> Any:
        recorded = info.context == RECORDED and isinstance(values, Mapping)
        return renamed("layout", values) if recorded else values

    @model_validator(mode="after")
    def _auto(self) -> Self:
        given = [
            name
            for name in type(self).model_fields
            if name not in ("kind", "engine") and getattr(self, name) is not None
        ]
        if self.kind == "auto" and given:
            raise ValueError(
                f"layout.{given[0]} is set, but layout=auto leaves it to the planner; "
                "use layout=manual"
            )
        return self


class DeviceConfig(Section):
    """One accelerator, or one CPU worker."""

    kind: Literal["cpu", "gpu"] = Field(
        description="gpu: NCCL, bf16 unless precision says otherwise; cpu: gloo, fp32"
    )
    name: str = Field(description="as the vendor names it")
    memory_gb: _MemoryGb | None = Field(
        gt=0, description="GB (10^9) of one device; null: asked of this machine"
    )
    peak_tflops_bf16: _Tflops | None = Field(
        None, gt=0, description="dense peak; null: unknown, and MFU is not reported"
    )
    peak_tflops_fp32: _Tflops | None = Field(
        None, gt=0, description="dense peak in fp32 (TF32 where there is one)"
    )
    memory_gb_per_s: _GbPerS | None = Field(None, gt=0, description="memory bandwidth")
    power_w: _PowerW | None = Field(None, gt=0, description="board power limit")
    generation: Generation | None = Field(
        None, description="of its chip, whose products reach a share of the peak; null: unknown"
    )
    intra_node_gb_per_s: _GbPerS | None = Field(
        None, gt=0, description="per direction, within a usual node"
    )
    inter_node_gb_per_s: _GbPerS | None = Field(
        None, gt=0, description="per direction, its share of a usual node's ports"
    )
    devices_per_node: int | None = Field(None, gt=0, description="in a usual node")
    usd_per_hour: _UsdPerHour | None = Field(
        None, ge=0, description="list price, where the cluster gives none; null: unknown"
    )


class PlanConfig(Section):
    """What `python -m scaling.plan` shows and writes."""

    top: int = Field(5, gt=0, description="layouts to print, the best first")
    output: str | None = Field(None, description="file for the whole answer as JSON; null: none")
    fp8: bool = Field(False, description="plan products in 8 bits, which no engine here runs yet")
    calibrate: str | None = Field(
        None,
        description="measured rates of this machine, which scale the times: a table, "
        "or what calibrate_from_run wrote",
    )
    calibrate_from_run: bool = Field(
        False,
        description="add the rate of this run, when it ends, to plan.calibrate, "
        "or else RUN.ROOT/calibration.json",
    )


class ClusterConfig(Section):
    """What the planner and the launcher must know of the machines."""

    name: str = Field(description="as plans and errors call it")
    kind: Literal["embedded", "existing"] = Field(
        description="embedded: Ray is started here; existing: joined at cluster.address"
    )
    address: str | None = Field(None, description="existing: address of the Ray head, or auto")
    n_nodes: int = Field(1, gt=0, description="machines")
    devices_per_node: int | None = Field(
        None, gt=0, description="devices in each; null: asked of this machine"
    )
    device: DeviceConfig
    intra_node_gb_per_s: _GbPerS | None = Field(
        None, gt=0, description="per device and direction, within a node"
    )
    inter_node_gb_per_s: _GbPerS | None = Field(
        None, gt=0, description="per device and direction, between nodes"
    )
    usd_per_device_hour: _UsdPerHour | None = Field(None, ge=0, description="price; null: unknown")
    threads_per_worker: int = Field(1, gt=0, le=1024, description="CPU threads of a worker")
    preemptible: bool = Field(False, description="machines may be taken back at any time")
    hours_between_failures: _Hours | None = Field(
        None,
        gt=0,
        description="mean time between failures of the whole cluster; "
        "null: estimated from its size and kind",
    )
    preemption_hours: _Hours | None = Field(
        None,
        gt=0,
        description="mean hours until a preemptible node is taken back; null: 20, an assumption",
    )
    restart_s: float | None = Field(
        None,
        ge=0,
        le=LONGEST_S,
        description="seconds from a failure to the first step after it; null: 300, an assumption",
    )
    checkpoint_gb_per_s: _GbPerS | None = Field(
        None, gt=0, description="at which a node writes checkpoints; null: 2, an assumption"
    )
    max_failures: int = Field(
        2, ge=0, description="worker failures after which the run is given up"
    )
    min_devices: int | None = Field(
        None,
        gt=0,
        description="fewest devices to continue with when some are taken back "
        "(cluster.kind=existing); null: all of them, or on preemptible machines as few nodes as "
        "the model fits on",
    )
    max_preemptions: int = Field(
        -1,
        ge=-1,
        description="times that machines are taken back after notice before the run is given up; "
        "-1: any number",
    )
    grace_s: float = Field(
        30.0,
        gt=0,
        le=LONGEST_S,
        description="from the notice that a machine is taken back to its end, "
        "where the notice does not say",
    )
    hang_s: float = Field(
        300.0,
        gt=0,
        le=LONGEST_S,
        description="longest time without a step before workers are taken to hang and are started "
        "again; thrice that for a start, an evaluation or a checkpoint",
    )
    timeout_s: float = Field(
        1800.0, gt=0, le=LONGEST_S, description="longest wait for a rank in a collective operation"
    )

    @model_validator(mode="after")
    def _size(self) -> Self:
        n_devices = self.n_nodes * (self.devices_per_node or 1)
        if n_devices > MOST_DEVICES:
            raise ValueError(
                f"cluster.n_nodes x cluster.devices_per_node is {n_devices:,} devices, "
                f"and at most {MOST_DEVICES:,} go"
            )
        return self

    @model_validator(mode="after")
    def _times(self) -> Self:
        if self.timeout_s < 4 * self.hang_s:
            raise ValueError(
                f"cluster.timeout_s={self.timeout_s:g} is less than four times "
                f"cluster.hang_s={self.hang_s:g}: ranks that wait for one that hangs would fail "
                "before it is found and named"
            )
        return self
