"""Approaches 1 and 2, repeated data and downstream metrics recover known laws."""

import numpy as np
import pytest
from scipy.interpolate import Akima1DInterpolator

from scaling.errors import DataError
from scaling.laws.downstream import exponential, fit_downstream, sigmoid
from scaling.laws.envelope import fit_envelope, front
from scaling.laws.forecast import optimal_n
from scaling.laws.forms import CHINCHILLA
from scaling.laws.intervals import percentile_interval
from scaling.laws.isoflop import _minima, find_budgets, fit_isoflop
from scaling.laws.repeated import best_size_for, effective, fit_repeated
from tests.support.points import ALPHA, BETA, A, B, E, chinchilla, isoflop_grid, noisy, points

EXPONENT = BETA / (ALPHA + BETA)


@pytest.mark.parametrize("axis", ["n", "d"])
@pytest.mark.parametrize("method", ["akima", "parabola"])
def test_the_exponent_is_recovered(axis, method):
    data = noisy(sigma=1e-4, sizes=15)
    found = fit_isoflop(data, axis=axis, method=method, draws=200)
    truth = EXPONENT if axis == "n" else 1 - EXPONENT
    assert found.exponent == pytest.approx(truth, abs=0.02)
    low, high = percentile_interval(found.exponents)
    assert low < truth < high
    assert [curve.flops for curve in found.curves] == pytest.approx([1e18, 3e18, 1e19, 3e19, 1e20])


def test_more_noise_widens_the_interval():
    data = noisy(sigma=1e-3, sizes=15)
    widths = []
    for noise in ([(1.0, 1e-3), (10.0, 1e-3)], [(1.0, 2e-2), (10.0, 2e-2)]):
        low, high = percentile_interval(fit_isoflop(data, noise=noise, draws=300).exponents)
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_akima_is_scipys():
    x = np.log(np.geomspace(1e6, 1e8, 8))
    loss = 3 + 0.1 * (x - x[3] - 0.1) ** 2
    place, height = _minima(x, loss[:, None], "akima", 7)
    fine = np.linspace(x[0], x[-1], 100_001)
    curve = np.exp(Akima1DInterpolator(x, np.log(loss))(fine))
    assert place[0] == pytest.approx(fine[curve.argmin()], abs=(x[1] - x[0]) / 20)
    assert height[0] == pytest.approx(curve.min(), rel=1e-4)


def test_a_parabola_finds_its_vertex():
    x = np.log(np.geomspace(1e6, 1e8, 9))
    place, height = _minima(x, (3 + 0.2 * (x - 16.0) ** 2)[:, None], "parabola", 7)
    assert (place[0], height[0]) == pytest.approx((16.0, 3.0), rel=1e-9)


def test_a_minimum_at_the_edge_does_not_count():
    n, d = isoflop_grid()
    c = 6 * n * d
    smallest = c < 1.1e18
    keep = ~smallest | (n < 0.99 * np.median(n[smallest]))
    found = fit_isoflop(points(n[keep], d[keep], chinchilla(n[keep], d[keep])), draws=50)
    assert found.curves[0].x_star is None
    assert "largest value tried" in found.curves[0].trouble
    assert found.curves[1].trouble is None


def test_budgets_are_windows_of_flops():
    flops = np.array([1.0, 1.05, 0.97, 1.02, 2.0, 5.0, 5.1, 4.9, 5.05, 5.2])
    sizes = np.arange(1, 11, dtype=float)
    found = find_budgets(flops, sizes)
    assert [sorted(rows.tolist()) for _, rows in found] == [[0, 1, 2, 3], [5, 6, 7, 8, 9]]
    assert [c for c, _ in find_budgets(flops, sizes, budgets=(5.0,))] == [5.0]


def test_one_budget_is_no_power_law():
    assert fit_isoflop(noisy(budgets=(1e18,)), draws=50) is None


