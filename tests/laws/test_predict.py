"""Predictions agree with scipy's minimisers on the law that they are of."""

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from scaling.errors import ConfigError
from scaling.laws import forecast as predict
from scaling.laws.forecast import Law
from scaling.laws.forms import CHINCHILLA, FORMS, predict_loss
from scaling.laws.points import Definitions
from tests.support.points import ALPHA, BETA, THETAS, A, B, E, chinchilla


def law(name="chinchilla", draws=200, residual=0.01, flops_per_nd=6.0):
    form, theta = FORMS[name], np.array(THETAS[name])
    generator = np.random.default_rng(0)
    sample = theta + generator.normal(0, 0.002, (draws, len(theta)))
    residuals = generator.normal(0, residual, 100)
    definitions = Definitions(flops_per_nd=flops_per_nd)
    return Law(form, theta, sample, residuals, definitions, (1e7, 1e9, 1e18), (1e9, 1e11, 1e21))


@pytest.mark.parametrize("name", ["chinchilla", "kaplan", "gadre"])
def test_the_best_split_is_scipys(name):
    of, flops = law(name, flops_per_nd=7.0), 1e20
    found = predict.best_of_budget(of, flops)

    def loss(log_n):
        n = np.exp(log_n)
        return predict_loss(of.form, of.theta, np.array([n]), np.array([flops / 7 / n]))[0, 0]

    best = minimize_scalar(loss, bounds=(10, 35), method="bounded", options={"xatol": 1e-9})
    assert found.n_params.value == pytest.approx(np.exp(best.x), rel=1e-4)
    assert found.loss.value == pytest.approx(best.fun, rel=1e-12)
    assert found.n_params.value * found.n_tokens.value == pytest.approx(flops / 7)
    assert found.tokens_per_param.value == pytest.approx(
        found.n_tokens.value / found.n_params.value
    )
    limit = 1.001 * best.fun
    assert found.near == pytest.approx(
        [
            np.exp(brentq(lambda x: loss(x) - limit, *ends))
            for ends in ((best.x - 9, best.x), (best.x, best.x + 9))
        ],
        rel=1e-6,
    )


def test_the_budget_of_a_loss_is_the_inverse():
    of = law()
    loss = predict.best_of_budget(of, 3e20).loss.value
    found = predict.budget_of_loss(of, loss)
    assert found.value == pytest.approx(3e20, rel=1e-6)
    assert found.low < 3e20 < found.high
    with pytest.raises(ConfigError, match=r"no budget reaches a loss of 1.5.*\n.*ends at 1.7"):
        predict.budget_of_loss(of, 1.5)


def test_a_new_run_is_less_certain_than_the_mean():
    found = predict.loss_at(law(), 1e9, 2e10)
    assert found.value == pytest.approx(chinchilla(1e9, 2e10))
    assert found.new_low < found.low < found.value < found.high < found.new_high
    sure = law()
    sure = Law(
        sure.form,
        sure.theta,
        np.tile(sure.theta, (200, 1)),
        sure.residuals,
        sure.definitions,
        sure.smallest,
        sure.largest,
    )
    found = predict.loss_at(sure, 1e9, 2e10)
    assert found.low == pytest.approx(found.high)
    # 1.96 standard deviations of a 1 % residual, from 100 of them
    assert found.new_high / found.value == pytest.approx(1.0196, abs=0.006)


def test_residuals_shift_a_new_run_the_right_way():
    """A law that predicts 10 % too much everywhere: new runs end below its mean."""
    of = law()
    high = Law(
        of.form,
        of.theta,
        of.draws,
        np.full(9, np.log(1.1)),
        of.definitions,
        of.smallest,
        of.largest,
    )
    found = predict.loss_at(high, 1e9, 2e10)
    assert found.new_high < found.high
    assert (found.new_low + found.new_high) / 2 == pytest.approx(found.value / 1.1, rel=0.01)


def test_over_training_reaches_the_same_loss():
    of, flops = law(), 1e21
    best = predict.best_of_budget(of, flops)
    prices = predict.over_training(of, flops)
    assert [price.inference_flops for price in prices] == pytest.approx(
        [0.75, 0.5, 0.33, 0.25][: len(prices)]
    )
    for price in prices:
        assert chinchilla(price.n_params, price.n_tokens) == pytest.approx(
            best.loss.value, rel=1e-9
        )
        training = price.n_params * price.n_tokens * 6
        assert price.training_flops == pytest.approx(training / flops)
        served = price.break_even_tokens
        assert training + 2 * price.n_params * served == pytest.approx(
            flops + 2 * best.n_params.value * served
        )


def test_decades_beyond_count_the_farthest_variable():
    of = law()
    assert predict.decades_beyond(of, flops=1e20, n_params=1e8, n_tokens=1e10) == 0
    assert predict.decades_beyond(of, flops=1e23) == pytest.approx(2)
    assert predict.decades_beyond(of, flops=1e20, n_params=1e4) == pytest.approx(3)
    assert predict.decades_beyond(of, flops=1e15, n_params=1e8) == pytest.approx(3)


def test_a_form_of_one_variable_has_no_best_split():
    with pytest.raises(ConfigError, match="no best split"):
        predict.best_of_budget(law("floor_n"), 1e20)


def test_the_closed_form_is_hoffmanns():
    G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    theta = np.array([[np.log(E), np.log(A), np.log(B), ALPHA, BETA]])
    assert predict.optimal_n(CHINCHILLA, theta, 1e20)[0] == pytest.approx(
        G * 1e20 ** (BETA / (ALPHA + BETA))
    )
