"""A prediction with its interval and verdict, for a layout or for a row of a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from scaling.planner.cost.constants import CONSTANTS, Constants
from scaling.planner.cost.memory_model import MemoryEstimate, memory_of
from scaling.planner.cost.software import Software
from scaling.planner.cost.time_model import StepTime, step_time
from scaling.planner.cost.workload import Workload
from scaling.planner.layout import Layout
from scaling.planner.machines.rates import Machine
from scaling.planner.measured.table import Case

Verdict = Literal["fits", "borderline", "does not fit"]

SURE, LIKELY = 0.9, 0.8
"""Probability of fitting from which a layout fits, and below which it does not. 0.9: the upper end
of the 80 % interval fits. 0.8: running out of memory costs four times what a layout passed over
does; a choice. Where needs of layouts that run out and of those that fit are up to twice, and half
of, a device's memory, it finds 98 % of the former and 86 % of the latter."""

MEANT = 0.5
"""Probability of fitting from which a row of unknown layout may mean a layout: it is known to have
run."""


@dataclass(frozen=True)
class Prediction:
    """What one layout takes. `time` and `mfu` are None where a rate is unknown.

    need_bytes    memory with which the layout just runs
    usable_bytes  memory that a process can have of a device
    p_fits        probability that the usable memory is enough
    """

    layout: Layout
    memory: MemoryEstimate
    need_bytes: float
    usable_bytes: float
    p_fits: float
    time: StepTime | None
    tokens_per_s_per_device: float | None
    mfu: float | None

    @property
    def fits(self) -> bool:
        return self.p_fits >= LIKELY

    @property
    def verdict(self) -> Verdict:
        if not self.fits:
            return "does not fit"
        return "fits" if self.p_fits >= SURE else "borderline"

    @property
    def tokens_per_s(self) -> float | None:
        """The rate of all devices that the layout uses."""
        return (
            None
            if self.tokens_per_s_per_device is None
            else self.tokens_per_s_per_device * self.layout.world_size
        )


def predict(
    work: Workload,
    layout: Layout,
    software: Software,
    machine: Machine,
    constants: Constants = CONSTANTS,
) -> Prediction:
    memory = memory_of(work, layout, software, gpu=machine.kind == "gpu", constants=constants)
    time = step_time(work, layout, software, machine, constants)
    need, usable = memory.need, constants.usable * machine.memory_bytes
    tokens_per_s = mfu = None
    if time is not None:
        tokens = layout.dp * layout.micro_batch_size * layout.grad_accum_steps * work.seq_len
        tokens_per_s = tokens / time.step_time_s / layout.world_size
        mfu = tokens_per_s * work.flops_per_token / (machine.peak_flops_per_s or math.nan)
    return Prediction(
        layout, memory, need, usable, p_fits(need, usable, constants), time, tokens_per_s, mfu
    )


def p_fits(need_bytes: float, usable_bytes: float, constants: Constants = CONSTANTS) -> float:
    """Probability that what is needed is no more than usable, its logarithm being normal about the
    prediction."""
    # P(ln need <= ln usable) of a normal distribution about the predicted need.
    return 0.5 * math.erfc(
        math.log(need_bytes / usable_bytes) / (constants.memory_sigma * math.sqrt(2))
    )


def predict_case(case: Case, constants: Constants = CONSTANTS) -> Prediction:
    """The prediction for a row's layout. If a row may mean several, take the fastest that more
    likely fits than not, else the smallest. The row fits if any of them does."""
    found = [
        predict(case.work, layout, case.software, case.machine, constants)
        for layout in case.layouts
    ]
    if len(found) == 1:
        return found[0]
    meant = [prediction for prediction in found if prediction.p_fits >= MEANT]
    chosen = (
        max(meant, key=lambda one: one.mfu or 0.0)
        if meant
        else min(found, key=lambda one: one.need_bytes)
    )
    return replace(chosen, p_fits=max(prediction.p_fits for prediction in found))
