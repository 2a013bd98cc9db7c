"""Rules and choices of the planner, and the words in which it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.config.run_config import RunConfig
from scaling.errors import PlanError
from scaling.planner.budget import token_budget
from scaling.planner.cost.setting import setting_of
from scaling.planner.cost.time import estimate_time
from scaling.planner.run_plan import make_plan
from scaling.planner.space import divisors
from tests.support.configs import MODELS, composed

CLUSTERS = ["1xA100", "8xA100", "8xA100-40GB", "4x8xA100-spot", "8xH200", "8x8xH100"]


def on_cpus(n_workers: int, *overrides: str, memory_gb: float = 12) -> RunConfig:
    machine = (
        f"cluster.devices_per_node={n_workers}",
        "cluster.device.name=test CPU",
        f"cluster.device.memory_gb={memory_gb}",
    )
    return composed(*overrides, *machine)


def refusal(config: RunConfig) -> str:
    with pytest.raises(PlanError) as caught:
        make_plan(config)
    return str(caught.value)


def test_default_run_is_one_micro_batch_on_each_of_two_workers() -> None:
    plan = make_plan(composed())
    layout = plan.layout
    assert (layout.dp, layout.zero_stage, layout.micro_batch_size, layout.grad_accum_steps) == (
        2,
        1,
        8,
        1,
    )
    assert (layout.engine, layout.activation_checkpointing, layout.world_size) == (
        "deepspeed",
        "none",
        2,
    )
    assert (plan.n_steps, plan.n_tokens) == (489, 489 * 4096)
    assert plan.time is plan.hours is plan.usd is plan.kwh is None


def test_one_device_runs_the_reference_engine() -> None:
    layout = make_plan(on_cpus(1)).layout
    assert (layout.engine, layout.dp, layout.micro_batch_size) == ("reference", 1, 16)
    assert make_plan(on_cpus(1, "layout.engine=deepspeed")).layout.engine == "deepspeed"
    assert make_plan(on_cpus(2, "layout.engine=reference")).layout.dp == 1
    assert (
        make_plan(on_cpus(1, "layout=manual", "layout.zero_stage=3")).layout.engine == "deepspeed"
    )


@given(
    batch=st.integers(1, 96),
    n_workers=st.integers(1, 12),
    memory_gb=st.floats(0.75, 2),
    checkpointing=st.sampled_from(("none", "full")),
)
def test_a_plan_cuts_the_whole_batch_and_fits(
    batch: int, n_workers: int, memory_gb: float, checkpointing: str
) -> None:
    base = composed()
    device = base.cluster.device.model_copy(update={"memory_gb": memory_gb})
    config = base.model_copy(
        update={
            "cluster": base.cluster.model_copy(
                update={"device": device, "devices_per_node": n_workers}
            ),
            "train": base.train.model_copy(update={"global_batch_size": batch}),
            "layout": base.layout.model_copy(
                update={"kind": "manual", "activation_checkpointing": checkpointing}
            ),
        }
    )
    layout = make_plan(config).layout
    assert layout.dp * layout.micro_batch_size * layout.grad_accum_steps == batch
    assert layout.dp == max(dp for dp in range(1, n_workers + 1) if batch % dp == 0)
    assert layout.activation_checkpointing == checkpointing
    assert setting_of(config).predict(layout).fits


@given(st.integers(1, 5000))
def test_divisors(n: int) -> None:
    assert list(divisors(n)) == [d for d in range(1, n + 1) if n % d == 0]


def test_memory_decides_stage_micro_batch_and_checkpointing() -> None:
    layouts = [
        make_plan(composed(f"model=gpt_{size}", "cluster=8xA100")).layout
        for size in ("1b", "13b", "30b")
    ]
    assert [(layout.zero_stage, layout.micro_batch_size) for layout in layouts] == [
        (1, 16),
        (1, 1),
        (1, 1),
    ]
    assert [layout.activation_checkpointing for layout in layouts] == ["none", "none", "selective"]
    assert [layout.tp * layout.pp for layout in layouts] == [1, 2, 8]


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_planned_or_refused_with_numbers(model: str, cluster: str) -> None:
    config = composed(f"model={model}").model_copy(
        update={"cluster": composed(f"cluster={cluster}").cluster}
    )
    try:
        plan = make_plan(config)
    except PlanError as error:
        text = str(error)
        assert f"{model} does not fit: the smallest layout needs" in text
        assert "at least 80% is required" in text
        assert "such devices" in text
    else:
        assert plan.memory.need <= 0.95 * plan.device_memory_bytes
        assert plan.time is not None
        assert 0 < plan.time.mfu < 0.75
        assert json.loads(json.dumps(plan.to_dict())) == plan.to_dict()


def test_token_budget_is_twenty_a_parameter_in_whole_steps() -> None:
    config = composed("model=gpt_10m", "train.n_tokens=null")
    n_tokens = token_budget(config)
    assert n_tokens % (32 * 256) == 0
    assert 0 <= n_tokens - 20 * make_plan(config).counts.n_params < 32 * 256
    assert token_budget(composed("train.n_tokens=4097")) == 8192
    assert token_budget(composed("train.n_tokens=4096")) == 4096


def test_price_and_energy_are_of_the_whole_cluster() -> None:
    plan = make_plan(composed("model=gpt_125m", "cluster=8xA100", "cluster.usd_per_device_hour=2"))
    assert plan.hours is not None
    assert plan.usd == pytest.approx(plan.hours * 8 * 2)
    assert plan.kwh == pytest.approx(plan.hours * 8 * 0.4)
    assert plan.flops == plan.n_tokens * plan.counts.flops_per_token


def test_checkpointing_costs_a_forward_and_links_cost_time() -> None:
    config = composed(
        "model=gpt_7b", "cluster=4x8xA100", "layout=manual", "layout.activation_checkpointing=full"
    )
    full = make_plan(config)
    none = estimate_time(config, replace(full.layout, activation_checkpointing="none"))
    slow_config = composed("model=gpt_7b", "cluster=4x8xA100", "cluster.inter_node_gb_per_s=0.1")
    slow = estimate_time(slow_config, full.layout)
    assert full.time is not None
    assert none is not None
    assert slow is not None
    # of three parts, or a little less: the head is not made again
    assert 1.25 < full.time.compute_s / none.compute_s < 4 / 3
    assert slow.communication_s > 50 * full.time.communication_s
    assert slow.step_time_s > full.time.step_time_s


REFUSALS = [
    (("layout.dp=3",), "layout.dp=3 needs 3 devices, and the cluster has 2", "Use dp from {1, 2}"),
    (
        ("layout.micro_batch_size=3",),
        "micro_batch_size=3 does not divide the 8 sequences of a rank",
        "{1, 2, 4, 8}",
    ),
    (
        ("layout.engine=reference", "layout.dp=2"),
        "runs on one device, but layout.dp=2",
        "layout.engine=deepspeed",
    ),
    (
        ("layout.engine=reference", "layout.zero_stage=2"),
        "has no ZeRO, but layout.zero_stage=2",
        "zero_stage null",
    ),
    (
        ("layout.pp=2", "layout.pp_schedule=dualpipev", "model.n_layers=3"),
        "is more than the 3 blocks of all layers",
        "Leave layout.pp_schedule null",
    ),
    (
        ("layout.pp=1", "layout.pp_schedule=dualpipev"),
        "pp_schedule=dualpipev needs pp above 1",
        "Leave layout.pp_schedule null",
    ),
    (
        ("layout.cp=2", "layout.cp_attention=ring", "attention=linear"),
        "only attention=full",
        "Leave layout.cp_attention null",
    ),
    (
        ("schedule.warmup_tokens=3M",),
        "schedule.warmup_tokens=3M is 3000000 tokens, and the whole run has 2002944",
        "such as 2%",
    ),
    (
        ("schedule=wsd", "schedule.decay_tokens=99%"),
        "are 40059 + 1982915 tokens",
        "at most 1962885",
    ),
]


@pytest.mark.parametrize(("overrides", "what", "fix"), REFUSALS, ids=lambda value: str(value)[:40])
def test_a_broken_rule_is_named_with_what_would_work(
    overrides: tuple[str, ...], what: str, fix: str
) -> None:
    text = refusal(on_cpus(2, "layout=manual", *overrides))
    assert what in text.splitlines()[0]
    assert "model=gpt_nano" in text.splitlines()[0]
    assert fix in text.splitlines()[1]


def test_dp_must_divide_the_batch() -> None:
    text = refusal(on_cpus(8, "layout=manual", "layout.dp=3", "train.global_batch_size=16"))
    assert "layout.dp=3 does not divide train.global_batch_size=16" in text
    assert "Use dp from {1, 2, 4, 8}" in text
    assert "such as 18" in text


def test_fewer_devices_than_the_cluster_has_are_allowed() -> None:
    assert make_plan(on_cpus(8, "layout=manual", "layout.dp=2")).layout.dp == 2
    assert make_plan(on_cpus(8, "train.global_batch_size=6")).layout.dp == 6


def test_what_does_not_fit_says_how_many_devices_would() -> None:
    text = refusal(composed("model=gpt_70b", "cluster=8xA100"))
    assert "On 16 such devices it fits: dp=1 tp=" in text
    assert "With layout.offload=optimizer it fits, if a node has" in text
    enough = composed("model=gpt_70b", "cluster=4x8xA100")
    assert make_plan(enough).layout.world_size == 32


def test_an_explicit_layout_that_does_not_fit_names_one_that_does() -> None:
    text = refusal(
        composed(
            "model=gpt_7b",
            "cluster=8xA100",
            "layout=manual",
            "layout.tp=1",
            "layout.pp=1",
            "layout.cp=1",
            "layout.micro_batch_size=32",
            "layout.activation_checkpointing=none",
        )
    )
    assert "gpt_7b does not fit" in text
    assert "With the same degrees this fits: dp=8 zero_stage=2 micro_batch_size=4." in text
    assert "such devices (" not in text  # more of them are not needed


def test_no_number_of_devices_holds_one_long_sequence() -> None:
    text = refusal(on_cpus(2, "train.seq_len=1M", memory_gb=0.65))
    assert "No number of such devices up to 65536 is enough" in text
    assert "A train.seq_len shorter than 1000000 helps too." in text


def test_planning_imports_no_heavy_library() -> None:
    code = (
        "import sys, scaling.planner.run_plan, scaling.planner.machines.detect, "
        "scaling.planner.show.plan;"
        "print([name for name in ('torch', 'ray', 'deepspeed', 'rich', 'pynvml', "
        "'omegaconf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
