"""Scores agree with scikit-learn and scipy, also at their limits, and cannot be gamed."""

import warnings

import numpy as np
import pytest
import xarray as xr
from scipy.special import gammaln
from scipy.stats import pearsonr, poisson
from sklearn.metrics import mean_poisson_deviance, mean_squared_error, r2_score

from retinakit import scores
from retinakit.contracts import groups
from retinakit.pipeline.combine import combine
from retinakit.report import chosen, curves
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.analyses.readout_table import ReadoutTable
from retinakit_plugins.analyses.score import Score
from retinakit_plugins.analyses.sweep_curve import SweepCurve

POISSON = {
    "log_likelihood": scores.poisson_log_likelihood,
    "bits": scores.bits_per_spike,
    "rate of bits": lambda p, y: scores.bits_per_second(p, y, 0.01),
    "loss": lambda p, y: -scores.poisson_loss(p, y),
    "deviance": lambda p, y: -scores.poisson_deviance(p, y),
}
"""The Poisson scores, with a sign that makes larger ones better."""


def frames(*values):
    return [xr.DataArray(np.asarray(v, float), dims="frame") for v in values]


@pytest.fixture(scope="module")
def traces():
    random = np.random.default_rng(0)
    rate = random.gamma(1.0, 0.5, 300)
    return rate, random.poisson(rate)


def test_scores_agree_with_scikit_learn_and_scipy(traces):
    p, y = traces
    rate, counts = frames(p, y)
    likelihood = poisson.logpmf(y, p)
    gained = (likelihood - poisson.logpmf(y, y.mean())).sum() / np.log(2)
    expected = {
        scores.correlation: pearsonr(p, y).statistic,
        scores.mean_squared_error: mean_squared_error(y, p),
        scores.fraction_of_explained_variance: r2_score(y, p),
        scores.poisson_deviance: mean_poisson_deviance(y, p),
        scores.poisson_log_likelihood: likelihood.mean(),
        scores.bits_per_spike: gained / y.sum(),
    }
    for score, value in expected.items():
        assert float(score(rate, counts)) == pytest.approx(value), score.__name__
    assert float(scores.bits_per_second(rate, counts, 0.02)) == pytest.approx(gained / (0.02 * 300))
    loss = -(likelihood + gammaln(y + 1)).mean()
    assert float(scores.poisson_loss(rate, counts)) == pytest.approx(loss)


