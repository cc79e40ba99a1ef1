"""What the numbers mean: estimates against closed forms and known truths."""

import numpy as np
import pytest
import xarray as xr

from retinakit import scores as metrics
from retinakit.contracts import make_recording, make_split
from retinakit.layers import correlate
from retinakit.spikes import (
    ELLIPSE,
    analytic_noise,
    field_distance,
    fit_ellipse,
    gaussian,
    morans_i,
    separate,
    shuffled_noise,
    sta,
)
from retinakit_plugins.analyses.score import Score
from retinakit_plugins.analyses.sta import STA
from retinakit_plugins.analyses.stnmf import STNMF, effective_images, factorize
from retinakit_plugins.analyses.subunits import Subunits
from retinakit_plugins.datasets.subunit_rgc import SubunitRGC
from retinakit_plugins.datasets.temporal_collapse import TemporalCollapse
from retinakit_plugins.models.cnn import CNN
from retinakit_plugins.models.ln import LN


def frames(values, name="frame"):
    return xr.DataArray(np.asarray(values, float), dims=(name,))


class TestMetrics:
    def test_correlation_of_a_trace_with_itself_is_one_at_any_length(self):
        trace = frames(np.random.default_rng(0).standard_normal(10))
        assert float(metrics.correlation(trace, trace)) == pytest.approx(1)

    def test_correlation_is_pearsons_and_leaves_out_nan(self):
        random = np.random.default_rng(1)
        a, b = random.standard_normal((2, 50))
        holed = a.copy()
        holed[:7] = np.nan
        expected = np.corrcoef(a[7:], b[7:])[0, 1]
        assert float(metrics.correlation(frames(holed), frames(b))) == pytest.approx(expected)

    def test_correlation_of_a_constant_is_nan(self):
        random = frames(np.random.default_rng(0).standard_normal(20))
        assert np.isnan(metrics.correlation(frames(np.full(20, 0.1)), random))
        # In single precision, the last bit may differ between frames.
        constant = np.full(20, 0.1, np.float32)
        constant[-3:] = np.nextafter(constant[0], np.float32(1))
        assert np.isnan(metrics.correlation(xr.DataArray(constant, dims="frame"), random))

    def test_feve_of_the_true_rate_is_one_and_of_the_mean_is_zero(self):
        random = np.random.default_rng(0)
        rate = 1 + np.sin(np.arange(400) / 9)
        response = xr.DataArray(random.poisson(rate, (500, 400)), dims=("repeat", "frame"))
        assert float(metrics.feve(frames(rate), response)) == pytest.approx(1, abs=0.01)
        mean = frames(np.full(400, float(response.mean())))
        assert float(metrics.feve(mean, response)) == pytest.approx(0, abs=0.01)

    def test_feve_of_a_model_worse_than_the_mean_is_negative(self):
        random = np.random.default_rng(0)
        rate = 1 + np.sin(np.arange(400) / 9)
        response = xr.DataArray(random.poisson(rate, (50, 400)), dims=("repeat", "frame"))
        assert float(metrics.feve(frames(rate[::-1] + 3), response)) < -1

    def test_explainable_variance_is_that_of_the_rate(self):
        random = np.random.default_rng(0)
        rate = 1 + np.sin(np.arange(300) / 9)
        response = xr.DataArray(random.poisson(rate, (2000, 300)), dims=("repeat", "frame"))
        explainable, noise = metrics.explainable_variance(response)
        assert float(explainable) == pytest.approx(rate.var(), rel=0.03)
        assert float(noise) == pytest.approx(rate.mean(), rel=0.03)

    def test_ceiling_is_the_correlation_that_the_true_rate_reaches(self):
        random = np.random.default_rng(0)
        rate = 0.3 + 0.3 * np.sin(np.arange(3000) / 9)
        response = xr.DataArray(random.poisson(rate, (10, 3000)), dims=("repeat", "frame"))
        reached = metrics.correlation(frames(rate), response.mean("repeat"))
        assert float(metrics.correlation_ceiling(response)) == pytest.approx(
            float(reached), abs=0.02
        )