def test_the_envelope_holds_what_nothing_cheaper_beats():
    assert front(np.array([3.0, 1, 2, 4, 2]), np.array([2.0, 3, 3.5, 2.5, 2.9])).tolist() == [
        1,
        4,
        0,
    ]
    found = fit_envelope(
        noisy(sigma=1e-5, budgets=tuple(np.geomspace(1e18, 1e21, 12)), sizes=41), draws=50
    )
    assert found.exponent == pytest.approx(EXPONENT, abs=0.02)
    assert fit_envelope(noisy(budgets=(1e18,)), draws=10) is None


def repeated_points(r_d=15.0, r_n=5.0, sigma=0.0):
    n, unique, repeats = (
        x.ravel()
        for x in np.meshgrid(np.geomspace(1e6, 3e9, 9), [1e8, 1e9, 1e10], [0.3, 1, 3, 10, 40])
    )
    d = unique * repeats
    size = np.minimum(
        n, best_size_for(np.array([np.log(E), np.log(A), np.log(B), ALPHA, BETA]), unique)
    )
    # Muennighoff et al. 2023, eq. 6, written out.
    tokens = np.where(d <= unique, d, unique + unique * r_d * (1 - np.exp(-(d / unique - 1) / r_d)))
    params = size + size * r_n * (1 - np.exp(-(n / size - 1) / r_n))
    loss = E + A / params**ALPHA + B / tokens**BETA
    noise = np.exp(np.random.default_rng(0).normal(0, sigma, len(n)))
    return points(n, d, loss * noise, unique_tokens=unique)


def test_the_worth_of_repetition_is_recovered():
    data = repeated_points()
    # The base is of runs on fresh data, and exact where these have no more parameters than suit
    # their corpus.
    theta = np.array([np.log(E), np.log(A), np.log(B), ALPHA, BETA])
    fresh_and_large = (data.n_tokens <= data.unique_tokens) & (
        data.n_params > best_size_for(theta, data.unique_tokens)
    )
    data = data.at(~fresh_and_large)
    found = fit_repeated(data, draws=20)
    assert found.base.parameters["alpha"] == pytest.approx(ALPHA, rel=1e-4)
    assert (found.r_d, found.r_n) == pytest.approx((15, 5), rel=1e-3)
    low, high = found.interval(0)
    assert low <= found.r_d * 1.001
    assert high >= found.r_d * 0.999
    assert found.loss(data.n_params, data.n_tokens, data.unique_tokens) == pytest.approx(
        data.loss, rel=1e-3
    )


def test_the_best_size_for_some_tokens_is_where_they_are_optimal():
    theta = np.array([np.log(E), np.log(A), np.log(B), ALPHA, BETA])
    tokens = np.array([3e9])
    size = best_size_for(theta, tokens)
    assert optimal_n(CHINCHILLA, theta[None], size * tokens) == pytest.approx(size)


def test_effective_tokens_have_their_limits():
    unique = np.array([100.0])
    assert effective(np.array([60.0]), unique, 15.0) == pytest.approx(60.0)
    assert effective(np.array([200.0]), unique, 1e9) == pytest.approx(200.0)
    assert effective(np.array([1e9]), unique, 15.0) == pytest.approx(1600.0)


def test_repetition_needs_runs_on_fresh_data():
    data = repeated_points()
    with pytest.raises(DataError, match="without repetition cannot be fitted"):
        fit_repeated(data.at(data.n_tokens > data.unique_tokens))
    with pytest.raises(DataError, match="repeat data"):
        fit_repeated(data.at(data.n_tokens <= data.unique_tokens))


@pytest.mark.parametrize(
    ("curve", "function", "p"),
    [("sigmoid", sigmoid, [0.7, 0.25, 3.0, 3.0]), ("exponential", exponential, [0.9, 3.0, 0.8])],
)
def test_a_downstream_curve_is_recovered(curve, function, p):
    loss = np.linspace(2.0, 4.5, 30)
    metric = function(np.array(p), loss) + np.random.default_rng(0).normal(0, 1e-4, 30)
    found = fit_downstream(
        points(np.full(30, 1e8), np.full(30, 1e9), loss, metric=metric), curve, draws=30
    )
    assert found.p == pytest.approx(p, rel=0.02)
    assert found.rms < 2e-4
    with pytest.raises(DataError, match="needed"):
        fit_downstream(points(*np.ones((3, 4)), metric=np.ones(4)), curve)
