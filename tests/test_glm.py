"""The GLM finds stimulus, history and coupling filters, and its spikes follow its rate."""

import logging

import numpy as np
import pytest
import xarray as xr
from scipy.stats import poisson

from retinakit import UserError
from retinakit.contracts import make_recording, make_split
from retinakit.regression import CountModel, Priors, fit_newton, orthonormal, raised_cosines
from retinakit.scores import bits_per_spike
from retinakit.simulation import simulate_with_feedback
from retinakit.spikes import ks_statistic, rescaled_intervals
from retinakit.testing import SmallModel, small_recording
from retinakit_plugins.analyses.glm_filters import GLMFilters
from retinakit_plugins.models.glm import GLM

COURSE = np.exp(-(((np.arange(20) - 5) / 2) ** 2)) / 2
OWN = -3 * np.exp(-np.arange(8) / 2)
OTHER = 1.5 * np.exp(-np.arange(8) / 2)
LARGEST = 5
"""Largest count of the simulated cells."""

FILTERS = np.array([[OWN, OTHER, 0 * OTHER], [OTHER, OWN, 0 * OTHER], [0 * OTHER, 0 * OTHER, OWN]])
"""Two cells excite each other, and a third one is uncoupled (cell, source, lag)."""


def drives(light, signs=(1, -1, 1)):
    return np.convolve(light, COURSE)[: len(light), None] * np.array(signs) - 1.5


def simulated(light, seed, pieces, repeats=1):
    counts, _ = simulate_with_feedback(
        drives(light),
        FILTERS,
        pieces,
        repeats=repeats,
        seed=seed,
        most=np.full(3, float(LARGEST)),
        ceiling=np.full(3, 1e3),
    )
    return counts


def split(frames, seed, repeats=0, segments=1):
    light = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), frames)
    segment = np.arange(frames) * segments // frames
    pieces = [slice(*np.flatnonzero(segment == i)[[0, -1]] + [0, 1]) for i in range(segments)]
    counts = simulated(light, seed, pieces, max(repeats, 1))
    return make_split(
        light[:, None, None],
        counts if repeats else counts[0],
        frame_interval=1 / 30,
        segment=segment,
    )


@pytest.fixture(scope="module")
def recording():
    return make_recording(
        {
            "train": split(24_000, 0, segments=3),
            "validation": split(2000, 1),
            "test": split(6000, 2),
        }
    )


@pytest.fixture(scope="module")
def fitted(recording):
    model = GLM()
    curves = model.fit(recording)
    return model, curves


def error(found, true):
    return np.linalg.norm(found - true) / np.linalg.norm(true)


