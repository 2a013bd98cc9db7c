"""scaling.fit and scaling.predict, from words to report: exit codes, messages, files."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling import fit, predict
from scaling.composition.compose import compose
from scaling.laws import recommend
from scaling.laws.analysis import load_points
from scaling.laws.options import FitOptions
from scaling.planner.cost.counts import count
from scaling.planner.shape import size_of
from tests.laws.test_tables import make_run
from tests.support.points import ALPHA, chinchilla, isoflop_grid, noisy, write_table


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The report of a noisy table with a metric, and what the command printed."""
    directory = tmp_path_factory.mktemp("laws")
    data = noisy(sigma=0.002)
    columns = {
        "N": data.n_params,
        "C": data.flops,
        "loss": data.loss,
        "acc": 1 / (1 + np.exp(data.loss - 3)),
    }
    table = write_table(directory / "runs <b>.csv", columns)
    words = [f"table={table}", "n=N", "c=C", "metric=acc", "draws=60", f"out={directory / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-m", "scaling.fit", *words], capture_output=True, text=True, check=True
    )
    return directory / "out", done.stdout


def test_the_report_is_one_page_that_needs_nothing(fitted):
    out, printed = fitted
    page = (out / "report.html").read_text()
    assert f"Report: {out / 'report.html'}" in printed
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "<script" not in page
    assert "runs &lt;b&gt;.csv" in page
    for name in (
        "loss_against_compute",
        "isoflop_curves",
        "allocation",
        "predicted_against_actual",
        "residuals",
        "bootstrap_pairs",
    ):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / f"{name}.svg").read_text().rstrip().endswith("</svg>")
        assert f'alt="{name.replace("_", " ")}"' in page
    for heading in (
        "Held out by scale",
        "Sensitivity",
        "Hoffmann et al. 2022",
        "downstream metric",
    ):
        assert heading in page


def test_the_json_is_at_full_precision(fitted):
    found = json.loads((fitted[0] / "fit.json").read_text())
    form = found["forms"]["chinchilla"]
    assert np.exp(form["theta"][0]) == form["parameters"]["E"]
    assert np.array(form["draws"]).shape == (60, 5)
    assert form["parameters"]["alpha"] == pytest.approx(ALPHA, abs=0.03)
    assert len(form["residuals"]) == 45
    assert {"n", "d"} == set(found["isoflop"])
    assert set(found["downstream"]) == {"sigmoid", "exponential"}


def asked(capsys, *words):
    code = predict.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_budget_is_split(fitted, capsys):
    code, out, _ = asked(capsys, f"fit={fitted[0]}", "c=1e22")
    assert code == 0
    assert "!! EXTRAPOLATED 2.00 decades" in out
    assert "IsoFLOP N*" in out
    assert "envelope N*" in out
    assert "cheaper in all beyond" in out
    answer = json.loads(asked(capsys, f"fit={fitted[0]}", "c=1e19", "json=true")[1])
    assert answer["optimum"]["decades_beyond"] == 0
    n, d = answer["optimum"]["n_params"]["value"], answer["optimum"]["n_tokens"]["value"]
    run = json.loads(asked(capsys, f"fit={fitted[0]}", f"n={n}", f"d={d}", "json=true")[1])
    assert run["loss"]["value"] == pytest.approx(answer["optimum"]["loss"]["value"], rel=1e-12)
    assert run["loss"]["value"] == pytest.approx(chinchilla(n, d), rel=5e-3)
    metric = run["metric"]["sigmoid"]
    assert metric["value"] == pytest.approx(1 / (1 + np.exp(run["loss"]["value"] - 3)), rel=1e-3)
    assert metric["low"] <= metric["value"] <= metric["high"]
    wanted = json.loads(
        asked(capsys, f"fit={fitted[0]}", f"loss={run['loss']['value']}", "json=true")[1]
    )
    assert wanted["budget"]["value"] == pytest.approx(1e19, rel=1e-6)


