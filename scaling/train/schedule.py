"""Learning-rate schedules as pure functions of the tokens seen."""

from __future__ import annotations

import math
from collections.abc import Callable

from scaling.composition.extension import rewarmed_from
from scaling.config.run_config import RunConfig, ScheduleConfig
from scaling.planner.run_plan import RunPlan


def lr_at(
    schedule: ScheduleConfig,
    *,
    peak_lr: float,
    n_tokens_seen: int,
    n_tokens: int,
    warmup_tokens: int,
    decay_tokens: int,
) -> float:
    """Learning rate of the step after which `n_tokens_seen` tokens have been seen.

    So the first step has n_tokens_seen = tokens per step, and its rate is not zero; the last has
    n_tokens, and its rate is the schedule's end value (also where its tokens overshoot the budget).
    All rise linearly from 0 to the peak at warmup_tokens. Then

    constant      peak
    cosine        peak to min_lr_ratio * peak at n_tokens, along half a cosine (Loshchilov and
                  Hutter 2017)
    inverse_sqrt  peak * sqrt(warmup_tokens / n_tokens_seen) (Vaswani et al. 2017, section 5.3,
                  where the peak follows from d_model)
    wsd           peak, and linearly to min_lr_ratio * peak over the last decay_tokens (Hu et al.
                  2024)
    """
    decaying = {
        "constant": 0,
        "cosine": n_tokens - warmup_tokens,
        "wsd": decay_tokens,
        "inverse_sqrt": 0,
    }[schedule.kind]
    assert 0 <= decaying <= n_tokens - warmup_tokens, (
        "the plan refuses a schedule longer than its run"
    )
    if n_tokens_seen < warmup_tokens:
        return peak_lr * n_tokens_seen / warmup_tokens
    if schedule.kind == "inverse_sqrt":
        return peak_lr * math.sqrt(warmup_tokens / n_tokens_seen)
    start, end_lr = n_tokens - decaying, schedule.min_lr_ratio * peak_lr
    if n_tokens_seen <= start or not decaying:
        return peak_lr
    if n_tokens_seen >= n_tokens:
        return end_lr
    progress = (n_tokens_seen - start) / decaying
    if schedule.kind == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return peak_lr + (end_lr - peak_lr) * progress


def lr_after(config: RunConfig, plan: RunPlan) -> Callable[[int], float]:
    """The schedule of a run: tokens seen after a step -> its learning rate. A cosine that was
    extended begins again, with its warm-up, where the shorter run ended."""
    start = rewarmed_from(config)
    return lambda n_tokens_seen: lr_at(
        config.schedule,
        peak_lr=config.optim.lr,
        n_tokens_seen=n_tokens_seen - start,
        n_tokens=plan.n_tokens - start,
        warmup_tokens=plan.warmup_tokens,
        decay_tokens=plan.decay_tokens,
    )
