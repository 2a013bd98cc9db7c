"""`python -m scaling.plan`: rules, ranking, words, bad input, and how much a search looks at."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.config.cluster_names import with_named_clusters
from scaling.config.hardware import device_names
from scaling.errors import ConfigError, PlanError
from scaling.plan import main
from scaling.planner import ranking as search_module
from scaling.planner.answer import ranked_plan
from scaling.planner.cost.setting import Setting, setting_of
from scaling.planner.layout import Layout
from scaling.planner.ranking import search
from scaling.planner.rules import broken_rule, not_run_here
from scaling.planner.run_plan import make_plan
from tests.support.configs import composed

LAYOUT = Layout(
    dp=8,
    tp=1,
    pp=1,
    zero_stage=1,
    micro_batch_size=1,
    grad_accum_steps=64,
    activation_checkpointing="none",
    engine="deepspeed",
)


def seven_b() -> Setting:
    return setting_of(composed("model=gpt_7b", "cluster=2x8xA100"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tp": 16, "dp": 1}, "tp=16 is more than the 8 devices of a node"),
        ({"tp": 3, "dp": 4}, "tp=3 does not divide n_heads=32"),
        ({"pp": 64}, "needs more than the 16 devices"),
        ({"pp": 2, "zero_stage": 2}, "DeepSpeed's pipeline engine takes stage 1 only"),
        ({"pp": 2, "virtual_pp": 2}, "no interleaved schedule"),
        ({"pp": 2, "grad_accum_steps": 1}, "pp=2 would idle"),
        ({"zero_stage": 0}, "zero_stage=0"),
        ({"dp": 3}, "dp=3 x micro_batch_size=1 does not divide train.global_batch_size=512"),
        ({"sequence_parallel": True}, "needs tp above 1"),
        ({"offload": "parameters"}, "weights are offloaded at stage 3 only"),
        ({"cp": 2, "pp": 2, "dp": 4}, "does not deal positions"),
    ],
    ids=str,
)
def test_an_illegal_layout_is_refused_by_its_rule(changes: dict[str, object], words: str) -> None:
    setting = seven_b()
    rule = broken_rule(setting.work, setting.machine, replace(LAYOUT, **changes), 512)  # type: ignore[arg-type]
    assert rule is not None
    assert words in rule
    assert broken_rule(setting.work, setting.machine, LAYOUT, 512) is None


def test_encoders_with_decoders_are_cut_into_stages() -> None:
    setting = setting_of(composed("model=t5_large", "cluster=8xA100"))
    assert broken_rule(setting.work, setting.machine, replace(LAYOUT, dp=4, pp=2), 512) is None


@given(
    st.sampled_from(["gpt_125m", "gpt_7b", "gpt_70b", "t5_base", "bert_large"]),
    st.sampled_from([6, 64, 1024]),
)
def test_every_ranked_layout_is_legal_fits_and_uses_the_devices(model: str, batch: int) -> None:
    setting = setting_of(composed(f"model={model}", "cluster=4x8xA100"))
    ranking = search(setting, batch)
    assert ranking.fitting
    world = {found.layout.world_size for found in ranking.fitting}
    assert max(world) <= 32
    assert batch % 32 or world == {32}
    for found in ranking.fitting:
        layout = found.layout
        assert broken_rule(setting.work, setting.machine, layout, batch) is None
        assert layout.dp * layout.micro_batch_size * layout.grad_accum_steps == batch
        assert found.need_bytes < found.usable_bytes
        assert found.p_fits >= 0.8
        assert found.time is not None
        assert found.time.step_time_s > 0


def test_the_fastest_that_surely_fits_is_first() -> None:
    setting = seven_b()
    fitting = search(setting, 512).fitting
    sure = [found for found in fitting if found.verdict == "fits"]
    assert fitting[: len(sure)] == sure
    rates = [(found.mfu or 0.0) * found.layout.world_size for found in sure]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 1.2 * rates[-1]


def test_more_of_a_resource_never_makes_the_best_slower() -> None:
    setting = seven_b()
    best = search(setting, 512).fitting[0].time
    assert best is not None
    machine = setting.machine
    assert machine.intra_bytes_per_s is not None
    for better in (
        replace(machine, intra_bytes_per_s=2 * machine.intra_bytes_per_s),
        replace(machine, memory_bytes=2 * machine.memory_bytes),
    ):
        faster = search(replace(setting, machine=better), 512).fitting[0].time
        assert faster is not None
        assert faster.step_time_s <= best.step_time_s


@pytest.mark.parametrize("n_nodes", [1, 16, 2048])
def test_no_more_is_predicted_than_is_legal(n_nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the cost of a search grows as the number of legal layouts: of 10^12 parameters on 16384
    devices, less than 1000."""
    shape = (
        "model.n_layers=128",
        "model.d_model=25600",
        "model.n_heads=160",
        "train.global_batch_size=4096",
    )
    setting = setting_of(
        composed("model=gpt_175b", "cluster=8x8xH100", f"cluster.n_nodes={n_nodes}", *shape)
    )
    checked, predicted = [0], [0]
    check, predict = search_module.broken_rule, Setting.predict

    def counting_check(*arguments: Any) -> str | None:
        checked[0] += 1
        return check(*arguments)

    def counting_predict(self: Setting, *arguments: Any) -> Any:
        predicted[0] += 1
        return predict(self, *arguments)

    monkeypatch.setattr(search_module, "broken_rule", counting_check)
    monkeypatch.setattr(Setting, "predict", counting_predict)
    ranking = search(setting, 4096)
    assert predicted[0] == ranking.n_legal == len(ranking.fitting) + len(ranking.too_large) < 1000
    assert checked[0] < 30 * ranking.n_legal
    assert n_nodes < 2048 or ranking.fitting[0].layout.world_size == 16384
    assert setting.work.n_params > 1e12


