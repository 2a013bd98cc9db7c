"""Rows of tables: what blank columns mean, the traits of programs,
`scaling.planner.measured.score`, and scales of one's own machine."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from scaling.config.hardware import device_sheet
from scaling.errors import DataError, PlanError
from scaling.plan import main
from scaling.planner.cost.constants import CONSTANTS
from scaling.planner.measured import score
from scaling.planner.measured.accuracy import report
from scaling.planner.measured.accuracy import score as score_cases
from scaling.planner.measured.calibrate import learn, scale_of, time_scale
from scaling.planner.measured.row_links import links_of
from scaling.planner.measured.systems import software_of
from scaling.planner.measured.table import case_of, read_cases
from scaling.planner.prediction import predict_case
from tests.support.configs import composed

ROW = {
    "source": "made",
    "system": "Megatron-LM",
    "model": "GPT",
    "n_layers": "24",
    "hidden": "2048",
    "heads": "16",
    "vocab": "50304",
    "seq_len": "2048",
    "gpu": "A100-SXM",
    "gpu_mem_gb": "80",
    "n_gpus": "8",
    "nodes": "1",
    "tp": "1",
    "pp": "1",
    "dp": "8",
    "zero_stage_or_sharding": "1",
    "micro_batch": "2",
    "global_batch_seqs": "64",
    "act_checkpoint": "full",
    "precision": "bf16",
    "attention_impl": "flash",
    "status": "ok",
    "mfu_std": "0.4",
    "peak_mem_gb": "30",
    "tokens_per_s_per_gpu": "14000",
}


@pytest.mark.parametrize(
    ("written", "device"),
    [
        ("A100-SXM", "A100-80GB"),
        ("NVIDIA H100 80GB", "H100-80GB"),
        ("A100-SXM-40GB", "A100-40GB"),
        ("MI300X", "MI300X-192GB"),
        ("RTX 4090", "RTX4090-24GB"),
        ("H100-SXM-79GB", "H100-80GB"),
        ("A800-SXM-80GB", "A800-80GB"),
        ("NVIDIA RTX A6000", "A6000-48GB"),
        ("AMD MI250X", "MI250X-128GB"),
        ("V100-SXM", "V100-32GB"),
    ],
)
def test_devices_are_found_as_people_write_them(written: str, device: str) -> None:
    assert device_sheet(written)["name"] == device


def test_a_row_becomes_what_plans() -> None:
    case = case_of(ROW)
    (layout,) = case.layouts
    assert (
        layout.dp,
        layout.grad_accum_steps,
        layout.zero_stage,
        layout.activation_checkpointing,
    ) == (8, 4, 1, "full")
    assert (case.fits, case.mfu, case.memory_metric) == (True, 0.4, "reserved")
    assert (
        len(case_of(ROW | {"tp": "", "dp": "", "micro_batch": "", "act_checkpoint": ""}).layouts)
        > 10
    )
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


def test_score_reads_a_table_and_writes_its_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("gpu", "T1000"),
        ("hidden", "wide"),
        ("n_gpus", "-8"),
        ("n_layers", ""),
        ("seq_len", "0"),
        ("mfu_std", "nan"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, column: str, value: str) -> None:
    table = tmp_path / "rows.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROW)
        writer.writeheader()
        writer.writerow(ROW | {column: value})
    with pytest.raises(DataError, match="line 2"):
        read_cases(table)


def written(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROW)
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_rows_that_cannot_be_read_leave_the_others_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = written(tmp_path / "rows.csv", ROW, ROW | {"gpu": "T1000"}, ROW | {"hidden": "-1"})
    assert score.main([str(table), "--json", str(tmp_path / "out.json")]) == 1
    told = capsys.readouterr()
    assert "line 3: gpu='T1000' is not in the hardware table" in told.err
    assert "line 4: hidden='-1' is not a number of 0 or more" in told.err
    assert "made" in told.out
    assert len(json.loads((tmp_path / "out.json").read_text())["rows"]) == 1


def test_blank_columns_mean_what_was_usual() -> None:
    blank = ROW | dict.fromkeys(
        ("tp", "pp", "dp", "attention_impl", "zero_stage_or_sharding", "peak_mem_gb", "vocab"), ""
    )
    fsdp = case_of(blank | {"system": "PyTorch FSDP"})
    assert {(layout.tp, layout.pp, layout.zero_stage) for layout in fsdp.layouts} == {(1, 1, 3)}
    megatron = case_of(blank | {"system": "Megatron-LM", "date": "2021-05"})
    assert {layout.tp for layout in megatron.layouts} == {1, 2, 4, 8}
    assert (
        megatron.software.attention,
        case_of(blank | {"date": "2024-05"}).software.attention,
    ) == ("softmax", "fused")
    assert case_of(blank | {"gpu_mem_gb": ""}).fits is None
    gated = case_of(
        blank
        | {
            "mlp": "",
            "hidden": "4096",
            "n_layers": "32",
            "ffn": "11008",
            "vocab": "32000",
            "params_b": "6.6",
        }
    )
    assert gated.work.gated
    assert not case_of(blank | {"mlp": "", "params_b": "1.3"}).work.gated


TRAITS: list[tuple[dict[str, str], dict[str, Any]]] = [
    (
        {"system": "Megatron-LM", "date": "2021", "precision": "fp16"},
        {"gradient_bytes": 2, "attention": "softmax"},
    ),
    (
        {"system": "Megatron-LM", "date": "2025"},
        {"name": "Megatron-Core", "flash": 3, "gradient_overlap": True},
    ),
    (
        {"system": "Megatron-DeepSpeed", "date": "2022"},
        {"whole_gradients": True, "pads_vocabulary": True},
    ),
    ({"system": "Megatron-DeepSpeed", "date": "2024"}, {"whole_gradients": False}),
    (
        {"system": "torchtitan FSDP2", "attention_impl": "sdpa"},
        {"selective": "half", "flash": 2, "fuses_norms": False},
    ),
    ({"system": "torchtitan + compile"}, {"fuses_norms": True, "elementwise": 1.0}),
    (
        {"system": "HF Trainer + DDP", "zero_stage_or_sharding": "0", "date": "2021"},
        {"weight_bytes": 6, "adam_bytes": 90},
    ),
    ({"system": "HF Trainer + FSDP"}, {"weight_bytes": 4, "hides_gathers": True}),
    ({"system": "DeepSpeed ZeRO-3"}, {"gradient_overlap": False, "hides_gathers": False}),
    ({"system": "something new"}, {"gradient_overlap": True, "attention": "fused"}),
    (
        {"system": "NeMo", "precision": "fp8", "attention_impl": "cuDNN fused"},
        {"fp8": True, "flash": 3},
    ),
    ({"system": "x", "attention_impl": "flash-attn v2.3"}, {"flash": 2}),
    ({"system": "x", "attention_impl": "eager"}, {"attention": "eager"}),
    ({"system": "x", "precision": "fp32"}, {"width": 4, "weight_bytes": 4}),
    ({"system": "x", "zero_stage_or_sharding": "1-2 overlapped"}, {"gradient_overlap": True}),
]


@pytest.mark.parametrize(
    ("row", "traits"), TRAITS, ids=lambda found: str(next(iter(found.values())))
)
def test_a_program_goes_by_its_name_and_date(row: dict[str, str], traits: dict[str, Any]) -> None:
    software = software_of(row)
    assert {name: getattr(software, name) for name in traits} == traits


def test_many_rows_are_trusted_more_than_one(tmp_path: Path) -> None:
    predicted = predict_case(case_of(ROW)).tokens_per_s_per_device
    assert predicted is not None
    rows = [ROW | {"tokens_per_s_per_gpu": str(predicted / 2)}] * 50
    one, many = (time_scale(read_cases(written(tmp_path / "rows.csv", *rows[:n]))) for n in (1, 50))
    assert 1 < one < many < 2
    assert many == pytest.approx(2, rel=0.05)
    assert one == pytest.approx(
        2 ** (CONSTANTS.between**2 / (CONSTANTS.between**2 + CONSTANTS.within**2))
    )


def test_runs_teach_the_scale_of_their_machine(tmp_path: Path) -> None:
    overrides = ("model=gpt_1b", "cluster=8xA100", f"run.root={tmp_path}")
    config = composed(*overrides)
    for run, measured in (("a", 400.0), ("b", 500.0), ("c", 600.0), ("b", 250.0)):
        path, scale = learn(config, run=run, n_devices=8, predicted=1000, measured=measured)
    # b ran again, and counts as it ran last
    assert (path, scale) == (tmp_path / "calibration.json", 2.5)
    calibrated = composed(*overrides, f"plan.calibrate={path}")
    assert scale_of(calibrated) == 2.5
    assert main([*overrides[:2], f"plan.calibrate={path}"]) == 0
    elsewhere = composed("model=gpt_1b", "cluster=8xH100", f"plan.calibrate={path}")
    with pytest.raises(PlanError, match=r"holds no run on H100-80GB .*, but on A100-80GB"):
        scale_of(elsewhere)
    path.write_text(path.read_text().replace('"planner": "', '"planner": "old'))
    with pytest.raises(PlanError, match="by this version of the planner"):
        scale_of(calibrated)
    path.write_text("{}")
    with pytest.raises(PlanError, match="holds no run"):
        scale_of(calibrated)
    path.write_text("[1]")
    with pytest.raises(PlanError, match="is no file of measured runs"):
        learn(calibrated, run="d", n_devices=8, predicted=1, measured=1)
