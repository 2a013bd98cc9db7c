"""Tokens, FLOPs and utilisation per second of training, over the steps of one record."""

from __future__ import annotations

from collections import deque

from scaling.metrics import names

RECENT_STEPS = 20
"""Steps whose rate estimates the time that is left: a choice."""


class ThroughputMeter:
    """Adds up steps and gives their rates; evaluation and checkpoints between steps are not
    counted.

    `flops_per_token` counts forward and backward of the published formula (never recomputation), so
    that the utilisation is MFU as in Chowdhery et al. 2022, appendix B (arXiv:2204.02311).
    `peak_flops_per_s` is of one device in the run's dtype; None where it is unknown, and then there
    is no MFU.
    """

    def __init__(
        self, flops_per_token: float, n_devices: int, peak_flops_per_s: float | None
    ) -> None:
        assert flops_per_token > 0, flops_per_token
        assert n_devices > 0, n_devices
        assert peak_flops_per_s is None or peak_flops_per_s > 0, peak_flops_per_s
        self._flops_per_token = flops_per_token
        self._n_devices = n_devices
        self._peak_flops_per_s = peak_flops_per_s
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT_STEPS)
        self._clear()

    def _clear(self) -> None:
        self._n_steps = self._n_waits = self._n_tokens = 0
        self._time_s = self._wait_s = 0.0

    def step(self, n_tokens: int, step_time_s: float, data_wait_s: float | None = None) -> None:
        """Count one step of `n_tokens` over all ranks: its whole wall time, of which `data_wait_s`
        waited for the loader."""
        self._recent.append((n_tokens, step_time_s))
        self._n_steps += 1
        self._n_tokens += n_tokens
        self._time_s += step_time_s
        if data_wait_s is not None:
            self._n_waits += 1
            self._wait_s += data_wait_s

    @property
    def recent_tokens_per_s(self) -> float | None:
        """Rate of the last `RECENT_STEPS` steps; None before there is any."""
        time_s = sum(step_time_s for _, step_time_s in self._recent)
        return sum(n_tokens for n_tokens, _ in self._recent) / time_s if time_s > 0 else None

    def take(self) -> dict[str, float]:
        """Rates since the last call, by metric name, and start again. What was not measured is
        absent."""
        rates: dict[str, float] = {}
        if self._n_steps and self._time_s > 0:
            tokens_per_s = self._n_tokens / self._time_s
            device_tokens_per_s = tokens_per_s / self._n_devices
            device_flops_per_s = device_tokens_per_s * self._flops_per_token
            rates = {
                names.TOKENS_PER_S: tokens_per_s,
                names.STEP_TIME_S: self._time_s / self._n_steps,
                names.DEVICE_TOKENS_PER_S: device_tokens_per_s,
                names.DEVICE_TFLOPS: device_flops_per_s / 1e12,
            }
            if self._peak_flops_per_s is not None:
                rates[names.DEVICE_MFU] = device_flops_per_s / self._peak_flops_per_s
        if self._n_waits:
            rates[names.DATA_WAIT_S] = self._wait_s / self._n_waits
        self._clear()
        return rates
