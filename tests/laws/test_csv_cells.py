"""Cells of a table as people write them: read where there is one way to, else refused with the line
and the column."""

import math

import numpy as np
import pytest

from scaling.errors import DataError
from scaling.laws.analysis import load_points
from scaling.laws.csv_cells import number, read_table, truth
from scaling.laws.fit import fit
from scaling.laws.forms import FORMS
from scaling.laws.huber import solve_symmetric
from scaling.laws.intervals import refit
from scaling.laws.options import FitOptions


def written(tmp_path, text, **options):
    """The points of a table with these lines."""
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    return load_points(FitOptions(table=str(path), n="n", d="d", **options))


def cell(text):
    return {"": "7", "x": text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss,n,d\n9.8,1,234,567,20,123,456\n", "line 2 has 7 cells and the header 3"),
        ("loss,n,d\n3.5,1e6,1e8\n3.4,1e6\n", "line 3 has 2 cells and the header 3"),
        ("loss,n,d,loss\n3.5,1e6,1e8,9\n", "two columns 'loss', number 1 and 4"),
        ("loss,n,n ,d\n3.5,1e6,2e6,1e8\n", "two columns 'n', number 2 and 3"),
        ("", "names no columns"),
        ("loss;n;d\n3,5;1e6;1e8\n", r"columns by a semicolon \(;\)"),
        ('"loss (nats, mean)";"n";"d"\n3,5;1e6;1e8\n', r"columns by a semicolon \(;\)"),
        ("\ufeffloss\tn\td\n3,5\t1e6\t1e8\n", "columns by a tab"),
        ('loss,n,d\n3.5,"1e6,1e8\n', "cannot read"),
    ],
)
def test_a_table_that_is_no_table_names_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        written(tmp_path, text)


def test_what_changes_no_cell_is_no_fault(tmp_path):
    text = '\ufeffloss, n ,d,\n3.5,1e6,1e8,x\n\n3.4, "2,000,000", 2e8,\n,,,\n3.3,3e6,3e8,,,\n'
    points = written(tmp_path, text)
    assert points.n_params.tolist() == [1e6, 2e6, 3e6]
    assert points.names == ("line 2", "line 4", "line 6")
    header, rows = read_table(tmp_path / "t.csv")
    assert header == ["loss", "n", "d", ""]
    assert rows[0] == {"loss": "3.5", "n": "1e6", "d": "1e8", "": "2"}


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1,234,567", "n", 1234567),
        ("1 234 567", "n", 1234567),
        ("12\u202f345", "d", 12345),
        ("1'234", "n", 1234),
        ("1_000", "d", 1000),
        ("13.2B", "n", 13.2e9),
        ("124 M params", "n", 124e6),
        ("1e9 tokens", "d", 1e9),
        ("1.5T", "d", 1.5e12),
        ("300Btokens", "d", 300e9),
        ("5.76e23 FLOPs", "c", 5.76e23),
        ("2 ZFLOPs", "c", 2e21),
        ("2.345 nats", "loss", 2.345),
        ("45.2%", "metric", 0.452),
        ("-0.5", "metric", -0.5),
        ("inf", "loss", math.inf),
    ],
)
def test_a_number_is_read_as_it_is_written(text, kind, value):
    assert number(cell(text), "x", kind) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["", "n/a", "NaN", "None", "-", "null", "<NA>", "diverged"])
def test_a_missing_number_is_missing(text):
    assert math.isnan(number(cell(text), "x", "loss"))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("2,345", "loss"),
        ("1.2%", "loss"),
        ("3.4 bits", "loss"),
        ("50%", "n"),
        ("1e9 params", "d"),
        ("7B tokens", "n"),
        ("12,34,567", "n"),
        ("1,2345", "n"),
        ("1.234.567", "n"),
        ("5E", "c"),
        ("0x10", "n"),
        ("7 x 10^9", "n"),
        ("~7B", "n"),
        ("1e9-2e9", "d"),
        ("good", "metric"),
        ("1__0", "n"),
    ],
)
def test_a_number_that_could_be_several_is_refused(text, kind):
    with pytest.raises(DataError, match=r"line 7: x is '.*'.*\(column x\)"):
        number(cell(text), "x", kind)