class TestReceptiveField:
    def test_a_separable_field_is_taken_apart_exactly(self):
        random = np.random.default_rng(0)
        time, space = random.standard_normal(12), np.abs(random.standard_normal((5, 6)))
        field = xr.DataArray(time[:, None, None] * space, dims=("lag", "y", "x"))
        parts = separate(field)
        assert float(parts["separability"]) == pytest.approx(1)
        assert float((parts["temporal"] ** 2).sum()) == pytest.approx(1)
        np.testing.assert_allclose(parts["temporal"] * parts["spatial"], field, atol=1e-12)
        assert float(parts["spatial"].max()) == pytest.approx(float(abs(parts["spatial"]).max()))

    def test_the_ellipse_of_a_gaussian_is_that_gaussian(self):
        y, x = np.arange(20) * 30.0, np.arange(24) * 30.0
        image = gaussian(y, x, [2.0, 250.0, 400.0, 90.0, 50.0, 0.6])
        fitted = fit_ellipse(xr.DataArray(image, {"y": y, "x": x}, ("y", "x")))
        found = [float(fitted[name]) for name in ("centre_y", "centre_x", "sd_major", "sd_minor")]
        np.testing.assert_allclose(found, [250, 400, 90, 50], rtol=1e-3)
        assert float(fitted["angle"]) == pytest.approx(0.6, abs=1e-3)

    def test_the_distance_of_two_fields_is_the_cosine_of_their_gaussians(self):
        y, x = np.linspace(-40, 40, 401), np.linspace(-40, 40, 401)
        shapes = [[1.0, 0.0, 0.0, 5.0, 2.0, 0.4], [1.0, 2.0, -3.0, 4.0, 3.0, 2.0]]
        images = [gaussian(y, x, shape) for shape in shapes]
        norms = [np.sqrt((image**2).sum()) for image in images]
        expected = 1 - (images[0] * images[1]).sum() / norms[0] / norms[1]
        first, second = (xr.Dataset(dict(zip(ELLIPSE, shape, strict=True))) for shape in shapes)
        assert float(field_distance(first, second)) == pytest.approx(expected, abs=1e-6)
        assert float(field_distance(first, first)) == pytest.approx(0, abs=1e-12)

    def test_morans_i_of_noise_is_its_expectation_and_of_a_gradient_near_one(self):
        noise = xr.DataArray(
            np.random.default_rng(0).standard_normal((4000, 7, 7)), dims=("n", "y", "x")
        )
        assert float(morans_i(noise).mean()) == pytest.approx(-1 / 48, abs=0.005)
        gradient = xr.DataArray(np.add.outer(np.arange(15.0), np.arange(15.0)), dims=("y", "x"))
        assert float(morans_i(gradient)) > 0.9

    def test_morans_i_of_a_checkerboard_is_minus_one(self):
        board = xr.DataArray((-1.0) ** np.add.outer(np.arange(6), np.arange(6)), dims=("y", "x"))
        assert float(morans_i(board)) == pytest.approx(-1)


@pytest.fixture(scope="module")
def unrelated():
    """Spikes that have nothing to do with the stimulus, in bursts of several."""
    random = np.random.default_rng(0)
    stimulus = 3 * (2 * random.integers(0, 2, (20_000, 8, 8), dtype=np.int8) - 1)
    response = random.poisson(3, (20_000, 2)) * (random.random((20_000, 2)) < 0.05)
    return make_split(stimulus.astype(np.int8), response, frame_interval=0.1)