class TestCoupledCells:
    def test_filters_are_those_of_the_cells(self, fitted):
        parameters = fitted[0].parameters()
        for cell, sign in enumerate((1, -1, 1)):
            assert error(parameters["kernel"].values[cell, :, 0, 0], sign * COURSE) < 0.15
            assert error(parameters["history"].values[cell], OWN) < 0.15
            assert abs(float(parameters["offset"][cell]) + 1.5) < 0.1
        for cell in range(2):
            assert error(parameters["coupling"].values[cell, 1 - cell], OTHER) < 0.15

    def test_an_absent_coupling_is_near_0(self, fitted):
        coupling = fitted[0].parameters()["coupling"].values
        absent = [(0, 2), (1, 2), (2, 0), (2, 1)]
        assert max(np.linalg.norm(coupling[pair]) for pair in absent) < 0.1 * np.linalg.norm(OTHER)
        assert (coupling[np.diag_indices(3)] == 0).all()

    def test_it_converges_in_few_steps_and_says_so(self, fitted):
        curves = fitted[1]
        assert curves["converged"].all() and curves.sizes["check"] <= 10
        assert (curves["decrement"][-1] < 1e-5).all() and (curves["decrement"][0] > 0.1).all()

    def test_its_bits_are_those_of_the_true_rate(self, fitted, recording):
        test = recording["test"].to_dataset()
        predicted = fitted[0].predict(test)
        truth = GLM.with_options()
        truth.parts = truth.field = (
            fitted[0]
            .parameters()
            .assign(
                kernel=(("cell", "lag", "y", "x"), np.outer([1, -1, 1], COURSE)[..., None, None]),
                history=(("cell", "history_lag"), np.tile(OWN, (3, 1))),
                coupling=(
                    ("cell", "from_cell", "coupling_lag"),
                    FILTERS * (1 - np.eye(3)[..., None]),
                ),
                offset=("cell", np.full(3, -1.5)),
            )
        )
        bits, best = (bits_per_spike(p, test["response"]) for p in (predicted, truth.predict(test)))
        assert (bits > best - 0.02).all()

    def test_without_history_and_coupling_it_has_fewer_bits(self, fitted, recording):
        test = recording["test"].to_dataset()
        stimulus_only = GLM.with_options(history_length=0, coupling_length=0)
        stimulus_only.fit(recording)
        assert "response" not in stimulus_only.inputs
        bits = [
            bits_per_spike(m.predict(test), test["response"]) for m in (fitted[0], stimulus_only)
        ]
        assert (bits[0] > bits[1] + 0.1).all()

    def test_its_own_spikes_have_the_rate_of_the_cells(self, fitted, recording):
        test = recording["test"].to_dataset()
        spikes = fitted[0].simulate(test, repeats=20, seed=3)
        assert spikes.dims == ("repeat", "frame", "cell")
        assert np.isnan(spikes[:, :19]).all() and np.isfinite(spikes[:, 19:]).all()
        np.testing.assert_allclose(
            spikes.mean(("repeat", "frame")), test["response"].mean("frame"), rtol=0.15
        )
        assert spikes.equals(fitted[0].simulate(test, repeats=20, seed=3))

    def test_rescaled_intervals_are_inside_the_band_only_with_history(self, fitted, recording):
        result = GLMFilters().run(fitted[0], recording)
        assert (result["ks"] < 1.2 * result["ks_band"]).all() and result["inside"].sum() >= 2
        assert (result["history_norm"] > 2).all() and result["coupling_norm"][0] > 1
        stimulus_only = GLM.with_options(history_length=0, coupling_length=0)
        stimulus_only.fit(recording)
        without = GLMFilters.with_options(split="validation").run(stimulus_only, recording)
        assert (without["inside"] == 0).all() and "history" not in without

    def test_each_repeat_has_the_prediction_of_its_own_spikes(self, fitted):
        model, test = fitted[0], split(300, 4, repeats=3, segments=2)
        predicted = model.predict(test)
        assert predicted.dims == ("repeat", "frame", "cell")
        alone = model.predict(test.isel(repeat=1))
        np.testing.assert_array_equal(predicted[1], alone)
        assert np.isnan(alone[[0, 18, 150, 168]]).all() and np.isfinite(alone[[19, 169]]).all()
        assert "reason" not in GLMFilters().run(model, xr.DataTree.from_dict({"test": test}))


