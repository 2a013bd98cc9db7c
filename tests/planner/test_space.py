"""One generator of candidates: what is fixed filters what is open."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config.run_config import LayoutConfig, RunConfig
from scaling.errors import PlanError
from scaling.planner.choose import ranking_of
from scaling.planner.cost.setting import Setting, setting_of
from scaling.planner.layout import Layout
from scaling.planner.refusals import illegal
from scaling.planner.rules import broken_rule
from scaling.planner.run_plan import RunPlan, make_plan
from scaling.planner.space import MOST_MICRO_BATCH, OPEN, families, grids
from tests.support.configs import composed

SMALL = ("model=gpt_tiny", "cluster=1x4xA100", "train.global_batch_size=8")
KEYS = [name for name in LayoutConfig.model_fields if name != "kind"]
FILTERS = {"tp", "pp", "cp", "pp_schedule", "micro_batch_size", "activation_checkpointing"}
"""Keys of which auto tries more than one value whatever the others are."""


def fixing(config: RunConfig, values: dict[str, object]) -> RunConfig:
    return config.model_copy(update={"layout": LayoutConfig(kind="manual", **values)})  # type: ignore[arg-type]


def legal(config: RunConfig) -> set[Layout]:
    setting, batch = setting_of(config), config.train.global_batch_size
    return {
        layout
        for family in families(setting, batch, config.layout)
        for layout in family
        if broken_rule(setting.work, setting.machine, layout, batch) is None
    }


@cache
def auto() -> tuple[RunConfig, Setting, list[Layout]]:
    config = composed(*SMALL)
    return config, setting_of(config), sorted(legal(config), key=repr)


def test_manual_with_nothing_fixed_is_auto() -> None:
    words = ("model=gpt_70b", "cluster=6x8xA100")
    found = legal(composed(*words))
    assert legal(composed(*words, "layout=manual")) == found
    assert {layout.pp for layout in found} >= {1, 2, 3, 4, 6, 12, 24}
    assert {layout.pp_schedule for layout in found} == {"1f1b", "dualpipev"}


@given(st.data())
def test_fixing_values_of_a_layout_keeps_it(data: st.DataObject) -> None:
    config, _, layouts = auto()
    layout = data.draw(st.sampled_from(layouts))
    names = data.draw(st.sets(st.sampled_from(KEYS)))
    fixed = legal(fixing(config, {name: getattr(layout, name) for name in names}))
    assert layout in fixed
    for other in fixed:
        assert all(getattr(other, name) == getattr(layout, name) for name in names)
    if names <= FILTERS:
        assert fixed <= set(layouts)


drawn = st.fixed_dictionaries(
    {
        "engine": st.sampled_from(("reference", "ddp", "deepspeed")),
        "dp": st.integers(1, 5),
        "tp": st.integers(1, 4),
        "pp": st.integers(1, 4),
        "cp": st.integers(1, 3),
        "pp_schedule": st.sampled_from(("1f1b", "dualpipev")),
        "cp_attention": st.sampled_from(("ulysses", "ring")),
        "zero_stage": st.integers(0, 3),
        "micro_batch_size": st.integers(1, 9),
        "activation_checkpointing": st.sampled_from(("none", "selective", "full")),
        "offload": st.sampled_from(("none", "optimizer", "parameters")),
        "sequence_parallel": st.booleans(),
    }
)


@given(drawn)
def test_a_layout_that_is_fixed_in_full_is_a_candidate_or_refused(
    values: dict[str, object],
) -> None:
    """A legal one is the only candidate; another is refused with a reason and a way out."""
    base, setting, _ = auto()
    config = fixing(base, values)
    batch = config.train.global_batch_size
    rows = batch // int(str(values["dp"]))
    micro = int(str(values["micro_batch_size"]))
    layout = Layout(**values, grad_accum_steps=rows // micro)  # type: ignore[arg-type]
    rule = broken_rule(setting.work, setting.machine, layout, batch)
    if rule is not None or (layout.engine == "reference" and layout.zero_stage > 1):
        with pytest.raises(PlanError) as refused:
            ranking_of(config)
        assert refused.value.fix
        text = str(refused.value).lower()
        assert any(f"{name}={value}".lower() in text for name, value in values.items())
        return
    found = ranking_of(config)
    assert [one.layout for one in (*found.fitting, *found.too_large)] == [layout]
    usual = legal(fixing(base, {"offload": layout.offload, "dp": layout.dp}))
    assert layout in usual or is_unusual(layout, setting)


def is_unusual(layout: Layout, setting: Setting) -> bool:
    """Whether auto passes a legal layout over for what would be the same, or never faster."""
    heads = setting.work.n_heads // layout.tp
    return (
        layout.cp_attention != ("ring" if heads % layout.cp else "ulysses")
        or layout.sequence_parallel != (layout.tp > 1)
        or any(degree & (degree - 1) for degree in (layout.tp, layout.cp))
        or (layout.zero_stage > 1 and layout.replicas == 1)
        or (layout.engine == "deepspeed" and layout.world_size == 1)
        or (layout.engine == "ddp" and layout.dp == 1)
        or (layout.engine == "reference" and layout.zero_stage == 0)
    )


def test_one_order_of_grids_data_parallelism_alone_first() -> None:
    _, setting, _ = auto()
    for fixed in (OPEN, LayoutConfig(kind="manual", zero_stage=1)):
        ranks = [
            grid.tp * grid.pp * grid.cp for grid in grids(setting.work, setting.machine, 8, fixed)
        ]
        assert ranks == sorted(ranks)
        assert ranks[0] == 1


def test_a_micro_batch_is_refused_only_where_no_degrees_take_it() -> None:
    """A rank has 6 sequences with dp=8, but with fewer replicas 16 of them are whole."""
    config = composed(
        "model=gpt_7b",
        "cluster=8xA100",
        "train.global_batch_size=48",
        "layout=manual",
        "layout.micro_batch_size=16",
    )
    assert {layout.dp for layout in legal(config)} <= {1, 3}
    assert legal(config)


def test_weights_of_one_device_are_offloaded_too() -> None:
    config = composed("model=gpt_7b", "cluster=1xA100")
    offloaded = OPEN.model_copy(update={"offload": "parameters"})
    found = legal(config.model_copy(update={"layout": offloaded}))
    assert {(layout.dp, layout.zero_stage, layout.engine) for layout in found} == {
        (1, 3, "deepspeed")
    }


def test_a_refusal_on_many_devices_tries_few_values() -> None:
    config = composed(
        "model=gpt_70b", "cluster=8x8xH100", "cluster.n_nodes=2048", "layout=manual", "layout.tp=7"
    )
    checked = 0

    def counting(*arguments: object) -> str | None:
        nonlocal checked
        checked += 1
        return broken_rule(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scaling.planner.refusals.broken_rule", counting)
        error = illegal(config, setting_of(config))
    assert "tp=7 does not divide n_heads=64" in str(error)
    assert error.fix == "Use tp from {1, 2, 4, 8}."
    assert checked < 100_000


numbers = st.integers(0, 2**60)
amounts = st.floats(0, 1e30, allow_nan=False)


@cache
def planned() -> RunPlan:
    return make_plan(composed("model=gpt_125m", "cluster=8xA100"))


@settings(max_examples=25)
@given(st.data())
def test_plans_go_through_json_and_back(data: st.DataObject) -> None:
    plan = planned()
    assert plan.time is not None

    def other(part: object, strategy: st.SearchStrategy[object]) -> dict[str, object]:
        return {field.name: data.draw(strategy) for field in fields(part)}  # type: ignore[arg-type]

    layout = data.draw(st.sampled_from(auto()[2]))
    memory = replace(plan.memory, **other(plan.memory, numbers))  # type: ignore[arg-type]
    time = replace(plan.time, **other(plan.time, amounts))  # type: ignore[arg-type]
    drawn_plan = replace(
        plan,
        layout=replace(layout, shard_ranks=data.draw(st.none() | st.integers(1, 8))),
        counts=replace(plan.counts, **other(plan.counts, numbers)),  # type: ignore[arg-type]
        memory=memory,
        time=data.draw(st.sampled_from((None, time))),
        n_tokens=data.draw(numbers),
        flops=data.draw(numbers),
        time_scale=data.draw(amounts),
        hours=data.draw(st.none() | amounts),
        usd=data.draw(st.none() | amounts),
        kwh=data.draw(st.none() | amounts),
    )
    assert RunPlan.from_dict(json.loads(json.dumps(drawn_plan.to_dict()))) == drawn_plan


def test_auto_looks_at_micro_batches_up_to_a_limit() -> None:
    config = composed("model=gpt_tiny", "cluster=1xA100", "train.global_batch_size=512")
    assert max(layout.micro_batch_size for layout in legal(config)) == MOST_MICRO_BATCH
    wanted = legal(fixing(config, {"micro_batch_size": 256}))
    assert {layout.micro_batch_size for layout in wanted} == {256}