def test_all_legal_degrees_run_here_but_virtual_stages() -> None:
    for changes in (
        {},
        {"tp": 2},
        {"pp": 2},
        {"cp": 2},
        {"offload": "optimizer"},
        {"activation_checkpointing": "selective"},
    ):
        assert not_run_here(replace(LAYOUT, **changes)) is None  # type: ignore[arg-type]
    assert not_run_here(replace(LAYOUT, pp=2, virtual_pp=2)) is not None


def test_the_command_prints_ranks_reasons_and_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=gpt_7b", "cluster=8xH100", "--refused"]) == 0
    out = capsys.readouterr().out
    text = " ".join(out.split())  # lines wrap at the width of the screen
    for part in (
        "parameters",
        "MFU, 80 %",
        "is first:",
        "goodput",
        "USD",
        "kWh",
        "kg CO2e",
        "memory a device:",
        "a checkpoint stops training for",
        "checkpoint every",
        "Refused",
        "zero_stage=0: DeepSpeed's bf16 optimiser",
        "virtual_pp=2: DeepSpeed's pipeline has no interleaved schedule",
        "zero_stage=2 with pp=2: DeepSpeed's pipeline engine takes stage 1 only",
        "legal kinds do not fit",
    ):
        assert part in text


def test_the_answer_is_json_and_goes_to_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    assert (
        main(["model=gpt_1b", "cluster=1x4xL40S", "--json", "--refused", f"plan.output={path}"])
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer == json.loads(path.read_text())
    first = answer["layouts"][0]
    assert all(rule["n_layouts"] >= len(rule["such_as"]) > 0 for rule in answer["refused"])
    assert answer["too_large"] == sorted(answer["too_large"], key=lambda found: found["need_bytes"])
    assert all(found["p_fits"] < 0.8 for found in answer["too_large"])
    assert first["memory_bytes"]["total"] == sum(
        v for k, v in first["memory_bytes"].items() if k not in ("total", "need")
    )
    assert sum(first["time_s"].values()) == pytest.approx(first["step_time_s"])
    assert first["mfu_interval"][0] < first["mfu"] < first["mfu_interval"][1]


def test_where_nothing_fits_it_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=gpt_175b", "cluster=1x8xA100"]) == 2
    out = capsys.readouterr().out
    for part in ("Nothing fits", "The smallest legal layout", "such devices it fits", "ffload"):
        assert part in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cluster=8xT1000"], "cluster=8xT1000: gpu='T1000' is not in the hardware table"),
        (["cluster=0x8xA100"], "has no devices"),
        (["cluster=2x8xA100", "train.global_batch_size=0"], "train.global_batch_size=0"),
        (["cluster=8xA100", "model.n_heads=7"], "n_heads=7"),
        (["--jsn"], "there is no flag --jsn"),
        (
            ["cluster=8xA100", "plan.output=/no/such/place/plan.json"],
            "plan.output=/no/such/place/plan.json cannot be written",
        ),
        (
            ["cluster=8xA100", "plan.calibrate=/no/such.csv"],
            "there is no /no/such.csv (plan.calibrate)",
        ),
        (
            ["cluster=8xA100", "plan.calibrate=/no/such.json"],
            "there is no /no/such.json (plan.calibrate)",
        ),
        (["cluster=8xA100", "plan.fp8=true"], "A100-80GB has no products in 8 bits"),
        (
            ["model=gpt_7b", "cluster=8xA100", "layout=manual", "layout.tp=3"],
            "tp=3 does not divide n_heads=32",
        ),
        (
            ["model=gpt_7b", "cluster=8xA100", "layout=manual", "layout.tp=16"],
            "layout.tp=16 needs 16 devices, and the cluster has 8",
        ),
        (["cluster=8xA100", "layout=manual", "layout.pp=-2"], "layout.pp=-2"),
        (
            [
                "model=gpt_7b",
                "cluster=8xA100",
                "layout=manual",
                "layout.pp=2",
                "layout.zero_stage=3",
            ],
            "takes stage 1 only",
        ),
    ],
    ids=str,
)
def test_bad_input_names_key_and_value(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) in (1, 2)
    assert told in capsys.readouterr().err


