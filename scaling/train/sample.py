"""The text that a finished run shows."""

from __future__ import annotations

from collections.abc import Sequence

from scaling.config.run_config import RunConfig
from scaling.data.tokenizer.byte_level import Tokenizer
from scaling.engine.base import Engine
from scaling.inference.prompts import complete
from scaling.inference.sampling import generate
from scaling.model import GenerativeModel
from scaling.planner.run_plan import RunPlan

_MEMORY_LIMIT = 0.1
"""Fraction of a device's memory that gathered weights may take for a sample: assumption.
scaling.generate has no limit."""


def make_sample(
    config: RunConfig, plan: RunPlan, tokenizer: Tokenizer, engine: Engine
) -> str | None:
    """The model's answer to `train.sample_prompt`; None for a sharded model that is too large to be
    gathered. Every rank generates the same tokens."""
    train, memory_gb = config.train, config.cluster.device.memory_gb
    if not train.sample_tokens or (config.objective.kind == "seq2seq" and not train.sample_prompt):
        return None
    layout = plan.layout
    gathered = layout.zero_stage == 3 or layout.tp * layout.pp > 1
    if gathered and memory_gb and 4 * plan.counts.n_params > _MEMORY_LIMIT * memory_gb * 1e9:
        return None

    def answer(
        model: GenerativeModel, prompt: Sequence[int], source: Sequence[int] | None
    ) -> list[int]:
        return generate(
            model,
            prompt,
            train.sample_tokens,
            source_ids=source,
            seed=train.seed,
            context_limit=train.seq_len,
            eos_id=tokenizer.eot_id,
        )

    return complete(config, engine.whole_model().eval(), tokenizer, train.sample_prompt, answer)
