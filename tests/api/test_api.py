"""What `import scaling` offers: a run from its configuration to a prediction, without a command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import scaling
from scaling import api
from scaling.commands.verbs import VERBS
from scaling.errors import ConfigError, DataError, ScalingError
from scaling.metrics.record import MetricLog

LAW = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
"""Hoffmann et al. 2022 (arXiv:2203.15556), table A3."""


def rows() -> list[dict[str, float]]:
    """Runs that follow the law exactly."""
    return [
        {
            "N": n,
            "D": d,
            "val": LAW["E"] + LAW["A"] / n ** LAW["alpha"] + LAW["B"] / d ** LAW["beta"],
        }
        for n in (1e7, 1e8, 1e9)
        for d in (2e8, 2e9, 2e10)
    ]


@pytest.fixture(scope="module")
def law() -> api.FittedLaws:
    return scaling.fit_law(rows(), n="N", d="D", loss="val", form=["chinchilla"], draws=50)


def words_of(root: Path, n_tokens: str) -> list[str]:
    """The overrides of a run of a few steps on a text that is written here."""
    text = root / "text"
    text.mkdir()
    for number in range(12):
        lines = [f"value_{number} = {k * number}\n" for k in range(60)]
        (text / f"{number}.txt").write_text("".join(lines))
    model = ["model=gpt_nano", "model.n_layers=1", "model.d_model=16", "model.n_heads=2"]
    data = ["data=text_files", f"data.path='{text}/*.txt'", "tokenizer=byte"]
    places = [f"data.cache_dir={root / 'cache'}", f"run.root={root / 'runs'}", "layout=single"]
    train = [f"n_tokens={n_tokens}", "seq_len=32", "log_every=4", "eval_every=8"]
    train += ["sample_tokens=0", "eval_sequences=4"]
    return [*model, *data, *places, *(f"train.{word}" for word in train)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> api.Run:
    """A run that was started from Python."""
    return scaling.start(scaling.compose(words_of(tmp_path_factory.mktemp("api"), "4k")))


def test_the_import_is_lazy() -> None:
    code = """
