"""Tables and studies: what is read, what is left out and why, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest

from scaling.composition.compose import compose
from scaling.errors import ConfigError, DataError
from scaling.laws.checks import cannot_fit, drop_highest, fittable, screen
from scaling.laws.fit import fit
from scaling.laws.forms import CHINCHILLA, FORMS
from scaling.laws.from_runs import allows_a_law, points_of_study
from scaling.laws.from_table import Columns, points_of_rows, read_rows
from scaling.metrics import names
from scaling.metrics.record import MetricLog
from scaling.planner.cost.counts import count
from scaling.runs.directory import RunDir
from tests.support.points import chinchilla, isoflop_grid, noisy, points, write_table


def table(tmp_path, columns, *, wanted=None, **options):
    path = write_table(tmp_path / "t.csv", columns)
    rows = read_rows(path, where=options.pop("where", None), same=options.pop("same", ()))
    options = {"n_counts": "as in the table", "c_counts": None} | options
    return points_of_rows(
        rows, wanted or Columns("loss", "n", "d", "c" if "c" in columns else None), path, **options
    )


def test_the_third_variable_follows(tmp_path):
    n, d = isoflop_grid()
    columns = {"n": n, "d": d, "c": 6 * n * d, "loss": chinchilla(n, d)}
    for known in ("nd", "nc", "dc", "ndc"):
        wanted = Columns("loss", *(x if x in known else None for x in "ndc"))
        read = table(tmp_path, columns, wanted=wanted)
        assert read.n_params == pytest.approx(n)
        assert read.n_tokens == pytest.approx(d)
        assert read.flops == pytest.approx(6 * n * d)
        assert read.definitions.c_counts.startswith("6ND")


def test_one_variable_alone_still_has_its_forms(tmp_path):
    n, d = isoflop_grid()
    read = table(tmp_path, {"n": n, "loss": chinchilla(n, d)}, wanted=Columns("loss", "n"))
    assert read.known == ("n",)
    assert {name for name, trouble in fittable(read).items() if trouble is None} == {
        "kaplan_n",
        "floor_n",
    }
    c_alone = table(
        tmp_path, {"c": 8 * n * d, "loss": 3 / (n * d) ** 0.05}, wanted=Columns("loss", c="c")
    )
    found = fit(FORMS["kaplan_c"], *c_alone.variables(FORMS["kaplan_c"]), c_alone.loss)
    assert found.parameters["alpha_C"] == pytest.approx(0.05)
    assert (found.parameters["C_c"] / (8 * n[0] * d[0])) ** 0.05 == pytest.approx(c_alone.loss[0])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("nan", "diverged"),
        ("", "not a number"),
        ("inf", "positive and finite"),
        ("-2.5", "positive and finite"),
        ("0", "positive"),
    ],
)
def test_a_bad_loss_leaves_out_its_row_alone(tmp_path, value, reason):
    n, d = isoflop_grid()
    losses = [*map(str, chinchilla(n, d)[:-1]), value]
    read = table(tmp_path, {"n": n, "d": d, "loss": losses})
    assert len(read) == len(n) - 1
    assert read.excluded[0].run == f"line {len(n) + 1}"
    assert reason in read.excluded[0].reason


def test_missing_columns_are_named_with_those_there(tmp_path):
    with pytest.raises(DataError, match=r"no column 'c' or 'x'.*\n.*columns are: n, loss"):
        table(tmp_path, {"n": [1], "loss": [2]}, wanted=Columns("loss", "n", c="c", run="x"))
    with pytest.raises(DataError, match="none of N, D and C is named"):
        table(tmp_path, {"n": [1], "loss": [2]}, wanted=Columns("loss"))
    with pytest.raises(DataError, match="no rows with n:7"):
        table(tmp_path, {"n": [1], "loss": [2]}, where={"n": "7"})
    with pytest.raises(DataError, match="cannot read"):
        read_rows(tmp_path / "none.csv")


def test_mixed_definitions_are_refused(tmp_path):
    n, d = isoflop_grid()
    kind = ["val"] * (len(n) - 1) + ["train"]
    columns = {"n": n, "d": d, "loss": chinchilla(n, d), "kind": kind}
    with pytest.raises(DataError, match=r"mix definitions: kind is 'val' \(44\), 'train' \(1\)"):
        table(tmp_path, columns, same=["kind"])
    assert len(table(tmp_path, columns, same=["kind"], where={"kind": "val"})) == len(n) - 1
    half = np.where(np.arange(len(n)) % 2, 6, 7.5)
    with pytest.raises(DataError, match=r"mix definitions: C is 6 N D in 22 rows and 1.25"):
        table(tmp_path, columns | {"c": half * n * d})
    with pytest.raises(DataError, match=r"C is 1.25 to 1.25 times 6 N D"):
        table(tmp_path, columns | {"c": 7.5 * n * d}, c_counts="6ND")
    exact = table(tmp_path, columns | {"c": 7.5 * n * d})
    assert exact.definitions.flops_per_nd == pytest.approx(7.5)
    assert exact.definitions.c_counts.startswith("exact")


def test_designs_that_cannot_identify_are_called_so():
    n, d = isoflop_grid()
    assert cannot_fit(points(n, d, chinchilla(n, d)), CHINCHILLA) is None
    one = slice(0, 9)
    assert "one compute budget" in cannot_fit(
        points(n[one], d[one], chinchilla(n, d)[one]), CHINCHILLA
    )
    ladder = np.geomspace(1e7, 1e9, 9)
    assert "inseparable" in cannot_fit(
        points(ladder, 20 * ladder, chinchilla(ladder, 20 * ladder)), CHINCHILLA
    )
    few = slice(0, 5)
    assert "5 runs for 5 parameters" in cannot_fit(
        points(n[few], d[few], chinchilla(n, d)[few]), CHINCHILLA
    )
    same = np.full(9, 1e8)
    assert "only 1 different N" in cannot_fit(
        points(same, ladder * 100, chinchilla(same, ladder * 100)), CHINCHILLA
    )


def test_a_diverged_run_is_left_out_unless_kept():
    data = noisy()
    loss = data.loss.copy()
    largest = int((data.n_params * data.n_tokens).argmax())
    loss[largest] = 9.0
    bad = points(data.n_params, data.n_tokens, loss)
    (gone,) = screen(bad).excluded
    assert gone.run == f"run {largest}"
    assert "diverged" in gone.reason
    assert len(screen(bad, keep=("diverged",))) == len(bad)
    assert screen(data).excluded == ()


def test_warm_up_dominated_runs_are_left_out():
    data = noisy()
    warmup = np.where(np.arange(len(data)) == 3, 0.8, 0.02) * data.n_tokens
    data = replace(data, warmup=warmup)
    (gone,) = screen(data).excluded
    assert (gone.run, gone.reason) == ("run 3", "warm-up dominated: 80 % of its tokens")
    assert len(screen(data, keep=("warmup",))) == len(data)


def test_the_highest_losses_are_dropped_on_request():
    data = noisy()
    left = drop_highest(data, 3)
    assert len(left) == len(data) - 3
    assert left.loss.max() < np.sort(data.loss)[-3]


def make_run(
    path, words=(), *, kinds=("start", "finished"), val_loss=3.0, n_tokens=1_000_000, warmup=20_000
):
    """A run directory as a driver leaves it."""
    config = compose(["train.n_tokens=1M", *words])
    counts = count(config)
    run_dir = RunDir(path).create()
    run_dir.write_config(config)
    run_dir.write_plan(
        {
            "counts": vars(counts),
            "n_tokens": n_tokens,
            "n_steps": 10,
            "warmup_tokens": warmup,
            "decay_tokens": 0,
        }
    )
    for kind in kinds:
        run_dir.event(kind)
    log = MetricLog(run_dir.metrics)
    log.record(1, n_tokens // 10, 1e9, 0.1, {names.TRAIN_LOSS: 9.0})
    log.record(
        10, n_tokens, float(counts.flops_per_token * n_tokens), 1.0, {names.VAL_LOSS: val_loss}
    )
    return counts


def test_a_study_gives_its_finished_runs(tmp_path):
    counts = make_run(tmp_path / "a")
    make_run(tmp_path / "group" / "b", ["model=gpt_tiny"], val_loss=2.5)
    make_run(tmp_path / "begun", kinds=("start",))
    make_run(tmp_path / "constant", ["schedule=constant"])
    make_run(tmp_path / "diverged", val_loss=math.nan)
    make_run(tmp_path / "warm", warmup=700_000)
    make_run(tmp_path / "parent", [f"train.parent='{'ab' * 32}@7'"])
    (tmp_path / "results.csv").write_text("run,state\na,finished\nwaiting-0123abcd,new\n")
    make_run(tmp_path / "torn")
    (tmp_path / "torn" / "metrics.jsonl").write_text("?\n{}\n")
    read = points_of_study(tmp_path)
    assert dict(zip(read.names, read.loss, strict=True)) == {"a": 3.0, "group/b": 2.5}
    assert read.n_params[0] == counts.n_params
    assert read.flops[0] == counts.flops_per_token * 1_000_000
    assert read.definitions.n_counts == "with embeddings"
    assert read.definitions.loss_of == "val/loss"
    reasons = {gone.run: gone.reason for gone in read.excluded}
    assert reasons["begun"] == "unfinished: begun"
    assert reasons["constant"].startswith("undecayed")
    assert reasons["diverged"].startswith("diverged")
    assert reasons["torn"].startswith("damaged")
    assert reasons["warm"].startswith("warm-up dominated")
    assert reasons["parent"].startswith("its values changed during training")
    assert reasons["waiting-0123abcd"] == "not begun"
    assert set(points_of_study(tmp_path, keep=("undecayed", "warmup")).names) == {
        "a",
        "group/b",
        "constant",
        "warm",
    }
    without = points_of_study(tmp_path, n_counts="without_embeddings", c_counts="6ND")
    assert without.n_params[0] == counts.n_params_non_embedding
    assert without.flops[0] == pytest.approx(6 * counts.n_params_non_embedding * 1e6)


def test_the_next_run_shares_all_but_the_place_and_the_length(tmp_path):
    make_run(tmp_path / "small", val_loss=3.2, n_tokens=500_000)
    make_run(
        tmp_path / "large",
        ["run.root=/elsewhere", "run.name=large", "train.eval_every=7", "optim.lr=0.007"],
    )
    base = points_of_study(tmp_path).base
    assert base is not None
    assert base.optim.lr == 0.007
    assert (base.run.root, base.run.name, base.train.eval_every) == ("runs", None, None)


def test_a_study_of_two_losses_is_refused(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", ["tokenizer.vocab_size=2048"])
    with pytest.raises(DataError, match=r"mix definitions: tokenizer.vocab_size"):
        points_of_study(tmp_path)


def test_a_study_without_finished_runs_says_so(tmp_path):
    make_run(tmp_path / "a", kinds=("start", "failed"))
    with pytest.raises(DataError, match=r"no finished run .a: unfinished: failed"):
        points_of_study(tmp_path)
    with pytest.raises(ConfigError, match="no directory"):
        points_of_study(tmp_path / "none")


def test_a_law_is_offered_where_one_can_be_fitted(tmp_path):
    assert not allows_a_law(tmp_path)
    for i, lr in enumerate((0.001, 0.002, 0.004, 0.008)):
        make_run(tmp_path / f"lr{i}", [f"optim.lr={lr}"], val_loss=3.0 + i / 100)
    assert not allows_a_law(tmp_path)  # one size and one length
    for i in range(1, 4):
        make_run(tmp_path / f"d{i}", val_loss=3.0 - i / 10, n_tokens=1_000_000 * 2**i)
    assert allows_a_law(tmp_path)
