"""A prediction with its interval and verdict, for a layout or for a row of a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scaling.plan.constants import CONSTANTS, Constants
from scaling.plan.degrees import Layout
from scaling.plan.machine_model import Machine
from scaling.plan.memory_model import MemoryEstimate, memory_of
from scaling.plan.software import Software
from scaling.plan.table import Case
from scaling.plan.time_model import StepTime, step_time
from scaling.plan.workload import Workload


@dataclass(frozen=True)
class Prediction:
    """Of one layout; `time` and `mfu` are None where a rate is unknown. need_bytes: the least with which it runs, of
    memory_bytes that a device has."""

    layout: Layout
    memory: MemoryEstimate
    need_bytes: float
    memory_bytes: float
    fits: bool
    time: StepTime | None
    tokens_per_s_per_device: float | None
    mfu: float | None


def predict(work: Workload, layout: Layout, software: Software, machine: Machine, constants: Constants = CONSTANTS) -> Prediction:
    memory = memory_of(work, layout, software, gpu=machine.kind == "gpu", constants=constants)
    time = step_time(work, layout, software, machine, constants)
    need = memory.need(constants)
    tokens_per_s = mfu = None
    if time is not None:
        tokens = layout.dp * layout.micro_batch_size * layout.grad_accum_steps * work.seq_len
        tokens_per_s = tokens / time.step_time_s / layout.world_size
        mfu = tokens_per_s * work.flops_per_token / (machine.peak_flops_per_s or math.nan)
    return Prediction(
        layout, memory, need, machine.memory_bytes, need <= constants.usable * machine.memory_bytes, time, tokens_per_s, mfu
    )


def predict_case(case: Case, constants: Constants = CONSTANTS) -> Prediction:
    """Of a row: its layout, or of those that it may mean the fastest that fits, else the smallest."""
    found = [predict(case.work, layout, case.software, case.machine, constants) for layout in case.layouts]
    if len(found) == 1:
        return found[0]
    fitting = [prediction for prediction in found if prediction.fits]
    if fitting:
        return max(fitting, key=lambda prediction: prediction.mfu or 0.0)
    return min(found, key=lambda prediction: prediction.need_bytes)
