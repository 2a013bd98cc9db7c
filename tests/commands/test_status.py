"""The table of runs, and the loss curve."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scaling import status
from scaling.errors import DataError
from scaling.metrics import curve, names
from scaling.metrics.curve import plot_loss_curve, running_mean
from scaling.metrics.record import MetricLog
from scaling.runs.directory import RunDir
from scaling.runs.goodput import MEANING
from scaling.studies import status as statuses
from scaling.studies.status import newest_values


def make_run(path: Path, *kinds: str, n_steps: int = 20, **fields: str) -> RunDir:
    """A run whose record stands at step 20 of 40, a tenth of a second a step of 1000 tokens."""
    run_dir = RunDir(path).create()
    run_dir.write_plan({"n_steps": 40, "n_tokens": 40_000})
    for kind in kinds:
        run_dir.event(kind, **(fields if kind == kinds[-1] else {}))
    log = MetricLog(run_dir.metrics)
    for step in range(1, n_steps + 1):
        log.record(
            step,
            1000 * step,
            1e9,
            step / 10,
            {names.TRAIN_LOSS: 10 / step, names.TOKENS_PER_S: 10_000.0},
        )
        if step == n_steps // 2:
            log.record(step, 1000 * step, 1e9, step / 10, {names.VAL_LOSS: 1.25})
    return run_dir


def rows(capsys, *words: str) -> dict[str, dict]:
    assert status.main([*words, "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {row["name"]: row for row in found}


def test_a_row_says_how_the_run_stands(tmp_path, capsys):
    run_dir = make_run(tmp_path / "a", "start", "resume", "resume")
    with run_dir.lock():
        row = rows(capsys, f"run.root={tmp_path}")["a"]
    assert 0 <= row.pop("age_s") < 60
    assert row.pop("goodput") == pytest.approx(0.0, abs=1e-9)
    assert row.pop("seconds").keys() == MEANING.keys()
    assert row == {
        "name": "a",
        "path": str(tmp_path / "a"),
        "state": "running",
        "step": 20,
        "n_steps": 40,
        "loss": 0.5,
        "val_loss": 1.25,
        "tokens_per_s": 10_000.0,
        "restarts": 2,
        "eta_s": 2.0,
        "checkpoint_step": None,
        "curve": "█▃▂▂▁▁▁▁▁▁▁▁",
        "trouble": None,
    }


@pytest.mark.parametrize(
    ("kinds", "state"),
    [
        (["start"], "interrupted"),
        (["start", "checkpoint_committed"], "interrupted"),
        (["start", "preempted"], "preempted"),
        (["start", "stopped"], "stopped"),
        (["start", "pruned"], "pruned"),
        (["start", "failed"], "failed"),
        (["start", "failed", "resume", "finished"], "finished"),
        ([], "new"),
    ],
)
def test_states_without_a_driver(tmp_path, capsys, kinds, state):
    make_run(tmp_path / "a", *kinds)
    (tmp_path / "a" / "config.yaml").touch()
    row = rows(capsys, str(tmp_path))["a"]
    assert (row["state"], row["eta_s"]) == (state, None)


def test_the_checkpoint_is_shown_beside_the_last_record(tmp_path, capsys):
    run_dir = make_run(tmp_path / "a", "start", "stopped")
    (run_dir.checkpoints / "step-00000015").mkdir()
    assert rows(capsys, str(tmp_path))["a"]["checkpoint_step"] == 15
    status.main([str(tmp_path)])
    assert "20 / 40, saved 15" in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_fits_the_terminal_and_keeps_what_matters(tmp_path, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for name in ("isoflop_cpu/gpt_16.5k-1.74M-ef60e7f0", "isoflop_cpu/gpt_16.5k-1.74M-0a1b2c3d"):
        make_run(tmp_path / name, "start")
    assert status.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    for part in ("ef60e7f0", "0a1b2c3d", "interrupted", "20 / 40, saved 0", "0.500"):
        assert part in out
    assert "…" not in out


def test_where_the_time_goes_is_shown_while_a_run_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    run_dir = RunDir(tmp_path / "a").create()
    begun_s = time.time()
    run_dir.event("start", step=0, workers="w", command_s=begun_s - 10)
    run_dir.write_progress("w", 5, dict.fromkeys(MEANING, 0.0) | {"productive": 30.0})
    row = rows(capsys, str(tmp_path))["a"]
    assert row["seconds"]["productive"] == 30.0
    assert row["seconds"]["starting"] == pytest.approx(10.0, abs=1.0)
    assert row["goodput"] == pytest.approx(0.75, abs=0.05)
    assert status.main([str(tmp_path)]) == 0
    assert f"{row['goodput']:.1%}" in capsys.readouterr().out


def test_what_was_not_measured_is_null(tmp_path, capsys):
    RunDir(tmp_path / "a").create().event("start")
    row = rows(capsys, str(tmp_path))["a"]
    assert [row[k] for k in ("step", "n_steps", "loss", "val_loss", "tokens_per_s", "eta_s")] == [
        None
    ] * 6
    assert status.main([str(tmp_path)]) == 0
    assert "0.000" not in capsys.readouterr().out


def test_runs_studies_and_single_runs_are_found(tmp_path, capsys):
    for name in ("b", "a", "study/c"):
        make_run(tmp_path / name, "start", n_steps=2)
    (tmp_path / "notes").mkdir()
    assert list(rows(capsys, f"run.root={tmp_path}")) == ["a", "b", "study/c"]
    assert list(rows(capsys, str(tmp_path / "b"), str(tmp_path / "study"))) == ["b", "c"]


def test_a_damaged_run_does_not_hide_the_others(tmp_path, capsys):
    make_run(tmp_path / "good", "start")
    make_run(tmp_path / "bad", "start").metrics.write_text("?\n{}\n")
    make_run(tmp_path / "sad", "start", "failed", reason="worker 1 died [of hunger]")
    assert {name: row["state"] for name, row in rows(capsys, str(tmp_path)).items()} == {
        "bad": "damaged",
        "good": "interrupted",
        "sad": "failed",
    }
    assert status.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "metrics.jsonl is damaged" in " ".join(out.split())
    assert "sad: worker 1 died [of hunger]" in out


def test_a_loss_that_is_not_finite_is_shown(tmp_path, capsys):
    run_dir = make_run(tmp_path / "a", "start")
    MetricLog(run_dir.metrics).record(21, 21_000, 1e9, 3.0, {names.TRAIN_LOSS: math.nan})
    assert rows(capsys, str(tmp_path))["a"]["loss"] == "NaN"
    status.main([str(tmp_path)])
    assert " nan " in capsys.readouterr().out


def test_only_the_end_of_a_long_record_is_read(tmp_path, monkeypatch):
    run_dir = make_run(tmp_path / "a", "start", n_steps=100)
    monkeypatch.setattr(statuses, "_TAILS_BYTES", (1000,))
    newest = newest_values(run_dir.metrics)
    assert (newest["step"], newest[names.TRAIN_LOSS]) == (100, 0.1)
    assert names.VAL_LOSS not in newest


@pytest.mark.parametrize(
    "word",
    ["--bogus", "run.rot=a", "run.root=s3://bucket", "run.root=/no/such/place", "/no/such/place"],
)
def test_a_wrong_argument_is_a_configuration_error(word, capsys):
    assert status.main([word]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ConfigError: ")
    assert word.removeprefix("run.root=") in err


def test_an_empty_root_says_what_to_do(tmp_path, capsys, monkeypatch):
    assert status.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"No runs under {tmp_path}" in out
    assert "python -m scaling.run" in out
    monkeypatch.chdir(tmp_path)
    assert status.main([]) == 0
    assert f"No runs under {tmp_path / 'runs'}" in capsys.readouterr().out
    assert status.main(["--help"]) == 0
    assert "run.root=DIR" in capsys.readouterr().out


def test_the_command_is_quick_and_light(tmp_path):
    for n in range(20):
        make_run(tmp_path / f"run-{n}", "start")
    program = (
        "import sys; from scaling.status import main; code = main(sys.argv[1:])\n"
        "assert not {'torch', 'ray', 'deepspeed', 'wandb', 'matplotlib'} & sys.modules.keys(); "
        "sys.exit(code)"
    )
    seconds = []
    for _ in range(2):
        begun = os.times()
        done = subprocess.run(
            [sys.executable, "-c", program, f"run.root={tmp_path}"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        ended = os.times()
        seconds.append(
            ended.children_user
            + ended.children_system
            - begun.children_user
            - begun.children_system
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("interrupted") == 20
    assert min(seconds) < 1.0, (
        "CPU time, since the wall clock depends on what else the machine does: about 0.3 s"
    )


def test_the_curve_is_a_complete_png(tmp_path):
    run_dir = make_run(tmp_path / "a", "start", n_steps=200)
    MetricLog(run_dir.metrics).record(201, 201_000, 1e9, 3.0, {names.TRAIN_LOSS: math.inf})
    png = tmp_path / "curve.png"
    plot_loss_curve(
        run_dir.metrics,
        png,
        baselines={"unigram": 6.0, "bigram": 4.0},
        title=r"a run called $\frac$, which is no formula",
    )
    from PIL import Image

    with Image.open(png) as image:
        image.load()
        assert image.size == (1400, 875)
        colours = {colour for _, colour in image.convert("RGB").getcolors(1400 * 875)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours
    assert "matplotlib.pyplot" not in sys.modules
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "curve.png"]


@pytest.mark.parametrize("level", [0.05, 0.5, 5.0])
def test_no_name_of_a_level_is_covered(tmp_path, monkeypatch, level):
    run_dir = make_run(tmp_path / "a", "start", n_steps=200)
    MetricLog(run_dir.metrics).record(200, 200_000, 1e9, 20.0, {names.VAL_LOSS: 0.05})
    placed, covered = [], curve._covered

    def noted(box, *others):
        placed.append((covered(box, *others), box))
        return placed[-1][0]

    monkeypatch.setattr(curve, "_covered", noted)
    plot_loss_curve(
        run_dir.metrics,
        tmp_path / "curve.png",
        baselines={"unigram": level, "bigram": level * 0.99},
        title="a",
    )
    first, second = (
        min(found) for found in (placed[: len(placed) // 2], placed[len(placed) // 2 :])
    )
    assert first[0] == second[0] == 0, "neither covers a point, a level or another name"


def test_no_loss_is_no_curve(tmp_path):
    log = MetricLog(tmp_path / "metrics.jsonl")
    log.record(1, 1, 1.0, 1.0, {names.TRAIN_LOSS: math.nan})
    with pytest.raises(DataError, match="holds no loss to draw"):
        plot_loss_curve(log.path, tmp_path / "curve.png", title="none")
    assert not (tmp_path / "curve.png").exists()


def test_the_running_mean_keeps_a_straight_line():
    line = [3.0 * x for x in range(50)]
    assert running_mean(line, 5) == pytest.approx(line)
    assert running_mean([0, 0, 9, 0, 0], 1) == [0, 3, 3, 3, 0]


def test_of_a_long_record_a_few_lines_are_decoded(tmp_path, capsys, monkeypatch):
    """500 runs took 5.6 s: up to 4000 lines of each were decoded, and every list of events was read
    twice."""
    make_run(tmp_path / "a", "start", n_steps=2000)
    decoded, reads = [], []
    decode, read_events = statuses.decode_record, RunDir.read_events
    monkeypatch.setattr(
        statuses, "decode_record", lambda line: decoded.append(line) or decode(line)
    )
    monkeypatch.setattr(RunDir, "read_events", lambda self: reads.append(self) or read_events(self))
    row = rows(capsys, str(tmp_path))["a"]
    assert (row["step"], row["loss"], row["val_loss"]) == (2000, 10 / 2000, 1.25)
    assert len(decoded) <= 4  # the last, and that with the held-out loss, in each of two parts
    assert len(reads) == 1
