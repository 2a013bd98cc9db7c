"""Losses that do not follow a variable give it no exponent, and degenerate tables no warnings of
Python."""

import warnings

import numpy as np
import pytest

from scaling import fit
from scaling.errors import ConfigError
from scaling.laws.forms import GADRE, KAPLAN, every_form
from scaling.laws.identified import unidentified
from scaling.laws.recommend import recommend
from scaling.laws.report import interval_text, number
from tests.support.points import chinchilla, noisy, points, write_table

N, D = (each.ravel() for each in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e10, 3)))
NOISE = np.exp(np.random.default_rng(4).normal(0, 0.01, len(N)))
TWO = {"chinchilla", "kaplan", "gadre"}


@pytest.mark.parametrize("noise", [NOISE, np.ones(len(N))])
def test_what_the_losses_do_not_follow_has_no_exponent(noise):
    def unclear(loss):
        return unidentified(points(N, D, loss * noise), delta=1e-3)

    assert unclear(chinchilla(N, D)) == {}
    of_n, of_d = unclear(2 + 400 / N**0.34), unclear(2 + 1000 / D**0.3)
    assert set(of_n) == TWO | {"kaplan_d", "floor_d"}
    assert "do not follow D beyond their noise, so its exponent" in of_n["chinchilla"]
    assert set(of_d) == TWO | {"kaplan_n", "floor_n"}
    assert "do not follow N beyond their noise, so its exponent" in of_d["kaplan"]
    assert set(unclear(np.full(len(N), 2.5))) == set(every_form())


def test_a_law_is_not_refused_for_its_noise():
    assert unidentified(noisy(sigma=0.1), delta=1e-3) == {}


def test_a_table_of_one_loss_is_refused(tmp_path, capsys):
    table = write_table(tmp_path / "t.csv", {"n": N, "d": D, "loss": [2.5] * len(N)})
    assert fit.main([f"table={table}", "n=n", "d=d", f"out={tmp_path / 'out'}"]) == 1
    assert "15 points (2.5 to 2.5) do not fall with N, D or C" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # draws a report
def test_a_degenerate_table_warns_in_words_alone(tmp_path, capsys):
    """One ratio of tokens to parameters leaves a figure without lines, and three runs leave
    coefficients beyond all floats."""
    few = {"n": [1e6, 2e6, 1e7, 1e8], "loss": [5.1, 4.9, 3.4, 3.36]}
    table = write_table(tmp_path / "t.csv", few | {"d": [20 * n for n in few["n"]]})
    words = [f"table={table}", "n=n", "d=d", "draws=50", "form=kaplan_n", f"out={tmp_path / 'out'}"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit.main(words) == 0
    assert "nan" not in capsys.readouterr().out


def test_numbers_beyond_all_floats_are_named():
    for form, theta in ((KAPLAN, [60.0, 10, 0.02, 0.1]), (GADRE, [0.0, -20, 40, 0.0025])):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = form.reported(np.array([theta]))
        assert np.isinf(found["N_c" if form is KAPLAN else "M_opt"]).all()
    assert number(np.inf) == "above 1e308"
    assert number(0.5) == "0.5"
    assert interval_text((np.nan, np.nan)) == "unknown"


@pytest.mark.parametrize(("n", "d"), [(1e300, 1e9), (np.inf, 1e9), (0.0, 1e9), (1e9, 1e40)])
def test_a_run_out_of_this_world_is_not_recommended(n, d):
    with pytest.raises(ConfigError, match=r"the law recommends .*, and a run has 1 to 1e\+1"):
        recommend(n, d, with_embeddings=True)
