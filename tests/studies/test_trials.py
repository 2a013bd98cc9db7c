"""Trials: identity, places, devices, standing; and the list that is shown before a study starts."""

from __future__ import annotations

import io
import itertools
import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from rich.console import Console

import scaling.composition.jobs
import scaling.data.baselines
import scaling.planner.run_plan
import scaling.studies.trials
from scaling.commands.cli import run_task
from scaling.composition.compose import compose
from scaling.errors import EXIT_FINISHED, ConfigError, PlanError
from scaling.launch import summary
from scaling.launch.study.driver import drive_study
from scaling.launch.study.runner import Running
from scaling.metrics import names
from scaling.metrics.record import MetricLog
from scaling.runs.directory import RunDir
from scaling.studies.remaining import measured_rate, remaining, study_table, total
from scaling.studies.results import result_rows, results_table, write_results
from scaling.studies.trials import (
    Study,
    declare,
    differences,
    fair_devices,
    on_fewest_devices,
    standing_of,
)

CPU = (
    "tokenizer=byte",
    "cluster.devices_per_node=4",
    "cluster.device.name=test CPU",
    "cluster.device.memory_gb=8",
)
GPUS = ("cluster=8xH100", "train.global_batch_size=256", "train.n_tokens=1B")


def declared(root: Path, *sweep: tuple[str, ...], base: tuple[str, ...] = CPU) -> Study:
    jobs = [(*base, f"run.root={root}", *words) for words in sweep]
    return declare([(compose(words), words) for words in jobs])


def shown(study: Study) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(
        study_table(study, {trial.identity: standing_of(trial) for trial in study.trials})
    )
    return console.export_text()


def test_trials_are_known_by_their_hash_wherever_they_lie(tmp_path: Path) -> None:
    study = declared(tmp_path, ("optim.lr=1e-3",), ("optim.lr=2e-3",))
    first, second = study.trials
    assert first.run_dir.path == tmp_path / "sweep" / f"gpt_nano-{first.config.run_id}"
    assert first.identity == compose((*CPU, "optim.lr=1e-3")).semantic_hash
    assert (first.varied, second.varied) == ({"optim.lr": 1e-3}, {"optim.lr": 2e-3})
    moved = tmp_path / "sweep" / f"other-{first.config.run_id}"
    moved.mkdir(parents=True)
    again = declared(tmp_path, ("optim.lr=2e-3",), ("optim.lr=1e-3",), ("optim.lr=3e-3",))
    assert [trial.identity for trial in again.trials][:2] == [second.identity, first.identity]
    assert again.trials[1].run_dir.path == moved, (
        "a directory keeps its name, whatever the command calls the trial now"
    )


def test_equal_trials_are_one(tmp_path: Path) -> None:
    study = declared(
        tmp_path,
        ("train.n_tokens=2048",),
        ("train.n_tokens=2047",),
        ("train.n_tokens=2048", "train.log_every=3"),
    )
    assert len(study.trials) == 1


def test_differences_name_the_keys_that_vary() -> None:
    configs = [
        compose((*CPU, word)) for word in ("attention=full", "attention=local", "optim.eps=1e-7")
    ]
    found = differences(configs)
    assert set(found) == {"attention.kind", "attention.window", "optim.eps"}
    assert found["attention.window"][0] is None


def test_devices_follow_from_memory_and_from_the_share_of_the_work(tmp_path: Path) -> None:
    small = compose((*GPUS, "model=gpt_125m"))
    assert on_fewest_devices(small)[1].layout.world_size == 1
    assert on_fewest_devices(small, least=8)[1].layout.world_size == 8
    narrowed, plan = on_fewest_devices(compose((*GPUS, "model=gpt_13b")))
    assert (
        plan.layout.world_size == narrowed.cluster.devices_per_node * narrowed.cluster.n_nodes > 2
    )
    with pytest.raises(PlanError, match="does not fit"):
        on_fewest_devices(compose((*GPUS, "model=gpt_175b")))
    assert fair_devices([small] * 16, 8) == [1] * 16
    assert fair_devices([small], 8) == [8]
    assert fair_devices([small, compose((*GPUS, "model=gpt_7b"))], 8) == [1, 8]


def test_a_layout_that_is_asked_for_is_kept(tmp_path: Path) -> None:
    study = declared(tmp_path, *(("layout=ddp", f"optim.lr={lr}e-3") for lr in range(1, 9)))
    assert {trial.plan.layout.engine for trial in study.trials if trial.plan} == {"ddp"}
    pairs = declared(
        tmp_path, *(("layout=manual", "layout.dp=2", f"optim.lr={lr}e-3") for lr in range(1, 9))
    )
    assert {trial.plan.layout.world_size for trial in pairs.trials if trial.plan} == {2}


