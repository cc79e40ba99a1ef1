"""LN models and their fit: known optima, known truth, and the selection of prior and rank."""

import numpy as np
import pytest
import xarray as xr
from scipy.fft import dctn
from scipy.optimize import approx_fprime
from sklearn.linear_model import PoissonRegressor

from retinakit.contracts import SPLITS, UserError, make_recording, make_split
from retinakit.regression import (
    Drive,
    Exponential,
    FilterFit,
    Identity,
    MonotoneSpline,
    Penalty,
    Regressors,
    Softplus,
    averages,
    filter_spaces,
    most_probable_prior,
)
from retinakit.scores import bits_per_spike, correlation
from retinakit.testing import small_recording
from retinakit_plugins.models.ln import LN

LAGS = 8


def gaussian_map(size: int, centre: float, width: float) -> np.ndarray:
    place = np.arange(size)
    course = np.exp(-((place - centre) ** 2) / (2 * width**2))
    image = np.outer(course, course)
    return image / np.linalg.norm(image)


def course(peak: float) -> np.ndarray:
    lag = np.arange(LAGS)
    values = np.exp(-((lag - peak) ** 2) / 2) - 0.5 * np.exp(-((lag - peak - 3) ** 2) / 4)
    return values / np.linalg.norm(values)


def recording_of(filters, frames=24_000, size=11, rate=0.3, shape=None, seed=0, gain=1.5):
    """White noise and the spikes of an LN cell for each filter (lag, y, x)."""
    random = np.random.default_rng(seed)
    splits = {}
    for name, number in zip(SPLITS, (frames, frames // 4, frames // 4), strict=True):
        stimulus = random.choice(np.array([-1, 1], np.int8), (number, size, size))
        flat = stimulus.reshape(number, -1).astype(float)
        rates = []
        for weights in filters:
            drive = sum(
                np.convolve(flat @ weights[lag].ravel(), np.eye(LAGS)[lag])[:number]
                for lag in range(LAGS)
            )
            expected = np.logaddexp(0, gain * drive - 1) if shape is None else shape(drive)
            rates.append(rate * expected / expected.mean())
        expected = np.array(rates).T
        splits[name] = make_split(
            stimulus, random.poisson(expected), frame_interval=0.02, rate=expected
        )
    return make_recording(splits)


RANK_1 = np.multiply.outer(course(2), gaussian_map(11, 4, 1.5))


@pytest.fixture(scope="module")
def cell():
    return recording_of([RANK_1])


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def problem(nonlinearity, likelihood="poisson", frames=600, columns=5, extra=2):
    random = np.random.default_rng(1)
    y = random.poisson(1.0, frames).astype(float)
    data = Regressors(
        random.standard_normal((frames, columns)).astype(np.float32),
        y,
        np.arange(frames) >= LAGS - 1,
        random.standard_normal((frames, extra)).astype(np.float32),
    )
    return FilterFit(data, np.eye(LAGS)[:, :4], nonlinearity, likelihood)


PENALTY = Penalty(np.arange(1.0, 5), np.arange(1.0, 6), 0.7, np.eye(2))


@pytest.mark.parametrize(
    ("nonlinearity", "likelihood"),
    [
        (Softplus(), "poisson"),
        (Exponential(), "poisson"),
        (Identity(), "gaussian"),
        (MonotoneSpline(np.linspace(-4, 4, 5)), "poisson"),
    ],
)
def test_gradients_are_those_of_the_objective(nonlinearity, likelihood):
    fit, random = problem(nonlinearity, likelihood), np.random.default_rng(2)
    at = Drive(
        0.3 * random.standard_normal((2, 4)),
        0.3 * random.standard_normal((2, 5)),
        0.1 * random.standard_normal(2),
        0.2,
        0.1 * random.standard_normal(nonlinearity.number),
    )

    def objective(step):
        moved = at.moved(step)
        return fit._objective(moved, fit._seen(moved), PENALTY, 0.1)[0]

    _, parts = fit._objective(at, fit._seen(at), PENALTY, 0.1)
    found = fit._gradient(at, fit._seen(at), parts, PENALTY, 0.1)
    expected = approx_fprime(np.zeros(len(found)), objective, 1e-4)
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=0.1)


def test_a_convex_fit_has_the_optimum_of_scikit_learn():
    """All lags free, an exponential, and a ridge penalty: a Poisson regression."""
    random = np.random.default_rng(0)
    frames, lags = 3000, 3
    signal = random.standard_normal((frames, 2)).astype(np.float32)
    design = np.stack([np.roll(signal, lag, 0) for lag in range(lags)], 1).reshape(frames, -1)
    used = np.arange(frames) >= lags - 1
    y = random.poisson(np.exp(design @ random.normal(0, 0.3, 6) - 1)).astype(float)
    data = Regressors(signal, y * used, used, np.empty((frames, 0), np.float32))
    fit = FilterFit(data, np.eye(lags), Exponential(), fixed_courses=True)
    start = Drive(np.eye(lags), np.zeros((lags, 2)), np.zeros(0), np.log(y.mean()), np.zeros(0))
    strength = 20.0
    penalty = Penalty(np.ones(lags), np.ones(2), strength, np.zeros((0, 0)))
    found = fit.run(start, penalty, tolerance=1e-12)
    number = used.sum()
    expected = PoissonRegressor(alpha=strength / number, tol=1e-10, max_iter=1000)
    expected.fit(design[used], y[used])
    np.testing.assert_allclose(found.drive.maps.ravel(), expected.coef_, atol=1e-3)
    assert found.converged


def test_the_most_probable_prior_has_the_lengths_that_were_drawn():
    random = np.random.default_rng(0)
    shape, lengths, noise = (20, 24, 24), (3.0, 2.0), 0.05
    w2 = [(np.pi * np.arange(n) / n) ** 2 for n in shape]
    exponent = lengths[0] ** 2 * w2[0][:, None, None]
    exponent = exponent + lengths[1] ** 2 * (w2[1][:, None] + w2[2])
    coefficients = np.sqrt(np.exp(-0.5 * exponent)) * random.standard_normal(shape)
    noisy = coefficients + np.sqrt(noise) * random.standard_normal(shape)
    prior = most_probable_prior(noisy, np.ones(shape), noise)
    assert (prior.time, prior.space) == pytest.approx(lengths, rel=0.15)
    assert prior.variance == pytest.approx(1, rel=0.3)


def test_the_region_of_a_filter_is_around_its_peak(cell):
    space, *_ = filter_spaces(
        averages(cell["train"].to_dataset(), LAGS), 0, side=41, basis="cosine"
    )
    y, x = space.region
    assert y.start <= 2 and y.stop >= 7 and x.start <= 2 and x.stop >= 7
    assert space.images.number < 60  # of 121 pixels
    mean = space.courses @ space.start @ space.images.matrix().T
    assert cosine(mean, RANK_1[..., *space.region].reshape(LAGS, -1)) > 0.9


@pytest.mark.parametrize("prior", ["smooth", "spline", "independent"])
def test_ln_finds_filter_and_rate(cell, prior):
    model = LN({"lags": LAGS, "prior": prior})
    curves = model.fit(cell)
    assert bool(curves["converged"].all())
    test = cell["test"].to_dataset()
    predicted = model.predict(test)
    known = predicted.notnull().all("cell")
    bits = [bits_per_spike(p[known], test["response"][known]) for p in (predicted, test["rate"])]
    assert float(bits[0][0]) > float(bits[1][0]) - (0.06 if prior == "independent" else 0.03)
    found = model.parameters()["kernel"].values[0]
    assert cosine(found, RANK_1) > {"smooth": 0.98, "spline": 0.95, "independent": 0.9}[prior]


def test_validation_chooses_the_rank(cell):
    two = np.multiply.outer(course(1), gaussian_map(11, 3, 1.2))
    two = two + np.multiply.outer(course(4), gaussian_map(11, 7, 1.2))
    moving = recording_of([two / np.linalg.norm(two)], rate=1.0, seed=1)
    for recording, rank in ((cell, 1), (moving, 2)):
        curves = LN({"lags": LAGS, "length_factors": [1]}).fit(recording)
        assert curves["rank"].item() == rank


def test_a_full_filter_is_a_convex_problem_with_one_solution(cell):
    model = LN({"lags": LAGS, "rank": 0, "nonlinearity": "exponential", "length_factors": [1]})
    assert bool(model.fit(cell)["converged"].all())
    assert cosine(model.parameters()["kernel"].values[0], RANK_1) > 0.95


def test_a_cell_is_fitted_alone_as_among_others():
    other = np.multiply.outer(course(3), gaussian_map(11, 7, 1.2))
    both = recording_of([RANK_1, other], frames=8000)
    one = both.map_over_datasets(lambda s: s.isel(cell=[1]) if "cell" in s.dims else s)
    models = [LN({"lags": LAGS}) for _ in range(2)]
    for model, recording in zip(models, (both, one), strict=True):
        model.fit(recording)
    among, alone = (model.predict(one["test"])[:, -1] for model in models)
    np.testing.assert_allclose(among, alone, rtol=1e-6)


def test_a_saturating_nonlinearity_is_learned_as_a_spline():
    saturating = recording_of(
        [RANK_1], frames=24_000, rate=0.5, shape=lambda drive: 1 / (1 + np.exp(-4 * (drive - 0.5)))
    )
    test = saturating["test"].to_dataset()
    found = {}
    for nonlinearity in ("softplus", "spline"):
        model = LN({"lags": LAGS, "nonlinearity": nonlinearity, "length_factors": [1]})
        model.fit(saturating)
        found[nonlinearity] = float(correlation(model.predict(test), test["rate"])[0])
    curve = model.parameters()["nonlinearity"].values[0]
    assert (np.diff(curve) >= -1e-9).all()
    assert found["spline"] > max(0.98, found["softplus"] + 0.01)


def test_signed_responses_are_fitted_by_squared_error(cell):
    signed = cell.map_over_datasets(
        lambda s: s.assign(response=s["rate"] - 0.3) if "response" in s else s
    )
    model = LN({"lags": LAGS, "loss": "mse", "nonlinearity": "linear"})
    model.fit(signed)
    assert cosine(model.parameters()["kernel"].values[0], RANK_1) > 0.98
    with pytest.raises(UserError, match="set loss: mse"):
        LN({"nonlinearity": "linear"}).fit(cell)


def test_a_signed_trace_does_not_change_the_fit_of_a_count(cell):
    """A cell's fit does not depend on the responses of others, also if these are signed."""

    def with_trace(split):
        if "response" not in split:
            return split
        trace = split["response"] - split["response"].mean("frame") - 0.5
        both = xr.concat([split["response"], trace.assign_coords(cell=[1])], "cell")
        return split[["stimulus"]].assign(response=both.transpose("frame", "cell"))

    options = {"lags": LAGS, "loss": "mse"}
    alone, both = LN(options), LN(options)
    alone.fit(cell)
    both.fit(cell.map_over_datasets(with_trace))
    expected = alone.parameters()["kernel"].values[0]
    np.testing.assert_allclose(both.parameters()["kernel"].values[0], expected, atol=1e-7)
    linear = LN(options | {"nonlinearity": "linear"})
    linear.fit(cell.map_over_datasets(with_trace))
    assert cosine(linear.parameters()["kernel"].values[1], RANK_1) > 0.95
    with pytest.raises(UserError, match="set nonlinearity: linear"):
        LN(options | {"nonlinearity": "spline"}).fit(cell.map_over_datasets(with_trace))


def test_a_grey_screen_before_the_noise_changes_little(cell):
    """The contrast of the stimulus is that of the whole recording, not of its first frames."""

    def preceded(split):
        grey = np.zeros_like(split["stimulus"].values[:12_000])
        shown = [
            np.concatenate([before, split[name].values])
            for name, before in (("stimulus", grey), ("response", 0 * split["response"][:12_000]))
        ]
        return make_split(*shown, frame_interval=0.02)

    late = make_recording({name: preceded(cell[name].to_dataset()) for name in SPLITS})
    model = LN({"lags": LAGS, "rank": 1, "length_factors": [1]})
    model.fit(late)
    assert cosine(model.parameters()["kernel"].values[0], RANK_1) > 0.97


def test_a_full_filter_may_have_a_spline(cell):
    model = LN({"lags": LAGS, "rank": 0, "nonlinearity": "spline", "length_factors": [1]})
    model.fit(cell)
    assert cosine(model.parameters()["kernel"].values[0], RANK_1) > 0.95


def test_a_cell_without_spikes_has_a_constant_rate(cell):
    silent = cell.map_over_datasets(
        lambda s: s.assign(response=xr.zeros_like(s["response"])) if "response" in s else s
    )
    model = LN({"lags": LAGS})
    model.fit(silent)
    predicted = model.predict(silent["test"])[LAGS:]
    assert float(predicted.max()) < 1e-3
    assert np.isfinite(dctn(model.parameters()["kernel"].values)).all()


def test_a_movie_of_large_offset_and_scale_gives_the_same_prediction(cell):
    shifted = cell.map_over_datasets(
        lambda s: s.assign(stimulus=(s["stimulus"] * 40.0 + 128)) if "stimulus" in s else s
    )
    models = [LN({"lags": LAGS, "rank": 1}) for _ in range(2)]
    predicted = []
    for model, recording in zip(models, (cell, shifted), strict=True):
        model.fit(recording)
        predicted.append(model.predict(recording["test"]))
    np.testing.assert_allclose(predicted[1], predicted[0], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 0])
def test_a_fit_does_not_depend_on_the_lengths_that_were_tried_before(rank):
    recording = small_recording(frames=3000, cells=1)
    losses = {}
    for factors in ([0.3, 1.0], [1.0, 0.3], [1.0], [0.3]):
        model = LN({"lags": 12, "rank": rank, "length_factors": factors})
        losses[tuple(factors)] = model.fit(recording)["cell_validation_loss"].values[0]
    for factors, found in losses.items():
        for factor, loss in zip(factors, found, strict=True):
            if np.isfinite(loss):
                np.testing.assert_allclose(loss, losses[(factor,)][0], rtol=1e-3)


def test_lengths_are_above_0():
    with pytest.raises(ValueError, match="greater than 0"):
        LN({"length_factors": [1, 0]})