class TestSignificance:
    def test_the_analytic_deviation_is_that_of_unrelated_spikes(self, unrelated):
        measured = sta(unrelated, 5)["sta"].std(("lag", "y", "x"))
        expected = analytic_noise([unrelated], 5)["deviation"].isel(width=0)
        np.testing.assert_allclose(measured, expected, rtol=0.15)

    def test_shifted_spikes_have_the_same_deviation(self, unrelated):
        expected = analytic_noise([unrelated], 5)["deviation"]
        shuffled = shuffled_noise([unrelated], 5, 0, draws=10, seed=1)["deviation"]
        np.testing.assert_allclose(shuffled, expected, rtol=0.1)

    @pytest.mark.parametrize("significance", ["background", "analytic", "shuffled"])
    def test_unrelated_spikes_have_no_receptive_field_and_a_cell_has(
        self, unrelated, cell, significance
    ):
        splits = {"train": unrelated, "validation": unrelated, "test": unrelated}
        nothing = STA({"significance": significance}).run(make_recording(splits))
        assert not nothing["found"].any() and np.isnan(nothing["sd_major"]).all()
        assert all("below" in reason for reason in nothing["reason"].values)
        found = STA({"significance": significance}).run(cell)
        assert found["found"].all() and np.isfinite(found["sd_major"]).all()


@pytest.fixture(scope="module")
def cell():
    """The simulated cell with enough spikes for a small test (threshold 1, as in the text)."""
    return SubunitRGC(
        {"frames": 150_000, "validation_frames": 20_000, "test_frames": 5000, "threshold": 1.0}
    ).load()


@pytest.fixture(scope="module")
def collapsed(cell):
    return TemporalCollapse({}).load(cell)


class TestSimulation:
    def test_the_temporal_filter_is_the_published_one(self, cell):
        published = [0, 0, 0, -0.124, -0.406, -0.527, -0.428, -0.215, 0, 0.155, 0.238, 0.261]
        np.testing.assert_allclose(cell["truth"]["temporal"][:12], published, atol=6e-4)

    def test_the_stimulus_is_a_white_binary_checkerboard_as_long_as_the_papers(self, cell):
        assert (SubunitRGC({}).config.frames, SubunitRGC({}).config.test_frames) == (
            600_000,
            10_000,
        )
        stimulus = cell["train"]["stimulus"].values[:20_001]
        assert stimulus.dtype == np.int8 and set(np.unique(stimulus)) == {-1, 1}
        frames = stimulus.reshape(len(stimulus), -1).astype(float)
        # Neither checks nor frames in succession have to do with each other.
        limit = 5 / np.sqrt(20_000)
        same = frames[:-1].T @ frames[:-1] / 20_000
        np.testing.assert_allclose(same, np.eye(64), atol=limit)
        np.testing.assert_allclose(frames[:-1].T @ frames[1:] / 20_000, 0, atol=limit)
        np.testing.assert_allclose(frames.mean(0), 0, atol=limit)

    @pytest.mark.parametrize(("threshold", "hertz"), [(2.5, 0.36), (1.0, 1.59)])
    def test_the_rate_is_that_of_the_published_cell(self, threshold, hertz):
        cell = SubunitRGC({"frames": 200_000, "threshold": threshold}).load()
        assert float(cell["train"]["rate"].mean()) * 30 == pytest.approx(hertz, rel=0.05)

    def test_spikes_follow_the_rate(self, cell):
        train = cell["train"]
        expected, counted = float(train["rate"].sum()), float(train["response"].sum())
        assert counted == pytest.approx(expected, abs=4 * np.sqrt(expected))

    def test_a_seed_repeats_the_recording_and_another_does_not(self):
        small = {"frames": 500, "validation_frames": 200, "test_frames": 200}
        first, again = (SubunitRGC(small, seed=3).load() for _ in range(2))
        xr.testing.assert_identical(first, again)
        other = SubunitRGC(small, seed=4).load()
        assert not first["train"]["stimulus"].equals(other["train"]["stimulus"])

    def test_the_collapsed_stimulus_is_filtered_with_the_cells_temporal_filter(
        self, cell, collapsed
    ):
        found = collapsed["collapse"]["temporal"].values
        true = cell["truth"]["temporal"].values
        assert abs(found @ true) > 0.99
        # Frame 19 is the first with a full history.
        past = cell["train"]["stimulus"].values[:20][::-1].astype(float)
        expected = np.einsum("l,lyx->yx", found, past)
        np.testing.assert_allclose(collapsed["train"]["stimulus"][0], expected, atol=1e-5)