def test_clusters_go_by_their_names() -> None:
    config = composed("model=gpt_1b", "cluster=2x4xV100-spot")
    assert (
        config.cluster.n_nodes,
        config.cluster.devices_per_node,
        config.cluster.preemptible,
    ) == (2, 4, True)
    assert config.cluster.device.name == "V100-32GB"
    assert with_named_clusters(["cluster=8xA100", "cluster=local"]) == [
        "cluster=8xA100",
        "cluster=local",
    ]
    for name in device_names():
        assert composed("model=gpt_1b", f"cluster=1x2x{name}").cluster.device.name == name
    with pytest.raises(ConfigError, match="is not in the hardware table"):
        with_named_clusters(["cluster=8xB300X"])


AUTO = [
    (),
    ("model=gpt_7b", "cluster=8xA100"),
    ("model=t5_large", "cluster=1x4xL4"),
    ("model=gpt_70b", "cluster=8x8xH100"),
]


@pytest.mark.parametrize(
    "overrides",
    [*AUTO, ("model=gpt_13b", "cluster=8xH100", "layout=manual", "layout.tp=4")],
    ids=str,
)
def test_a_run_takes_the_first_that_is_ranked(overrides: tuple[str, ...]) -> None:
    config = composed(*overrides)
    first, chosen = ranked_plan(config)["layouts"][0], make_plan(config)
    layout = chosen.to_dict()["layout"]
    assert {name: first[name] for name in layout} == layout
    assert first["memory_bytes"]["total"] == chosen.memory.total
    assert chosen.time is None or first["step_time_s"] == pytest.approx(chosen.time.step_time_s)


def test_what_is_fixed_stays(capsys: pytest.CaptureFixture[str]) -> None:
    fixed = (
        "layout=manual",
        "layout.tp=2",
        "layout.activation_checkpointing=full",
        "layout.offload=optimizer",
    )
    assert main(["model=gpt_7b", "cluster=8xA100", *fixed, "--json"]) == 0
    layouts = json.loads(capsys.readouterr().out)["layouts"]
    assert {(one["tp"], one["activation_checkpointing"], one["offload"]) for one in layouts} == {
        (2, "full", "optimizer")
    }
    assert {one["zero_stage"] for one in layouts} == {1, 2, 3}
    assert all(one["host_bytes_per_node"] > 6.6e9 * 12 for one in layouts)


def test_what_no_engine_computes_is_planned_but_not_run() -> None:
    config = composed("model=gpt_7b", "cluster=8xH100", "plan.fp8=true")
    eight, sixteen = ranked_plan(config), ranked_plan(composed("model=gpt_7b", "cluster=8xH100"))
    assert 1.1 < sixteen["layouts"][0]["step_time_s"] / eight["layouts"][0]["step_time_s"] < 2
    assert not any(layout["runs_here"] for layout in eight["layouts"])
    with pytest.raises(PlanError, match=r"Leave plan\.fp8=false to run"):
        make_plan(config)
    assert "fp16" in ranked_plan(composed("model=gpt_125m", "cluster=1x1xV100"))["notes"][0]
