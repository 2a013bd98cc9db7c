"""Seconds of one optimiser step of a configuration."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.config.run_config import RunConfig
from scaling.planner.cost.setting import setting_of
from scaling.planner.layout import Layout
from scaling.planner.prediction import Prediction


@dataclass(frozen=True)
class TimeEstimate:
    """Predicted, never measured. `mfu` counts the model's FLOPs without recomputation, over the
    peak of the used devices.

    communication_s counts what does not hide behind compute: tensor and data parallel traffic, and
    the pipeline's bubble.
    """

    step_time_s: float
    tokens_per_s: float
    mfu: float
    compute_s: float
    communication_s: float

    def scaled(self, scale: float) -> TimeEstimate:
        """The estimate for a machine that takes `scale` times as long."""
        return TimeEstimate(
            self.step_time_s * scale,
            self.tokens_per_s / scale,
            self.mfu / scale,
            self.compute_s * scale,
            self.communication_s * scale,
        )


def estimate_time(config: RunConfig, layout: Layout) -> TimeEstimate | None:
    """Time of one optimiser step; None where the device's peak, or a link that is needed, is
    unknown."""
    return time_estimate(setting_of(config).predict(layout))


def time_estimate(found: Prediction) -> TimeEstimate | None:
    if found.time is None or found.tokens_per_s_per_device is None or found.mfu is None:
        return None
    time = found.time
    waits = time.tensor_parallel_s + time.data_parallel_s + time.bubble_s
    tokens_per_s = found.tokens_per_s_per_device * found.layout.world_size
    return TimeEstimate(
        time.step_time_s, tokens_per_s, found.mfu, time.compute_s + time.optimizer_s, waits
    )