def test_the_recommended_run_has_the_laws_size(fitted, capsys, tmp_path):
    answer = json.loads(
        asked(capsys, f"fit={fitted[0]}", "c=1e21", "cluster=8xH100", "json=true")[1]
    )
    recommended = answer["recommended"]
    assert recommended["n_params"] == pytest.approx(
        answer["optimum"]["n_params"]["value"], rel=0.05
    )
    assert recommended["n_tokens"] == pytest.approx(
        answer["optimum"]["n_tokens"]["value"], rel=0.01
    )
    assert recommended["hours"] > 0
    words = dict(word.split("=", 1) for word in recommended["overrides"])
    assert "train.seq_len" not in words  # 2048, as the named model has it
    tokens = int(words["train.global_batch_size"]) * 2048
    assert tokens == pytest.approx(0.2920 * 1e21**0.3271, rel=0.01)  # 2.2 M tokens, not 512
    assert float(words["optim.lr"]) == pytest.approx(0.3118 * 1e21**-0.125, rel=0.01)
    assert not list(fitted[0].glob("from_law*"))  # nothing is written unasked


def test_a_study_on_a_cpu_does_not_set_the_batch_of_eight_gpus(capsys):
    """It kept 4 sequences of 128 tokens, three years of eight H100s."""
    study = Path(__file__).parents[2] / "docs" / "studies" / "isoflop_cpu"
    answer = json.loads(
        asked(capsys, f"fit={study}", "c=1e21", "cluster=8xH100", "model=from_law", "json=true")[1]
    )
    words = dict(word.split("=", 1) for word in answer["recommended"]["overrides"])
    tokens = int(words["train.global_batch_size"]) * int(words["train.seq_len"])
    # about: 6 N D without embeddings is less than the budget
    assert tokens == pytest.approx(0.2920 * 1e21**0.3271, rel=0.15)
    assert answer["recommended"]["hours"] < 24 * 100
    _, out, _ = asked(capsys, f"fit={study}", "c=3e13", "model=from_law")
    assert "4 sequences of 128 tokens a step" in out  # a CPU keeps the study's own


def test_the_recommended_run_is_written_where_asked(fitted, capsys, tmp_path):
    _, out, _ = asked(
        capsys, f"fit={fitted[0]}", "c=1e16", "model=from_law", f"out={tmp_path / 'from_law.yaml'}"
    )
    assert (tmp_path / "from_law.yaml").is_file()
    # A long command continues behind a backslash, so that it can be pasted.
    command = out[out.rindex("python -m scaling.run") :].replace("\\\n", " ").split()
    done = subprocess.run(
        [sys.executable, "-m", "scaling.run", *command[3:], "dry_run=true"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tabel=x"], "Did you mean table?"),
        (["study=a", "table=b"], "give one of table=FILE.csv and study=DIR"),
        ([], "give one of"),
        (["table=b", "draws=3"], "draws=3"),
        (["table=b", "noise=3"], "NAME:VALUE"),
        (["table=b", "keep=all"], "keep=all is unknown"),
        (["study=b", "n=x"], "n names a column"),
        (["--fast"], "there is no flag --fast"),
        (["table=a", "table=b"], "table is given twice"),
        (["study=/no/such/place"], "there is no directory"),
    ],
)
def test_a_wrong_word_is_a_configuration_error(words, message, capsys):
    assert fit.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ConfigError: ")
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["c=1"], "fit is not given"),
        (["fit={}"], "ask one thing"),
        (["fit={}", "c=1", "loss=3"], "ask one thing"),
        (["fit={}", "n=1"], "both n=PARAMETERS and d=TOKENS"),
        (["fit={}", "c=-1"], "c=-1"),
        (["fit={}", "c=1e18", "form=floor_n"], "form=floor_n was not fitted"),
        (["fit=/no/such/place", "c=1"], "Fit first"),
        (["fit={}", "c=1e18", "model=gpt"], "model=gpt is unknown"),
    ],
)
def test_a_wrong_question_is_a_configuration_error(words, message, fitted, capsys):
    code, out, err = asked(capsys, *(word.format(fitted[0]) for word in words))
    assert (code, out) == (2, "")
    assert message in err


def test_points_that_allow_nothing_exit_with_1(tmp_path, capsys):
    table = write_table(tmp_path / "t.csv", {"n": [1e6, 1e6], "d": [1e8, 1e8], "loss": [3, 3]})
    assert fit.main([f"table={table}", "n=n", "d=d"]) == 1
    assert "allow no fit" in capsys.readouterr().err


