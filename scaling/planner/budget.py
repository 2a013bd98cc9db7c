"""How many tokens a run sees: whole steps, and the parts of the schedule."""

from __future__ import annotations

from scaling.config.run_config import RunConfig
from scaling.errors import PlanError
from scaling.planner.cost.counts import count
from scaling.units import parse_share

TOKENS_PER_PARAMETER = 20
"""Compute-optimal ratio, embeddings included: Hoffmann et al. 2022 (arXiv:2203.15556), table 3
(20.0 at 400M, 20.2 at 1B)."""


def tokens_per_step(config: RunConfig) -> int:
    """Tokens of one global batch."""
    return config.train.global_batch_size * config.train.seq_len


def token_budget(config: RunConfig) -> int:
    """Tokens of the whole run: `train.n_tokens`, or 20 a parameter, rounded up to whole steps."""
    wanted = config.train.n_tokens
    if wanted is None:
        wanted = TOKENS_PER_PARAMETER * count(config).n_params
    step = tokens_per_step(config)
    return -(-wanted // step) * step


def schedule_tokens(config: RunConfig) -> tuple[int, int]:
    """Tokens of the warm-up, and of the final decay (0 unless schedule=wsd).

    Raises PlanError when they leave no room in the run.
    """
    n_tokens, schedule = token_budget(config), config.schedule
    warmup = parse_share(schedule.warmup_tokens, n_tokens)
    decay = parse_share(schedule.decay_tokens, n_tokens) if schedule.kind == "wsd" else 0
    where = f"model={config.model.name}, schedule={schedule.kind}"
    if not 0 <= warmup < n_tokens:
        raise PlanError(
            f"schedule.warmup_tokens={schedule.warmup_tokens} is {warmup} tokens, and the "
            f"whole run has {n_tokens}",
            where,
            f"Use less than {n_tokens}, or a share such as 2%; or raise train.n_tokens.",
        )
    if decay < 0 or warmup + decay > n_tokens:
        raise PlanError(
            f"schedule.warmup_tokens={schedule.warmup_tokens} and "
            f"schedule.decay_tokens={schedule.decay_tokens} "
            f"are {warmup} + {decay} tokens, and the whole run has {n_tokens}",
            where,
            f"Use a decay of at most {n_tokens - warmup}, or a share such as 20%; or raise "
            "train.n_tokens.",
        )
    return warmup, decay