def test_a_metric_is_in_percent_or_is_not(tmp_path):
    lines = ["loss,n,d,m", "3.5,1e6,1e8,40%", "3.4,2e6,1e8,n/a", "3.3,3e6,1e8,0.45"]
    with pytest.raises(DataError, match=r"line 4: m is '0.45' and '40%' in line 2"):
        written(tmp_path, "\n".join(lines), metric="m")
    points = written(tmp_path, "\n".join([*lines[:3], "3.3,3e6,1e8,45 %"]), metric="m")
    assert points.metric.tolist() == pytest.approx([0.4, 0.45])


@pytest.mark.parametrize("word", ["0.0", "0", "-0", "NaN", "none", "False", "no", "", "N/A", "f"])
def test_words_for_not_decayed(tmp_path, word):
    text = (
        f"loss,n,d,done\n3.5,1e6,1e8,{word}\n3.4,2e6,1e8,1.0\n3.3,3e6,1e8,True\n3.2,4e6,1e8,yes\n"
    )
    points = written(tmp_path, text, decayed="done")
    assert points.names == ("line 3", "line 4", "line 5")
    assert [(gone.run, gone.reason[:9]) for gone in points.excluded] == [("line 2", "undecayed")]
    assert len(written(tmp_path, text, decayed="done", keep="undecayed")) == 4


@pytest.mark.parametrize("word", ["2", "0.5", "partly", "100%", "inf"])
def test_other_words_are_neither_true_nor_false(word):
    with pytest.raises(DataError, match=r"line 7: x is .* neither true nor false"):
        truth(cell(word), "x")


def test_warm_up_is_tokens_or_a_share(tmp_path):
    text = "loss,n,d,w\n3.5,1e6,1e8,2%\n3.4,2e6,1e8,n/a\n3.3,3e6,1e8,60M\n3.2,4e6,1e8,80%\n"
    points = written(tmp_path, text, warmup="w")
    assert points.names == ("line 2", "line 3")
    assert [gone.reason for gone in points.excluded] == [
        f"warm-up dominated: {share} % of its tokens" for share in (60, 80)
    ]
    for bad in ("-1", "inf", "abc", "-2%"):
        with pytest.raises(DataError, match=f"line 2: w is '{bad}'"):
            written(tmp_path, f"loss,n,d,w\n3.5,1e6,1e8,{bad}\n", warmup="w")


def test_sizes_out_of_this_world_are_left_out(tmp_path):
    points = written(tmp_path, "loss,n,d\n3.5,1e6,1e8\n3.4,1e200,1e8\n3.4,1e6,1e-200\n")
    assert [gone.reason for gone in points.excluded] == [
        "n is 1e+200, outside 1e-30 to 1e+30",
        "d is 1e-200, outside 1e-30 to 1e+30",
    ]


def test_dropping_all_points_is_refused(tmp_path):
    with pytest.raises(DataError, match="drop_highest=1 leaves none of 1 point"):
        written(tmp_path, "loss,n,d\n3.5,1e6,1e8\n", drop_highest=1)


@pytest.mark.parametrize("name", ["chinchilla", "kaplan", "gadre"])
def test_draws_of_one_or_two_runs_have_a_fit_too(name):
    n, d = (x.ravel() for x in np.meshgrid([1e6, 3e6, 1e7, 3e7, 1e8], [1e8, 4e8, 2e9]))
    loss = (1.7 + 400 / n**0.34 + 2000 / d**0.36) * (
        1 + 0.002 * np.random.default_rng(0).normal(size=15)
    )
    weights = np.zeros((15, 15))
    weights[:, 0] = 7
    weights[np.arange(15), np.arange(15)] += 8
    drawn = refit(fit(FORMS[name], n, d, loss), n, d, loss, weights)  # numpy: Singular matrix
    assert np.isfinite(drawn.theta).all()
    assert drawn.objectives.max() < 1e-20  # two runs are met exactly


def test_a_flat_direction_gets_no_step_and_the_other_rows_stay_as_they_were():
    regular = np.array([[2.0, 1.0], [1.0, 3.0]])
    flat = np.array([[1.0, 1.0], [1.0, 1.0]])
    unknown = np.full((2, 2), np.nan)
    right = np.ones((4, 2, 1))
    found = solve_symmetric(np.array([regular, flat, np.zeros((2, 2)), unknown]), right)
    assert (found[0] == np.linalg.solve(regular, right[0])).all()
    assert found[1, :, 0] == pytest.approx([0.5, 0.5])
    assert (found[2] == 0).all()
    assert np.isnan(found[3]).all()