@pytest.mark.parametrize("score", POISSON.values(), ids=POISSON)
@pytest.mark.parametrize("rate", [0.0, -1e-9, -3.0])
def test_a_rate_of_0_or_less_is_infinitely_bad_with_a_spike_and_never_better_than_0(score, rate):
    counts = frames([0, 1, 3, 0])[0]
    with_spike, empty, zero = frames([0.1, rate, 2, 1], [rate, 1, 2, 1], [0, 1, 2, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(score(with_spike, counts)) == -np.inf
        assert float(score(empty, counts)) == float(score(zero, counts))
    p = zero.values
    if score is scores.poisson_log_likelihood:
        assert float(score(zero, counts)) == pytest.approx(poisson.logpmf(counts, p).mean())
        assert poisson.logpmf(1, 0) == -np.inf


def test_the_limits_of_the_scores_give_no_warnings():
    silent, constant, unknown = frames([0, 0, 0], [2, 2, 2], [np.nan] * 3)
    rate = frames([0.5, 1, 2])[0]
    pairs = [(rate, silent), (rate, constant), (rate, unknown), (unknown, rate), (constant, rate)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {
            name: [float(score(p, y)) for p, y in pairs]
            for name, score in {
                **POISSON,
                "correlation": scores.correlation,
                "fev": scores.fraction_of_explained_variance,
                "mse": scores.mean_squared_error,
            }.items()
        }
    assert np.isnan(found["bits"][0])  # there is no spike
    assert found["rate of bits"][0] == pytest.approx(-3.5 / 0.03 / np.log(2))
    assert np.isnan(found["fev"][1]) and np.isfinite(found["fev"][4])
    assert np.isnan([values[2:4] for values in found.values()]).all()
    assert np.isnan(np.array(found["correlation"])).all()


def test_a_missing_prediction_is_not_left_out(traces):
    rate, counts = frames(*traces)
    start = rate.where(rate["frame"] >= 5)  # without a full history
    for missing in (np.nan, np.inf):
        gap = start.where(rate["frame"] != 50, missing)
        for name, score in (POISSON | {"correlation": scores.correlation}).items():
            assert np.isfinite(score(start, counts)), name
            assert np.isnan(score(gap, counts)), name
            assert np.isfinite(score(gap, counts.where(rate["frame"] != 50))), name
        assert scores.reason(gap, counts) == scores.NOT_PREDICTED
    assert scores.reason(start, counts) == ""
    # A history of 4 frames does not explain 5 missing frames.
    assert scores.reason(scores.checked(start, lags=5), counts) == scores.NOT_PREDICTED
    assert scores.reason(scores.checked(start, lags=6), counts) == ""


def test_the_correlation_of_the_mean_is_that_of_the_means_over_cells():
    random = np.random.default_rng(0)
    observed, predicted = random.gamma(2.0, 1.0, (2, 200, 6))
    observed += random.gamma(2.0, 1.0, (200, 1))
    predicted += observed.mean(1, keepdims=True)
    predicted[:4], observed[:, 2] = np.nan, np.nan
    dims = ("frame", "cell")
    recorded = [0, 1, 3, 4, 5]
    means = [trace[4:, recorded].mean(1) for trace in (predicted, observed)]
    traces = [xr.DataArray(trace, dims=dims) for trace in (predicted, observed)]
    found = float(scores.correlation_of_mean(*traces))
    assert found == pytest.approx(pearsonr(*means).statistic)
    assert found > float(scores.correlation(*traces).mean())
    predicted[50, 0] = np.nan
    assert np.isnan(scores.correlation_of_mean(*traces))


def test_the_population_correlation_is_that_of_the_means_over_time():
    random = np.random.default_rng(0)
    observed = random.gamma(2.0, 1.0, (200, 6)) * np.arange(1, 7)
    predicted = random.gamma(2.0, 1.0, (200, 6)) * np.array([1, 3, 2, 4, 6, 5])
    predicted[:4], observed[30:90, 2] = np.nan, np.nan
    dims = ("frame", "cell")
    known = np.isfinite(predicted) & np.isfinite(observed)
    means = [np.nanmean(np.where(known, a, np.nan), 0) for a in (predicted, observed)]
    traces = [xr.DataArray(a, dims=dims) for a in (predicted, observed)]
    found = float(scores.population_correlation(*traces))
    assert found == pytest.approx(pearsonr(*means).statistic)
    two = [trace.isel(cell=[0, 1]) for trace in traces]
    assert np.isnan(scores.population_correlation(*two))
    predicted[50, 0] = np.nan
    assert np.isnan(scores.population_correlation(*traces))


def test_the_error_of_the_ceiling_is_its_spread_over_draws_of_the_repeats():
    random = np.random.default_rng(0)
    rate = random.gamma(1.0, 1.0, (200, 60))  # 60 independent draws of the spikes, as cells
    rate[:] = rate[:, :1]
    counts = random.poisson(rate, (8, *rate.shape)).astype(float)
    response = xr.DataArray(counts, dims=("repeat", "frame", "cell"))
    error = scores.correlation_ceiling_error(response)
    spread = float(scores.correlation_ceiling(response).std("cell", ddof=1))
    assert 0.8 * spread < float(error.mean()) < 1.7 * spread  # the jackknife is conservative
    one = response.isel(cell=[0, 1])
    left_out = [scores.correlation_ceiling(one.drop_isel(repeat=i)) for i in range(8)]
    expected = np.sqrt(7 / 8 * ((left_out - np.mean(left_out, 0)) ** 2).sum(0))
    np.testing.assert_allclose(error[:2], expected)
    # Repeats that were not recorded do not count.
    more = one.pad(repeat=(0, 2))
    np.testing.assert_allclose(scores.correlation_ceiling_error(more), expected)
    assert np.isnan(scores.correlation_ceiling_error(one[:2])).all()


class Shown(SmallModel):
    """A fitted model whose predictions are changed by a function."""

    def change(self, function):
        self.function = function
        return self

    def respond(self, split):
        return self.function(super().respond(split).astype(float))


@pytest.fixture(scope="module")
def recording():
    return small_recording()


@pytest.fixture
def fitted(recording):
    model = Shown()
    model.fit(recording)
    return model


def floored(rate):
    return np.maximum(rate, 0.1)


def worse(rate):
    return floored(np.nanmax(rate) - rate)


def holed(rate):
    rate[-20, 1] = np.nan
    return floored(rate)


def empty(rate):
    return rate * np.nan


def test_a_good_model_has_no_warning(fitted, recording):
    assert not {"reason", "warning"} & set(Score().run(fitted.change(floored), recording))


def test_a_model_below_a_constant_rate_on_validation_has_a_warning(fitted, recording):
    result = Score().run(fitted.change(worse), recording)
    assert (result["bits_per_spike_validation"] < 0).all() and "reason" not in result
    assert result["warning"].str.contains("worse than a constant rate").all()


@pytest.mark.parametrize(("change", "lost"), [(holed, [False, True]), (empty, [True, True])])
def test_missing_predictions_have_no_score_but_a_reason_and_a_warning(
    change, lost, fitted, recording
):
    result = Score({"draws": 5}).run(fitted.change(change), recording)
    assert (result["reason"] == scores.NOT_PREDICTED).values.tolist() == lost
    assert (result["warning"].str.contains("NaN or infinite")).values.tolist() == lost
    for name in ("correlation", "correlation_rate", "fev", "feve", "bits_per_spike", "deviance"):
        assert result[name].isnull().values.tolist() == lost, name


def infinite_scores():
    """Scores of three penalties in two cells; one cell has -inf."""
    bits = [[0.1, 0.2], [-np.inf, 5.0], [-np.inf, 0.3]]
    point = xr.Dataset({"bits_per_spike": ("cell", [0.0, 0.0])}, {"cell": [7, 8]})
    points = []
    for penalty, values in zip((1, 2, 3), bits, strict=True):
        scored = point.assign(
            bits_per_spike=("cell", values),
            correlation=("cell", [0.1 * penalty, 0.5]),
            reason=("cell", ["", ""]),
        )
        points.append(((("penalty", penalty),), scored))
    return xr.DataTree.from_dict({"/ridge": combine(points)})


def test_means_over_cells_keep_minus_infinity_and_are_drawn_without_warnings():
    result = infinite_scores()
    result["ridge"].attrs["sweep"] = "penalty"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = curves(result, "bits_per_spike", "penalty", ["cell"])
        assert found["mean"].values.tolist() == [[pytest.approx(0.15), -np.inf, -np.inf]]
        assert np.isnan(found["deviation"].values[0, 1:]).all()
        for swept in (result, xr.DataTree.from_dict({"/ridge": one(result)})):
            Score().plot(swept).draw_without_rendering()
        assert "-inf in 2 of 6" in Score().caption(result)
        shown = Score().table(result)
        assert np.isneginf(shown["bits_per_spike"]).sum() == 2
        curve = SweepCurve({"scores": ["bits_per_spike"], "spread": ["cell"]})
        drawn = xr.DataTree(curve.run({"score": result}))
        curve.plot(drawn).draw_without_rendering()
        assert "2 infinite means" in curve.caption(drawn)
        table = ReadoutTable({"score": "bits_per_spike", "columns": "penalty"})
        read = table.run({"score": result})
        assert read["value"].values.tolist() == [[pytest.approx(0.15), -np.inf, -np.inf]]
        assert read["average"].values.tolist() == [-np.inf]
        table.plot(xr.DataTree(read)).draw_without_rendering()


def test_a_table_has_scores_of_the_whole_population():
    group = xr.Dataset(
        {
            "correlation_of_mean": ("seed", [0.9, 0.5]),
            "bits_per_spike_validation": (("seed", "cell"), [[0.1, 0.2], [0.3, 0.4]]),
        },
        {"seed": [0, 1], "cell": [0, 1]},
        {"sweep": "seed"},
    )
    table = ReadoutTable({"score": "correlation_of_mean"})
    read = table.run({"s": xr.DataTree.from_dict({"/m": group})})
    assert (read["value"].item(), read["cells"].item()) == (0.5, 1)


def one(result):
    return result["ridge"].to_dataset().isel(penalty=1, drop=True).assign_attrs(sweep="")


def test_the_best_point_is_not_one_with_missing_or_infinite_scores():
    result = infinite_scores()

    def best(by="bits_per_spike", **changed):
        group = result["ridge"].to_dataset().assign_attrs(sweep="penalty").assign(**changed)
        tree = xr.DataTree.from_dict({"/ridge": group})
        return int(groups(chosen(tree, ["penalty"], by, largest=True))["ridge"]["best_penalty"])

    assert best() == 1
    bits = result["ridge"]["bits_per_spike"]
    assert best(bits_per_spike=bits.where(bits["penalty"] > 1, -np.inf)) == 2
    assert best(bits_per_spike=bits.where(bits["penalty"] > 1)) == 2
    assert best("correlation") == 3
    correlation = result["ridge"]["correlation"]
    first = correlation["cell"] == 7
    lacking = correlation.where(~(first & (correlation["penalty"] == 3)), np.nan)
    assert best("correlation", correlation=lacking) == 2


def test_a_mean_over_cells_does_not_count_missing_scores_as_0():
    reasons = ["", "the response is constant", scores.CONSTANT_PREDICTION, scores.NOT_RECORDED]
    group = xr.Dataset(
        {
            "correlation": ("cell", [0.8, np.nan, np.nan, np.nan]),
            "fev": ("cell", [0.6, np.nan, 0.0, np.nan]),
            "bits_per_spike": ("cell", [0.5, 0.1, 0.2, np.nan]),
            "reason": ("cell", reasons),
        },
        {"cell": range(4)},
    )

    def read(group, score="correlation"):
        result = ReadoutTable({"score": score}).run({"s": xr.DataTree.from_dict({"/m": group})})
        assert "1 recorded cells" in ReadoutTable().caption(xr.DataTree(result))
        return result["value"].item(), result["cells"].item(), result["without_score"].item()

    assert read(group) == (pytest.approx(0.4), 2, 1)
    assert read(group, "fev") == (pytest.approx(0.3), 2, 1)
    lacking = group.assign(reason=("cell", [*reasons[:2], scores.NOT_PREDICTED, reasons[3]]))
    assert np.isnan(read(lacking)[0])