class TestOtherData:
    def test_a_spatial_filter_is_found_with_the_history(self):
        random = np.random.default_rng(0)
        frames, side = 12_000, 7
        movie = random.choice(np.array([-1, 1], np.int8), (frames, side, side))
        y, x = np.mgrid[:side, :side]
        image = np.exp(-((y - 2) ** 2 + (x - 3) ** 2) / 3)
        kernel = COURSE[:12, None, None] * image / np.linalg.norm(image)
        drive = np.convolve((movie * image / np.linalg.norm(image)).sum((1, 2)), COURSE[:12])
        counts, _ = simulate_with_feedback(
            1.5 * drive[:frames, None] - 2.5,
            OWN[None, None],
            [slice(0, frames)],
            repeats=1,
            seed=0,
            most=np.full(1, np.inf),
            ceiling=np.full(1, 1e3),
        )
        whole = make_split(movie, counts[0], frame_interval=1 / 30)
        held_out = whole.isel(frame=slice(0, 500))
        model = GLM.with_options(lags=12)
        curves = model.fit(
            make_recording({"train": whole, "validation": held_out, "test": held_out})
        )
        parameters = model.parameters()
        assert curves["converged"].all() and "coupling" not in parameters
        found = parameters["kernel"].values[0]
        assert (found * kernel).sum() / np.linalg.norm(found) / np.linalg.norm(kernel) > 0.95
        assert error(parameters["history"].values[0], OWN) < 0.2

    def test_covariates_have_weights_in_their_own_units(self):
        recording = small_recording(covariates=True, frames=4000)
        model = GLM.with_options(lags=5, side=8)
        model.fit(recording)
        weights = model.parameters()["covariate_weight"]
        assert weights.dims == ("cell", "covariate")
        assert (weights.sel(covariate="pupil") > 0.5).all()  # of mm
        assert (abs(weights.sel(covariate="running")) < 0.02).all()  # of cm/s
        with pytest.raises(UserError, match="no 'covariates'"):
            model.predict(recording["test"].to_dataset().drop_vars("covariates"))

    def test_a_cell_that_is_silent_where_it_can_be_fitted_has_the_rate_0(self, recording):
        silenced = recording.copy(deep=True)
        train = silenced["train"].to_dataset()
        train["response"].values[1:, 1] = 0
        train["response"].values[0, 1] = 1  # without a full history
        silenced["train"] = xr.DataTree(dataset=train.isel(frame=slice(0, 8000)))
        model = GLM()
        assert model.fit(silenced)["converged"].all()
        predicted = model.predict(silenced["test"])
        assert float(predicted[100:, 1].max()) < 1e-6 and float(predicted[100:, 0].mean()) > 0.1
        assert np.linalg.norm(model.parameters()["coupling"][0, 1]) < 1e-6

    def test_missing_responses_are_not_fitted(self, recording, fitted):
        gaps = recording.copy(deep=True)
        train = gaps["train"].to_dataset()
        response = train["response"].astype(float)
        response[2000:4000, 1] = np.nan
        gaps["train"] = xr.DataTree(dataset=train.assign(response=response))
        model = GLM()
        model.fit(gaps)
        for name in ("kernel", "history", "coupling"):
            filters = [m.parameters()[name].values for m in (model, fitted[0])]
            assert error(*filters) < 0.1

    def test_single_spikes_are_fitted_by_a_bernoulli_likelihood(self, recording):
        model = GLM.with_options(likelihood="bernoulli", nonlinearity="softplus", coupling_length=0)
        model.fit(recording)
        predicted = model.predict(recording["test"])
        assert float(predicted.max()) < 1
        spikes = (recording["test"].to_dataset()["response"] > 0).values[19:]
        np.testing.assert_allclose(predicted[19:].mean("frame"), spikes.mean(0), rtol=0.1)
        assert (GLMFilters().run(model, recording)["intervals"] > 100).all()

    def test_too_few_steps_are_a_warning(self, recording):
        curves = GLM.with_options(iterations=2).fit(recording)
        assert not curves["converged"].any()
        for warning in curves["warning"].values:
            assert warning.startswith("the fit has not converged after 2 Newton steps")

    def test_rates_that_explode_are_a_warning(self, fitted, recording, caplog):
        model = GLM.with_options(limit=False)
        parts = fitted[0].parameters()
        excited = parts["history"] * 0 + 1.0
        model.restore(parts.assign(history=excited, largest_count=parts["offset"] * np.nan))
        with caplog.at_level(logging.WARNING, "retinakit"):
            model.simulate(recording["test"])
        assert "the simulated spikes are unstable" in caplog.text

    def test_other_data_than_counts_are_refused(self, recording, fitted):
        test = recording["test"].to_dataset()
        with pytest.raises(UserError, match="no 'response'; give a whole split"):
            fitted[0].predict(test["stimulus"])
        with pytest.raises(UserError, match=r"1 cells .* fitted to 3"):
            fitted[0].predict(test.isel(cell=[0]))
        signed = {
            name: part.to_dataset().assign(response=part["response"] - 0.5)
            for name, part in recording.children.items()
        }
        with pytest.raises(UserError, match="negative"):
            GLM().fit(xr.DataTree.from_dict(signed))