def test_the_list_has_totals_of_what_is_left(tmp_path: Path) -> None:
    study = declared(tmp_path, ("model=gpt_125m",), ("model=gpt_350m",), base=GPUS)
    standings = {trial.identity: standing_of(trial) for trial in study.trials}
    rests = [remaining(trial, standings[trial.identity], None) for trial in study.trials]
    whole = total(rests)
    assert whole.tokens == sum(trial.plan.n_tokens for trial in study.trials if trial.plan)
    assert whole.usd == pytest.approx(
        sum(trial.plan.usd for trial in study.trials if trial.plan and trial.plan.usd)
    )
    assert whole.device_hours == pytest.approx(
        sum(
            t.plan.hours * t.plan.layout.world_size for t in study.trials if t.plan and t.plan.hours
        )
    )
    assert "Still to do" in (text := shown(study))
    assert "2 B" in text
    assert "refused" in shown(
        declared(tmp_path, ("model=gpt_125m",), ("model=gpt_175b",), base=GPUS)
    )


def test_what_is_done_is_not_counted_again(tmp_path: Path) -> None:
    study = declared(tmp_path, ("train.seed=0",), ("train.seed=1",), ("train.seed=2",))
    done, begun, failing = study.trials
    for trial in (done, begun, failing):
        trial.run_dir.create().event("start", step=0)
    done.run_dir.event("finished")
    done.run_dir.write_summary({"flops": 1e12, "device_s": 50.0, "steps": 10, "val_loss": 2.5})
    (begun.run_dir.checkpoints / f"step-{begun.plan.n_steps // 2:08d}").mkdir()
    for _ in range(3):
        failing.run_dir.event("failed", reason="no luck")
    standings = {trial.identity: standing_of(trial) for trial in study.trials}
    assert [s.state for s in standings.values()] == ["finished", "begun", "given up"]
    assert standings[failing.identity].trouble == "no luck"
    rate = measured_rate(study, standings)
    assert rate == 2e10
    rests = [remaining(trial, standings[trial.identity], rate) for trial in study.trials]
    assert rests[0].flops == rests[2].flops == 0
    half = begun.plan.n_steps // 2 / begun.plan.n_steps
    assert rests[1].flops == pytest.approx((1 - half) * begun.flops)
    assert rests[1].device_hours == pytest.approx((1 - half) * begun.flops / 2e10 / 3600)
    assert f"begun, from step {begun.plan.n_steps // 2}" in shown(study)
    rows = result_rows(study, standings)
    path = write_results(rows, tmp_path)
    assert [row["val_loss"] for row in rows] == [2.5, None, None]
    assert (
        path.read_text()
        .splitlines()[1]
        .startswith(f"{done.name},{done.config.run_id},finished,0,0,")
    )


def test_a_study_that_cannot_be_planned_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        (*GPUS, f"model={name}", f"run.root={tmp_path}")
        for name in ("gpt_125m", "gpt_175b", "gpt_70b")
    ]
    with pytest.raises(PlanError, match=r"gpt_175b-\w+: .*does not fit.*2 of 3 trials are refused"):
        drive_study([(compose(words), words) for words in jobs])
    assert "refused" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_lists_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [
        (*GPUS, f"model={name}", f"run.root={tmp_path}", "dry_run=true")
        for name in ("gpt_125m", "gpt_350m")
    ]
    assert drive_study([(compose(words), words) for words in jobs]) == EXIT_FINISHED
    assert "Study sweep: 2 trials" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_trial_is_an_ordinary_run(tmp_path: Path) -> None:
    """Nothing of the study is in what makes it a run: it can be continued alone, with the study's
    directory as root."""
    study = declared(tmp_path, ("optim.lr=1e-3",), ("optim.lr=2e-3",))
    trial = study.trials[0]
    alone = compose((*CPU, "optim.lr=1e-3", f"run.root={tmp_path / 'sweep'}"))
    assert RunDir.for_config(alone).path == trial.run_dir.path
    assert trial.config.study.kind == "none"
    assert trial.config.logger.group == "sweep"


def test_a_command_counts_the_steps_that_it_trained_itself(tmp_path: Path) -> None:
    """A trial that an earlier command had begun counts only the steps of this command."""
    trial = declared(tmp_path, ("optim.lr=1e-3",), ("optim.lr=2e-3",)).trials[0]
    log = MetricLog(trial.run_dir.create().metrics)
    for step in (10, 20, 30):
        log.record(step, step, 1.0, 1.0, {names.STEP_TIME_S: 0.5})
    attempt: Any = SimpleNamespace(plan=trial.plan)
    running = Running(trial, trial.name, attempt, ExitStack())
    for began_step, seconds in ((None, 0), (0, 15), (20, 5)):
        attempt.began_step = began_step
        assert running.trained_device_s == seconds * trial.plan.layout.world_size  # type: ignore[union-attr]