class TestSTNMF:
    def test_known_modules_are_recovered(self):
        random = np.random.default_rng(0)
        known = np.zeros((36, 3))
        for module, pixels in enumerate(([0, 1, 6, 7], [4, 5, 10, 11], [26, 27, 32, 33])):
            known[pixels, module] = 0.5
        weights = random.standard_normal((3, 4000)) * [[1.0], [1.5], [2.0]]
        noise = 0.2 * random.standard_normal((36, 4000))
        found, _, residual, _ = factorize((known @ weights + noise).astype(np.float32), 6, 1.7, 200)
        cosine = known.T @ (found / np.linalg.norm(found, axis=0))
        assert (cosine.max(1) > 0.99).all()
        assert residual < 0.8

    def test_an_image_for_each_spike_is_the_stimulus_as_the_filter_saw_it(self, cell):
        train = cell["train"].to_dataset().isel(frame=slice(0, 2000))
        temporal = cell["truth"]["temporal"].values
        images = effective_images(train, temporal)
        spikes = [t for t in np.flatnonzero(train["response"].values[:, 0]) if t >= 19]
        assert len(images) == len(spikes)
        past = train["stimulus"].values[spikes[3] - 19 : spikes[3] + 1][::-1]
        np.testing.assert_allclose(images[3], np.tensordot(temporal, past, 1), atol=1e-5)

    def test_the_four_subunits_are_localised_modules(self, cell):
        result = STNMF({"modules": 6}).run(cell)
        assert (result["match"] >= 0.85).all()
        assert int(result["subunit"].sum()) == 4


class TestModels:
    def test_ln_finds_the_receptive_field_and_predicts_up_to_the_ln_limit(self, cell):
        model = LN()
        model.fit(cell)
        score = Score({"draws": 0}).run(model, cell)
        found = Subunits({}).run(model, cell)
        assert float(found["receptive_field_match"].max()) > 0.95
        # No static nonlinearity of a linear filter correlates better than 0.90 with this cell.
        assert 0.87 < float(score["correlation_rate"].item()) < 0.91

    @pytest.mark.slow
    def test_four_filters_are_the_four_subunits_and_one_is_the_receptive_field(
        self, cell, collapsed
    ):
        ln = LN()
        ln.fit(cell)
        linear = float(Score({"draws": 0}).run(ln, cell)["correlation_rate"].item())
        found = {}
        for filters in (1, 4):
            model = CNN({"lags": 1, "filters": filters, "steps": 2000})
            model.fit(collapsed)
            found[filters] = Subunits({}).run(model, collapsed)
        assert float(found[1]["receptive_field_match"].max()) > 0.95
        assert (found[4]["match"] >= 0.85).all()
        score = Score({"draws": 0}).run(model, collapsed)
        assert float(score["correlation_rate"].item()) > linear + 0.04

    @pytest.mark.slow
    def test_rates_as_target_find_the_subunits_of_the_sparse_cell(self):
        cell = SubunitRGC({"frames": 100_000, "validation_frames": 20_000}).load()
        collapsed = TemporalCollapse({}).load(cell)
        model = CNN({"lags": 1, "target": "rate", "steps": 2000})
        model.fit(collapsed)
        assert (Subunits({}).run(model, collapsed)["match"] >= 0.85).all()
        score = Score({"draws": 0}).run(model, collapsed)
        assert float(score["correlation_rate"].item()) > 0.96

    @pytest.mark.parametrize("stride", [1, 2])
    def test_the_convolution_as_one_product_equals_torchs(self, stride):
        import torch

        frames, kernels = torch.randn(6, 2, 9, 8), torch.randn(5, 2, 6, 5)
        expected = torch.nn.functional.conv2d(frames, kernels, stride=stride)
        torch.testing.assert_close(correlate(frames, kernels, stride), expected)