def test_one_budget_says_what_can_still_be_fitted(tmp_path, capsys):
    n, d = isoflop_grid(budgets=(1e18,), sizes=12)
    table = write_table(tmp_path / "t.csv", {"n": n, "d": d, "loss": chinchilla(n, d)})
    assert fit.main([f"table={table}", "n=n", "d=d", "draws=50", f"out={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    assert "Not fitted, chinchilla: one compute budget only" in out
    assert "Not fitted, IsoFLOP in N: fewer than two budgets" in out
    assert "floor_n" in out


def test_a_study_is_fitted_where_it_lies(tmp_path, capsys):
    tokens = (100_000, 400_000, 2_000_000)
    for i, model in enumerate(("gpt_nano", "gpt_tiny", "gpt_10m", "gpt_50m")):
        for j, n_tokens in enumerate(tokens):
            name = tmp_path / f"{model}-{n_tokens}"
            make_run(
                name,
                [
                    f"model={model}",
                    "tokenizer=byte",
                    "train.seq_len=64",
                    f"train.n_tokens={n_tokens}",
                ],
                val_loss=4.0 - 0.2 * i - 0.3 * j + 0.01 * i * j,
                n_tokens=n_tokens,
                warmup=100,
            )
    make_run(tmp_path / "begun", kinds=("start",))
    assert fit.main([f"study={tmp_path}", "draws=50"]) == 0
    out = capsys.readouterr().out
    assert "Left out begun: unfinished: begun" in out
    assert "12 points; N counts: with embeddings; C counts: exact" in out
    assert (tmp_path / "laws" / "report.html").is_file()


def test_help_names_every_key(capsys):
    for command, keys in (
        (fit, ("table=", "noise=", "delta=0.001")),
        (predict, ("fit=", "json=", "launch=")),
    ):
        assert command.main(["--help"]) == 0
        out = capsys.readouterr().out
        assert all(f"  {key}" in out for key in keys)


def test_the_commands_are_light(fitted):
    program = (
        "import sys; from scaling import fit, predict; code = predict.main(sys.argv[1:])\n"
        "import scaling.laws.report, scaling.laws.recommend\n"
        "assert not {'torch', 'ray', 'deepspeed', 'wandb', 'matplotlib'} & sys.modules.keys(); "
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"fit={fitted[0]}", "c=1e19"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_thousand_draws_take_few_evaluations(monkeypatch):
    """Counts evaluations of the objective for one set of parameters on 240 points: the whole
    search, and 1000 draws that begin at its end."""
    from scaling.laws import huber
    from scaling.laws.fit import fit as fit_form
    from scaling.laws.forms import CHINCHILLA
    from scaling.laws.intervals import bootstrap

    data = noisy(budgets=tuple(np.geomspace(1e18, 1e21, 16)), sizes=15, sigma=0.005)
    evaluated = []
    objective = huber.objective

    def counted(design: Any, log_loss: Any, theta: Any, **options: Any) -> Any:
        evaluated.append(len(theta))
        return objective(design, log_loss, theta, **options)

    monkeypatch.setattr(huber, "objective", counted)
    found = fit_form(CHINCHILLA, data.n_params, data.n_tokens, data.loss)
    bootstrap(found, data.n_params, data.n_tokens, data.loss, data.runs, draws=1000)
    assert len(data) == 240
    assert 1000 <= sum(evaluated) < 40_000
    assert len(evaluated) < 1000, "draws are evaluated together"


@pytest.mark.parametrize("table", ["~/a b.csv", "file://{}/a%20b.csv"])
def test_a_table_may_be_under_home_or_a_file_url(tmp_path, monkeypatch, table):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a b.csv").write_text("N,D,loss\n1e6,2e7,4.0\n2e6,4e7,3.5\n")
    points = load_points(FitOptions(table=table.format(tmp_path), n="N", d="D"))
    assert points.loss.tolist() == [4.0, 3.5]


@pytest.mark.slow
def test_few_named_models_are_composed_and_the_nearest_is_among_them():
    files = recommend._files("gpt")
    models = {path: compose((f"model={path.stem}",)) for path in files}
    for with_embeddings in (True, False):
        sizes = {
            path: size_of(count(model), with_embeddings=with_embeddings)
            for path, model in models.items()
        }
        for n_params in np.geomspace(1e4, 3e12, 300):
            near = recommend._roughly_near(n_params, files)
            assert len(near) <= 4
            assert min(files, key=lambda path: abs(np.log(sizes[path] / n_params))) in near