class TestCountModel:
    @pytest.mark.parametrize("largest", [None, 1, 3])
    @pytest.mark.parametrize("nonlinearity", ["exponential", "softplus"])
    def test_slopes_are_the_derivatives_of_the_loss(self, nonlinearity, largest):
        model = CountModel(nonlinearity, largest)
        counts = np.arange(40)
        for u in (-2.0, 0.3, 1.5):
            rate = float(model.rate(np.array([u]))[0])
            chance = poisson.pmf(counts, rate)
            drive = np.full(len(counts), u)
            first, second = model.slopes(drive, counts.astype(float))
            for count in (0, 1, 3, 6):
                one = np.array([float(count)])
                steps = [model.loss(np.array([u + h]), one) for h in (-1e-5, 1e-5)]
                assert first[count] == pytest.approx((steps[1] - steps[0]) / 2e-5, rel=1e-4)
            assert second[0] == pytest.approx(float(chance @ first**2), rel=1e-6)
            limited = np.minimum(counts, largest or np.inf)
            assert model.mean(drive)[0] == pytest.approx(float(chance @ limited), rel=1e-9)

    def test_evidence_removes_groups_without_effect(self):
        random = np.random.default_rng(0)
        x = np.c_[random.standard_normal((5000, 9)), np.ones(5000)].astype(np.float32)
        weights = np.r_[0.3 * np.ones(3), np.zeros(6), -1]
        fit = fit_newton(
            x,
            random.poisson(np.exp(x @ weights)).astype(float),
            Priors.of([], [3, 3, 3]),
            CountModel(),
        )
        assert fit.converged and (fit.precision[1:] > 20 * fit.precision[0]).all()
        assert error(fit.weights[:3], weights[:3]) < 0.1
        assert np.linalg.norm(fit.weights[3:9]) < 0.1 * np.linalg.norm(weights[:3])


def test_raised_cosines_represent_a_relative_refractory_period():
    basis = orthonormal(raised_cosines(8, 6))
    assert basis.shape == (8, 6) and error(basis @ basis.T @ OWN, OWN) < 0.02
    assert (raised_cosines(40, 5)[-1] < 0.01).all()


def test_rescaled_intervals_of_single_spikes_are_uniform():
    random = np.random.default_rng(0)
    probability = 0.5 * random.random(20_000)  # bins that are not short
    spikes = random.random(20_000) < probability
    rate = -np.log1p(-probability)
    statistic, band = ks_statistic(rescaled_intervals(rate, spikes, largest=1))
    assert statistic < band
    uncorrected = np.sort(
        -np.expm1(-np.add.reduceat(probability, np.flatnonzero(spikes)))  # Brown et al. (2002)
    )
    assert ks_statistic(uncorrected)[0] > band


def test_filters_are_drawn_for_a_model_without_history():
    recording = small_recording(frames=400)
    model = SmallModel()
    model.fit(recording)
    with pytest.raises(UserError, match="no parameter 'kernel'"):
        GLMFilters().run(model, recording)


def test_a_history_that_is_longer_than_all_segments_is_a_mistake_of_the_options(recording):
    short = recording.copy(deep=True)
    train = short["train"].to_dataset()
    segment = np.arange(train.sizes["frame"]) // 5
    short["train"] = xr.DataTree(dataset=train.assign_coords(segment=("frame", segment)))
    with pytest.raises(UserError, match=r"no segment of 'train' has \d+ frames.*history_length"):
        GLM().fit(short)


@pytest.mark.filterwarnings("error")
def test_filters_without_a_prediction_have_a_reason():
    recording = small_recording(cells=1)
    model = GLM.with_options(lags=2, history_length=500, coupling_length=0)
    model.fit(recording)
    test = recording["test"].to_dataset().isel(frame=slice(0, 10))
    result = GLMFilters().run(model, xr.DataTree.from_dict({"test": test}))
    assert result["reason"].item() == f"no frame has {model.lags} frames of history"
    model.parts["kernel"][:] = 1e-9
    result = GLMFilters().run(
        model, xr.DataTree.from_dict({"test": recording["test"].to_dataset()})
    )
    assert not result["temporal"].any() and result["kernel_norm"] < 1e-6


def test_filters_of_a_colour_stimulus_are_those_of_the_strongest_channel():
    random = np.random.default_rng(0)
    movie = random.choice([-1.0, 1.0], (3000, 2, 4, 4))
    spikes = random.poisson(np.exp(movie[:, 1, 2, 2] - 1))[:, None]
    whole = make_split(movie, spikes, frame_interval=0.02)
    recording = make_recording({"train": whole, "validation": whole, "test": whole})
    model = GLM.with_options(lags=2, history_length=0)
    model.fit(recording)
    analysis = GLMFilters()
    result = analysis.run(model, recording)
    assert result["channel"].item() == 1
    assert np.unravel_index(result["spatial"].values[0].argmax(), (4, 4)) == (2, 2)
    tree = xr.DataTree.from_dict({"glm": result})
    assert "channel" in analysis.caption(tree) and analysis.plot(tree) is not None
    assert len(analysis.table(tree)) == 1