def test_the_baselines_of_a_corpus_are_counted_once_and_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the first run waits for the count that began before it, and does not begin
    another."""
    counted: list[str] = []
    begun, goes_on = threading.Event(), threading.Event()

    def count_slowly(config: object, location: str) -> dict[str, float]:
        counted.append(location)
        begun.set()
        assert goes_on.wait(10)
        return {"unigram": 3.0}

    monkeypatch.setattr(scaling.data.baselines, "baselines", count_slowly)
    monkeypatch.setattr(summary, "_KNOWN_BASELINES", {})
    corpus: Any = SimpleNamespace(
        mixed=False, skipped=[], n_tokens=lambda split: 1000, fingerprint="f", location="here"
    )
    config = compose(CPU)
    summary.count_ahead(config, corpus)
    assert begun.wait(10)
    threading.Timer(0.1, goes_on.set).start()
    assert summary._baselines(config, corpus) == {"unigram": 3.0}
    assert counted == ["here"]


def test_a_study_of_sizes_shows_depth_and_width_and_of_heads_alone_the_heads(tmp_path):
    from scaling.studies.labels import headings, labels, shown_keys

    def trials(*words: tuple[str, ...]):
        jobs = [(compose([*each, f"run.root={tmp_path}"]), each) for each in words]
        return declare(jobs).trials

    sizes = trials(
        ("model.n_layers=2", "model.d_model=64"), ("model.n_layers=3", "model.d_model=128")
    )
    assert headings(shown_keys(sizes)) == ["n_layers", "d_model"]
    assert all(
        label.startswith(("n_layers=2 d_model=64 (", "n_layers=3 d_model=128 ("))
        for label in labels(sizes).values()
    )
    heads = trials(("model.n_heads=2",), ("model.n_heads=4",))
    assert headings(shown_keys(heads)) == ["n_heads"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_tables_of_a_study_fit_and_keep_what_varies(tmp_path, width):
    words = [
        (f"optim.lr={lr}", f"train.seed={seed}") for lr in ("0.00106", "0.00212") for seed in (0, 1)
    ]
    study = declare([(compose([*each, f"run.root={tmp_path}"]), each) for each in words])
    standings = {trial.identity: standing_of(trial) for trial in study.trials}
    for table in (
        study_table(study, standings),
        results_table(study, result_rows(study, standings)),
    ):
        out = io.StringIO()
        Console(file=out, width=width).print(table)
        text = out.getvalue()
        assert max(map(len, text.splitlines())) <= width
        assert "0.0.." not in text
        assert "…" not in text
        for trial in study.trials:
            assert trial.name.rpartition("-")[2] in text
        assert "0.00106" in text


def test_a_dry_run_composes_and_plans_each_distinct_shape_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A trial cost 0.17 s of CPU time, and a thousand of them were never listed."""
    counts = {"composed": 0, "copied": 0, "planned": 0, "asked": 0}

    def counted(module: Any, name: str, kind: str) -> None:
        original = getattr(module, name)

        def call(*args: Any, **options: Any) -> Any:
            counts[kind] += 1
            return original(*args, **options)

        monkeypatch.setattr(module, name, call)

    counted(ConfigLoaderImpl, "load_sweep_config", "composed")
    counted(scaling.composition.jobs._Base, "as_hydra_sets", "copied")
    counted(scaling.planner.run_plan, "choose_layout", "planned")
    counted(scaling.studies.trials, "resolve_cluster", "asked")
    sweep = (
        "optim.lr=1e-3,2e-3,3e-3",
        "train.n_tokens=65536,131072",
        "model=gpt_nano,gpt_tiny",
        "train.seed=1,2",
    )
    words = ["-m", *CPU, f"run.root={tmp_path}", "dry_run=true", *sweep]
    assert run_task(lambda config: 1, drive_study, words) == EXIT_FINISHED
    assert "24 trials" in capsys.readouterr().out
    assert counts == {"composed": 2, "copied": 0, "planned": 2, "asked": 1}


@pytest.mark.parametrize(
    "words",
    [
        ["optim.lr=1e-3,2e-3", "model=gpt_nano,gpt_tiny", "++train.seed=7"],
        ["optim.lr=1e-3,2e-3", "run.name=lr${optim.lr}"],
        [
            *("data=text_files", "data.path=README.md,pyproject.toml", "run.resume='never'"),
            *("train.sample_prompt='a b'", "train.eval_every=null", "train.on_spike=skip"),
            *("checkpoint={keep_last:5}", "checkpoint.keep_last=3", "++checkpoint.keep_steps=[7]"),
        ],
    ],
)
def test_values_are_set_as_hydra_sets_them(tmp_path: Path, words: list[str]) -> None:
    """Files are read once for many jobs; each job has its own values all the same."""
    seen: list[Any] = []

    def study(jobs: Any) -> int:
        for config, words in jobs:
            assert config == compose(words)
            seen.append(config)
        return EXIT_FINISHED

    words = ["-m", *CPU, f"run.root={tmp_path}", *words]
    assert run_task(lambda config: 1, study, words) == EXIT_FINISHED
    assert len(seen) >= 2
    assert all(one != other for one, other in itertools.combinations(seen, 2))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.rl=1", "there is no key 'optim.rl'"),
        ("tokenizer=hf", "tokenizer.vocab_size has no value"),
        ("optim.lr=-1", "optim.lr=-1: input should be greater than 0"),
    ],
)
def test_a_wrong_word_of_a_job_is_refused(
    word: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["-m", *CPU, "train.log_every=1,2", word]
    code = run_task(lambda config: 1, lambda jobs: EXIT_FINISHED, words)
    assert code == ConfigError.exit_code
    assert message in capsys.readouterr().err
