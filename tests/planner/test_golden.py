"""Whole plans of a few settings, one value a line, so that a changed assumption shows as the lines
that it moves.

Rewrite tests/golden/plans.txt with SCALING_REWRITE_GOLDEN=1, in a commit that says why the numbers
changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaling.planner.answer import ranked_plan
from scaling.planner.run_plan import make_plan
from tests.support.configs import composed

GOLDEN = Path(__file__).parents[1] / "golden" / "plans.txt"
SETTINGS = [
    (),
    ("model=gpt_10m", "cluster=1xA100"),
    ("model=gpt_1b", "cluster=8xA100"),
    ("model=gpt_13b", "cluster=4x8xA100", "cluster.usd_per_device_hour=2"),
    ("model=gpt_70b", "cluster=8x8xH100", "schedule=wsd"),
    ("model=gpt_1b", "cluster=1x4xL40S"),
    ("model=gpt_7b", "cluster=8xH200"),
    ("model=gpt_30b", "cluster=4x8xB200"),
    ("model=bert_base", "cluster=1x1xRTX4090"),
    ("model=t5_large", "cluster=1x8xV100"),
    ("model=gpt_350m", "cluster=1xH100", "layout.engine=deepspeed"),
]


def _flat(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield f"{prefix} = {value:.12g}" if isinstance(value, float) else f"{prefix} = {value}"


RANKED = [
    ("model=gpt_7b", "cluster=8xH100"),
    ("model=gpt_13b", "cluster=8x8xA100", "train.global_batch_size=1024"),
    ("model=gpt_70b", "cluster=8x8xH100"),
    ("model=gpt_175b", "cluster=64x8xA100", "train.global_batch_size=1536"),
    ("model=gpt_175b", "cluster=1x8xA100"),
]
"""Words whose three first layouts of `python -m scaling.plan` are kept, or what would fit."""


def _ranked(overrides: tuple[str, ...]) -> dict[str, Any]:
    answer = ranked_plan(composed(*overrides))
    first = {
        str(n): {key: layout[key] for key in KEPT}
        for n, layout in enumerate(answer["layouts"][:3], 1)
    }
    return first | {key: answer[key] for key in ("why", "help", "would_fit")}


KEPT = (
    "dp",
    "tp",
    "pp",
    "cp",
    "zero_stage",
    "micro_batch_size",
    "activation_checkpointing",
    "verdict",
    "mfu",
    "memory_bytes",
)


def _plans() -> str:
    sections = []
    for overrides in SETTINGS:
        lines = _flat(make_plan(composed(*overrides)).to_dict())
        sections.append("\n".join([f"[{' '.join(overrides) or 'default run'}]", *lines, ""]))
    for overrides in RANKED:
        sections.append(
            "\n".join([f"[ranked: {' '.join(overrides)}]", *_flat(_ranked(overrides)), ""])
        )
    return "\n".join(sections)


def test_plans_are_those_of_the_golden_file() -> None:
    plans = _plans()
    if os.environ.get("SCALING_REWRITE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(plans)
    assert plans == GOLDEN.read_text(), (
        "The plans have moved. If a formula, an assumption or a file in conf/ was meant to change, "
        "rewrite them with SCALING_REWRITE_GOLDEN=1; if not, this is a mistake."
    )