import sys
import scaling
heavy = {"torch", "ray", "deepspeed", "pandas", "numpy", "pydantic", "hydra", "scaling.api"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert set(scaling.__all__) <= set(dir(scaling))
plan = scaling.make_plan(scaling.compose(["model=gpt_1b", "cluster=8xH100"]))
points = [{"n": n, "l": 2 + n**-0.3} for n in (1e6, 1e7, 1e8, 1e9, 1e10)]
law = scaling.fit_law(points, n="n", loss="l", draws=50)
loaded = sorted({"torch", "ray", "deepspeed", "pandas"} & set(sys.modules))
print(plan._repr_html_()[:10], law.forms, loaded)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("[]"), done.stdout


def test_no_function_bears_the_name_of_a_command() -> None:
    assert not set(scaling.__all__) & set(VERBS)
    with pytest.raises(AttributeError, match="no attribute 'run_everything'"):
        scaling.run_everything  # noqa: B018


def test_every_function_and_member_says_what_it_does() -> None:
    kinds = (api.Run, api.Study, api.FittedLaws, api.Picture, api.TrainedSource)
    members = [
        getattr(kind, name) for kind in kinds for name in vars(kind) if not name.startswith("_")
    ]
    for member in [*(getattr(scaling, name) for name in scaling.__all__), *kinds, *members]:
        if callable(member) or isinstance(member, property):
            assert member.__doc__, member


def test_a_mistake_is_the_commands_own_error() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean optim\.lr"):
        scaling.compose(["lr=1"])
    with pytest.raises(ConfigError, match="Pass a list of words"):
        scaling.compose("model=gpt_nano optim.lr=1")
    with pytest.raises(ConfigError, match="starts nothing"):
        scaling.start(scaling.compose(["dry_run=true"]))
    with pytest.raises(ConfigError, match="makes many runs"):
        scaling.start(scaling.compose(["study=isoflop", "study.budgets=[1e12]"]))


def test_a_plan_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    from scaling import plan as door

    words = ["model=gpt_1b", "cluster=8xH100"]
    assert door.main([*words, "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["layouts"][0]
    plan = scaling.make_plan(scaling.compose(words))
    layout = plan.layout
    assert type(plan).from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert f"dp={layout.dp} tp={layout.tp} pp={layout.pp} cp=1 on 8 devices" in plan._repr_html_()
    assert (layout.dp, layout.tp, layout.pp) == (best["dp"], best["tp"], best["pp"])


def test_a_run_is_opened_with_all_that_it_left(run: api.Run) -> None:
    assert run.state == "finished"
    assert run.config.model.d_model == 16
    assert run.plan is not None
    assert run.plan.n_steps == run.summary["steps"] == run.metrics.index[-1]
    assert run.events[0]["kind"] == "start"
    assert run.events[-1]["kind"] == "finished"
    frame = run.metrics
    assert frame["val/loss"].dropna().iloc[-1] == run.summary["val_loss"]
    assert frame.index.is_unique
    assert (frame["n_tokens"] == frame.index * run.plan.tokens_per_step).all()
    assert run.plot().png.startswith(b"\x89PNG")
    assert "finished" in run._repr_html_()


def test_an_interrupted_start_stops_the_run_and_the_next_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at the fourth record: a notebook's kernel is interrupted by the same signal."""
    config = scaling.compose(words_of(tmp_path, "16k"))
    logged = MetricLog.record
    n_records = 0

    def interrupting(log: MetricLog, *args: Any, **kwargs: Any) -> None:
        nonlocal n_records
        n_records += 1
        if n_records == 4:
            os.kill(os.getpid(), signal.SIGINT)
        logged(log, *args, **kwargs)

    monkeypatch.setattr(MetricLog, "record", interrupting)
    stopped = scaling.start(config)
    assert stopped.state == "stopped"
    assert stopped.summary is None
    run = scaling.start(config)
    assert run == stopped
    assert run.state == "finished"
    assert [event["kind"] for event in run.events if event["kind"] in ("start", "resume")] == [
        "start",
        "resume",
    ]


def test_a_run_is_found_by_its_name(run: api.Run) -> None:
    assert scaling.open_run("gpt_nano", root=run.path.parent) == run
    assert scaling.open_run(run.path) == run
    with pytest.raises(ConfigError, match="there is no run 'bert'"):
        scaling.open_run("bert", root=run.path.parent)


def test_its_model_generates(run: api.Run) -> None:
    model = run.model(device="cpu")
    assert sum(p.numel() for p in model.parameters()) == run.plan.counts.n_params
    assert run.model(device="cpu") is model, "the weights are read once"
    assert run.tokenizer.decode(run.tokenizer.encode_batch(["value"])[0].tolist()) == "value"
    asked = {"max_new_tokens": 8, "device": "cpu"}
    text = run.generate("value_", method="greedy", **asked)
    assert run.generate("value_", method="greedy", **asked) == text
    assert len(list(run.stream("value_", n_samples=2, **asked))) == 2
    with pytest.raises(ConfigError, match="stream"):
        run.generate("value_", n_samples=2, **asked)
    with pytest.raises(ConfigError, match="Did you mean temperature"):
        run.generate("value_", temprature=1)
    with pytest.raises(ConfigError, match="no checkpoint of step 1"):
        run.model(step=1)


def test_a_directory_of_runs_is_a_study(run: api.Run) -> None:
    study = scaling.open_study(run.path.parent)
    assert study.runs == [run]
    assert run.path.name in study._repr_html_()
    with pytest.raises(ConfigError, match=r"has no results\.csv"):
        study.results  # noqa: B018
    with pytest.raises(ConfigError, match="there is no directory"):
        scaling.open_study(run.path / "nowhere")


def test_the_results_of_a_study_are_a_frame(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(
        "run,state,optim.lr,val_loss\na,finished,0.001,3.25\nb,begun,0.01,\n"
    )
    study = scaling.open_study(tmp_path)
    assert study.results["val_loss"].iloc[0] == 3.25
    assert study.results["val_loss"].isna().iloc[1]
    assert "<td" in study._repr_html_()
    assert "optim.lr" in study._repr_html_()


def test_a_law_is_fitted_to_rows_frames_and_files(law: api.FittedLaws, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    for name, (value, low, high) in law.parameters["chinchilla"].items():
        assert low <= high
        if name in LAW:
            assert value == pytest.approx(LAW[name], rel=1e-2)
    sizes = [{"N": n, "val": 2 + n**-0.3} for n in (1e6, 1e7, 1e8, 1e9, 1e10)]
    frame = pandas.DataFrame(sizes)
    frame.to_csv(tmp_path / "table.csv", index=False)
    asked = {"n": "N", "loss": "val", "draws": 50}
    expected = scaling.fit_law(sizes, **asked).parameters
    for source in (frame, str(tmp_path / "table.csv")):
        assert scaling.fit_law(source, **asked).parameters == expected
    assert "alpha" in law._repr_html_()
    with pytest.raises(ConfigError, match="form=kaplan was not fitted"):
        law.law("kaplan")
    with pytest.raises(DataError, match="has no column 'params'"):
        scaling.fit_law(rows(), n="params", d="D", loss="val")


def test_a_prediction_is_that_of_the_command(
    law: api.FittedLaws, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from scaling import predict as door

    page = law.write_report(tmp_path / "laws")
    assert page.is_file()
    answer = scaling.predict_from(law, c=1e21, cluster="8xH100")
    assert (
        scaling.predict_from(tmp_path / "laws", c=1e21, cluster="8xH100").to_dict()
        == answer.to_dict()
    )
    assert door.main([f"fit={tmp_path / 'laws'}", "c=1e21", "cluster=8xH100", "json=true"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(answer.to_dict()))
    assert answer.optimum is not None
    assert answer.optimum.n_params.value * answer.optimum.n_tokens.value == pytest.approx(1e21 / 6)
    assert answer.recommended is not None
    assert "N* =" in answer._repr_html_()
    run = scaling.predict_from(law, n=1e9, d=2e10)
    assert run.loss is not None
    assert run.loss.value == pytest.approx(rows()[-1]["val"], rel=1e-4)
    with pytest.raises(ConfigError, match="ask one thing"):
        scaling.predict_from(law, c=1e21, loss=2.0)


def test_an_option_of_the_command_alone_is_refused_with_what_does_the_same(
    law: api.FittedLaws, run: api.Run, tmp_path: Path
) -> None:
    asked = {"c": 1e21, "model": "from_law"}
    for call, option, fix in (
        (lambda: scaling.predict_from(law, out=tmp_path, **asked), "out", "recommended.config"),
        (lambda: scaling.predict_from(law, launch=True, **asked), "launch", "scaling.start"),
        (lambda: scaling.predict_from(law, json=True, **asked), "json", "to_dict"),
        (lambda: scaling.fit_law(rows(), n="N", out=tmp_path), "out", "write_report"),
        (lambda: run.generate("a", **{"from": "b"}), "from", "already open"),
    ):
        with pytest.raises(ConfigError, match=f"^{option} is an option of the") as caught:
            call()
        assert fix in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_an_error_names_the_function_and_not_the_command_line(
    law: api.FittedLaws, run: api.Run, tmp_path: Path
) -> None:
    for call, where in (
        (lambda: scaling.compose(["lr=1"]), "scaling.compose"),
        (lambda: scaling.fit_law(rows(), n="N", d="D", draws=20), "scaling.fit_law"),
        (lambda: scaling.fit_law([], n="N", d="D"), "table"),
        (lambda: scaling.predict_from(law, foo=3), "scaling.predict_from"),
        (lambda: scaling.open_run("nosuch", root=tmp_path), "scaling.open_run"),
        (lambda: scaling.find_trained("nosuch", root=tmp_path), "scaling.find_trained"),
        (lambda: run.generate("a", foo=3), "Run.stream"),
    ):
        with pytest.raises(ScalingError) as caught:
            call()
        text = str(caught.value)
        assert caught.value.where.startswith(where), text
        assert "command line" not in text
        assert "run.root" not in text
        assert "table.csv" not in text, "a file that is gone"
        assert text == str(type(caught.value)(*caught.value.args))
    with pytest.raises(ConfigError, match='root="DIR"'):
        scaling.open_run("nosuch", root=tmp_path)
    with pytest.raises(ConfigError, match=r"There are: form, c, n, d, loss, cluster, model\."):
        scaling.predict_from(law, foo=3)


def test_a_fit_of_rows_names_no_file_that_is_gone(law: api.FittedLaws) -> None:
    assert law.analysis.options.table == "a table"


def test_a_run_without_a_loss_is_shown(run: api.Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    summary = {**run.summary, "val_loss": None}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    page = scaling.open_run(tmp_path / "run")._repr_html_()
    assert "not measured" in page
    assert f"{run.summary['train_loss']:.4f}" in page


def test_objects_print_on_one_short_line(law: api.FittedLaws, run: api.Run) -> None:
    source = scaling.find_trained(str(run.path))
    budget = scaling.predict_from(law, c=1e21)
    assert repr(law) == "<Scaling laws of a table: 9 points, chinchilla>"
    assert repr(budget).startswith("<Prediction form=chinchilla, flops=1e+21, n_params=")
    assert repr(source) == f"<TrainedSource {source.title}>"
    assert "lambda" not in repr(source.source)
    assert "partial" not in repr(source.source)
    for item in (law, budget, source, scaling.predict_from(law, n=1e9, d=2e10)):
        assert len(repr(item)) < 120
    assert run.path.name in source._repr_html_()


def test_objects_hide_secrets_and_markup_on_the_page() -> None:
    from scaling import markup

    page = markup.folded(
        "a<b", {"url": "https://user:hunter2@host/x", "inner": {"flag": True, "none": None}}
    )
    assert "hunter2" not in page
    assert "a&lt;b" in page
    assert '<td style="text-align:left">true</td>' in page
    assert "null" in page
