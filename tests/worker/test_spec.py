"""The driver's order to its workers, as it goes from one process to another."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config.run_config import RunConfig
from scaling.planner.run_plan import RunPlan, make_plan
from scaling.worker.spec import WorkerSpec
from tests.support.configs import composed


@cache
def ordered() -> tuple[RunConfig, RunPlan]:
    config = composed("layout=manual", "layout.dp=2", "optim.lr=0.003")
    return config, make_plan(config)


@settings(max_examples=15)  # each validates a whole configuration twice
@given(
    run_dir=st.text(),
    skipped=st.lists(st.text()),
    until_step=st.none() | st.integers(1),
    startup=st.dictionaries(st.text(), st.floats(0, 2e9)),
    sizes=st.lists(st.integers(1, 2**14)),
)
def test_an_order_arrives_as_it_was_given(
    run_dir: str,
    skipped: list[str],
    until_step: int | None,
    startup: dict[str, float],
    sizes: list[int],
) -> None:
    config, plan = ordered()
    spec = WorkerSpec(
        config=config,
        plan=plan,
        run_dir=run_dir,
        corpus_dir=run_dir + "/corpus",
        skipped_shards=tuple(skipped),
        until_step=until_step,
        startup=startup,
        sizes=tuple(sizes),
    )
    order = spec.to_dict()
    assert set(order) == {field.name for field in fields(spec)}
    assert WorkerSpec.from_dict(json.loads(json.dumps(order))) == spec
    assert WorkerSpec.from_dict(pickle.loads(pickle.dumps(order))) == spec
    # A worker marks its stages before it imports this package: plain values only.
    assert all(type(value).__module__ == "builtins" for value in order.values())


def test_marks_of_a_worker_in_this_process_are_the_drivers() -> None:
    config, plan = ordered()
    spec = WorkerSpec(config=config, plan=plan, run_dir="/r", corpus_dir="/c")
    spec.to_dict()["startup"]["imported"] = 1.0
    assert spec.startup["imported"] == 1.0
    assert "imported" in WorkerSpec.from_dict(spec.to_dict()).startup
