"""`python -m scaling.plan`: rules, ranking, words, bad input, speed; and `scaling.plan.score` on a small table."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_config import composed

from scaling.errors import ConfigError, DataError
from scaling.plan import score
from scaling.plan.accuracy import report
from scaling.plan.accuracy import score as score_cases
from scaling.plan.cluster_names import with_named_clusters
from scaling.plan.cost import goodput_of
from scaling.plan.degrees import Layout
from scaling.plan.hardware import device_names, device_sheet
from scaling.plan.layout import make_plan
from scaling.plan.row_links import links_of
from scaling.plan.rules import broken_rule, not_run_here
from scaling.plan.search import search
from scaling.plan.setting import Setting, setting_of
from scaling.plan.table import case_of, read_cases
from scaling.planning import main

LAYOUT = Layout(8, 1, 1, 1, 1, 64, "none", "deepspeed")
ROW = {
    "source": "made", "system": "Megatron-LM", "model": "GPT",
    "n_layers": "24", "hidden": "2048", "heads": "16", "vocab": "50304",
    "seq_len": "2048", "gpu": "A100-SXM", "gpu_mem_gb": "80", "n_gpus": "8", "nodes": "1", "tp": "1", "pp": "1", "dp": "8",
    "zero_stage_or_sharding": "1", "micro_batch": "2", "global_batch_seqs": "64", "act_checkpoint": "full", "precision": "bf16",
    "attention_impl": "flash", "status": "ok", "mfu_std": "0.4", "peak_mem_gb": "30", "tokens_per_s_per_gpu": "14000",
}  # fmt: skip


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
        ({"sp": 2, "pp": 2, "dp": 4}, "does not deal positions"),
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


@given(st.sampled_from(["gpt_125m", "gpt_7b", "gpt_70b", "t5_base", "bert_large"]), st.sampled_from([6, 64, 1024]))
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
        assert found.p_fits >= 0.75
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


def test_a_trillion_parameters_on_16384_devices_are_planned_in_time() -> None:
    shape = ("model.n_layers=128", "model.d_model=25600", "model.n_heads=160", "train.global_batch_size=4096")
    setting = setting_of(composed("model=gpt_175b", "cluster=8x8xH100", "cluster.n_nodes=2048", *shape))
    began = time.process_time()
    ranking = search(setting, 4096)
    assert time.process_time() - began < 2.5
    assert ranking.fitting[0].layout.world_size == 16384
    assert setting.work.n_params > 1e12


def test_all_legal_degrees_run_here_but_virtual_stages() -> None:
    for changes in ({}, {"tp": 2}, {"pp": 2}, {"sp": 2}, {"offload": "optimizer"}, {"activation_checkpointing": "selective"}):
        assert not_run_here(replace(LAYOUT, **changes)) is None  # type: ignore[arg-type]
    assert not_run_here(replace(LAYOUT, pp=2, virtual_pp=2)) is not None


def test_the_command_prints_ranks_reasons_and_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=gpt_7b", "cluster=8xH100", "--refused"]) == 0
    out = capsys.readouterr().out
    for part in (
        "parameters",
        "MFU (80 %)",
        "is first:",
        "goodput",
        "USD",
        "kWh",
        "kg CO2e",
        "memory a device:",
        "Refused",
        "zero_stage",
    ):
        assert part in out


def test_the_answer_is_json_and_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    assert main(["model=gpt_1b", "cluster=1x4xL40S", "--json", f"plan.output={path}"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == json.loads(path.read_text())
    first = answer["layouts"][0]
    assert first["memory_bytes"]["total"] == sum(v for k, v in first["memory_bytes"].items() if k not in ("total", "need"))
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
        (["cluster=8xT1000"], "cluster=8xT1000 names the GPU 'T1000'"),
        (["cluster=0x8xA100"], "has no devices"),
        (["cluster=2x8xA100", "train.global_batch_size=0"], "train.global_batch_size=0"),
        (["cluster=8xA100", "model.n_heads=7"], "n_heads=7"),
        (["--jsn"], "there is no flag --jsn"),
        (["cluster=8xA100", "plan.output=/no/such/place/plan.json"], "plan.output=/no/such/place/plan.json cannot be written"),
        (["cluster=8xA100", "plan.calibrate=/no/such.csv"], "/no/such.csv cannot be read"),
    ],
    ids=str,
)
def test_bad_input_names_key_and_value(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) in (1, 2)
    assert told in capsys.readouterr().err


def test_clusters_go_by_their_names() -> None:
    config = composed("model=gpt_1b", "cluster=2x4xV100-spot")
    assert (config.cluster.n_nodes, config.cluster.devices_per_node, config.cluster.preemptible) == (2, 4, True)
    assert config.cluster.device.name == "V100-32GB"
    assert with_named_clusters(["cluster=8xA100", "cluster=local"]) == ["cluster=8xA100", "cluster=local"]
    for name in device_names():
        assert composed("model=gpt_1b", f"cluster=1x2x{name}").cluster.device.name == name
    with pytest.raises(ConfigError, match="not in conf/cluster/device"):
        with_named_clusters(["cluster=8xB300X"])


@pytest.mark.parametrize(
    ("written", "device"),
    [("A100-SXM", "A100-80GB"), ("NVIDIA H100 80GB", "H100-80GB"), ("A100-SXM-40GB", "A100-40GB"), ("MI300X", "MI300X-192GB"),
     ("RTX 4090", "RTX4090-24GB"), ("H100-SXM-79GB", "H100-80GB")],
)  # fmt: skip
def test_devices_are_found_as_people_write_them(written: str, device: str) -> None:
    assert device_sheet(written)["name"] == device


def test_without_known_rates_the_first_is_what_a_run_chooses() -> None:
    config = composed()
    first, chosen = search(setting_of(config), 16).fitting[0].layout, make_plan(config).layout
    assert first == chosen


def test_failures_cost_more_on_more_devices() -> None:
    small, _ = goodput_of(8, 1, 10**9, preemptible=False)
    large, every_s = goodput_of(16384, 2048, 10**12, preemptible=False)
    spot, sooner_s = goodput_of(16384, 2048, 10**12, preemptible=True)
    assert 1 > small > large > spot > 0
    assert sooner_s < every_s


def test_a_row_becomes_what_plans() -> None:
    case = case_of(ROW)
    (layout,) = case.layouts
    assert (layout.dp, layout.grad_accum_steps, layout.zero_stage, layout.activation_checkpointing) == (8, 4, 1, "full")
    assert (case.fits, case.mfu, case.memory_metric) == (True, 0.4, "reserved")
    assert len(case_of(ROW | {"tp": "", "dp": "", "micro_batch": "", "act_checkpoint": ""}).layouts) > 10
    sheet = device_sheet("A100")
    for text, intra, inter in (
        ("8x200 Gbps HDR IB per node; NVLink", 300, 25),
        ("8 x HDR InfiniBand", 300, 25),
        ("NVLink 600 GB/s; 400 Gb/s EFA", 300, 6.25),
        ("200 Gb/s per GPU", 300, 25),
        ("3.2 Tb/s RoCE", 300, 50),
        ("PCIe; 100 Gbps Ethernet", 20, 12.5 / 8),
        ("Omni-Path; NVLink in node", 300, 12.5 / 8),
        ("", 300, 25),
    ):
        links = links_of(text, sheet, 8)
        assert (links.intra_gb_per_s, links.inter_gb_per_s) == (intra, inter), text


def test_score_reads_a_table_and_writes_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        ROW,
        ROW | {"micro_batch": "4", "mfu_std": "0.42"},
        ROW | {"micro_batch": "8", "hidden": "16384", "status": "oom", "mfu_std": ""},
    ]
    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROW)
        writer.writeheader()
        writer.writerows(rows)
    assert score.main([str(table), "--json", str(tmp_path / "out.json")]) == 0
    assert "made" in capsys.readouterr().out
    out = json.loads((tmp_path / "out.json").read_text())
    assert len(out["rows"]) == 3
    pooled = out["errors"]["pooled"]
    assert (pooled["verdict_accuracy"], pooled["oom_recall"], pooled["mfu_rows"]) == (1, 1, 2)
    cases = read_cases(table)
    one = report(score_cases(cases, calibrate=True))["pooled"]
    assert one["mfu_rows"] == 1
    assert one["mfu_median"] < pooled["mfu_median"]
    assert main(["model=gpt_1b", "cluster=8xA100", f"plan.calibrate={table}"]) == 0
    assert "as calibrated" in capsys.readouterr().out


@pytest.mark.parametrize(("column", "value"), [("gpu", "T1000"), ("hidden", "wide"), ("n_gpus", "-8"), ("n_layers", "")])
def test_a_bad_row_is_named(tmp_path: Path, column: str, value: str) -> None:
    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROW)
        writer.writeheader()
        writer.writerow(ROW | {column: value})
    with pytest.raises(DataError, match="line 2"):
        read_cases(table)
