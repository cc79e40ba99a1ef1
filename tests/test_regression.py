"""Linear regressions: closed forms, and where they look."""

import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import UserError
from retinakit.scores import fraction_of_explained_variance
from retinakit.spikes import locations, response_field
from retinakit.testing import small_recording
from retinakit_plugins.analyses.raster import Raster
from retinakit_plugins.analyses.score import Score
from retinakit_plugins.datasets.linear_population import LinearPopulation
from retinakit_plugins.models.regression import OLS, Lasso, Ridge

KNOWN = {"crop": 7, "centre": "truth", "intercept": False}


@pytest.fixture(scope="module")
def population():
    options = {"cells": 60, "samples": 2000, "test": 2000, "kernel": 7, "height": 14, "width": 13}
    return LinearPopulation(options).load()


def fev(model, recording):
    model.fit(recording)
    test = recording["test"].to_dataset()
    scores = fraction_of_explained_variance(model.predict(test), test["rate"])
    return float(scores.mean())


def test_least_squares_follow_their_closed_form(population):
    # Klindt et al.'s 1 - (.1 / .0157) · 289 / (.8 n - 290), with 7 x 7 checks and n = 2000.
    variance = np.pi / 2 * 0.1**2
    expected = 1 - 0.1 / variance * 49 / (1600 - 50)
    assert fev(OLS(KNOWN), population) == pytest.approx(expected, abs=0.025)


def test_validation_chooses_a_penalty_for_each_cell_or_one_for_all(population):
    penalties = [1.0, 100.0, 300.0, 1000.0, 10_000.0]
    each, one = (
        Ridge(KNOWN | {"penalties": penalties, "one_penalty": together})
        for together in (False, True)
    )
    losses = each.fit(population)["validation_loss"].values
    one.fit(population)
    assert len(np.unique(each.parameters()["penalty"])) > 1
    assert (one.parameters()["penalty"] == penalties[int(losses.argmin())]).all()


def test_penalties_do_better_than_none_where_data_are_few(population):
    few = population.copy()
    few["train"] = xr.DataTree(population["train"].to_dataset().isel(frame=slice(400)))
    ols, ridge, lasso = (fev(model(KNOWN), few) for model in (OLS, Ridge, Lasso))
    assert ols < 0.2 < 0.3 < lasso < 0.45 < ridge  # in the order of Fig 3B


def test_the_best_ridge_is_the_ratio_of_noise_and_prior(population):
    # Validation of one cell is noisy, and that of sixty is not.
    penalties = [100.0, 310.0, 1000.0, 3100.0]
    curves = Ridge(KNOWN | {"penalties": penalties}).fit(population)
    best = penalties[int(curves["validation_loss"].values.argmin())]
    assert best == 310.0  # 0.1 / (0.0157 / 49) = 312


def test_the_spike_triggered_average_tells_the_location(population):
    found = locations(population["train"].to_dataset())
    truth = population["truth"].to_dataset()
    known = np.stack([truth["location_y"], truth["location_x"]], 1)
    assert np.median(np.abs(found - known).max(1)) <= 1
    inside = locations(population["train"].to_dataset(), margin=(3, 3))
    assert inside.min() >= 3 and (inside <= [10, 9]).all()


def test_the_field_of_a_response_is_its_covariance_with_the_stimulus():
    split = small_recording(frames=300)["train"].to_dataset()
    lost = xr.DataArray(np.random.default_rng(0).random((300, 2)) < 0.3, dims=("frame", "cell"))
    split = split.assign(response=(split["response"].astype(float) + 3).where(~lost))
    split["stimulus"] = split["stimulus"] + 5.0  # neither mean is 0
    found = response_field(split).isel(lag=0)
    for cell in range(2):
        known = ~lost.values[:, cell]
        response = split["response"].values[known, cell]
        expected = (
            np.tensordot(
                response - split["response"].values[known, cell].mean(),
                split["stimulus"].values[known],
                1,
            )
            / known.sum()
        )
        np.testing.assert_allclose(found[cell], expected, atol=1e-4)


def test_a_crop_stays_in_the_field_and_holds_all_weights(population):
    model = OLS(KNOWN)
    model.fit(population)
    kernel, truth = model.parameters()["kernel"].isel(lag=0), population["truth"].to_dataset()
    for cell in range(60):
        rows, columns = np.nonzero(kernel.values[cell])
        y, x = int(truth["location_y"][cell]), int(truth["location_x"][cell])
        assert (rows.min(), rows.max()) == (y - 3, y + 3)
        assert (columns.min(), columns.max()) == (x - 3, x + 3)


def test_scores_of_responses_of_either_sign_have_no_likelihood(population):
    model = OLS(KNOWN)
    model.fit(population)
    score = Score({"draws": 0}).run(model, population)
    assert not {"deviance", "bits_per_spike", "spikes"} & set(score)
    validation = population["validation"].to_dataset()
    residual = model.predict(validation) - validation["response"]
    np.testing.assert_allclose(score["mse_validation"], (residual**2).mean("frame"), rtol=1e-6)
    assert score["fev"].mean() == pytest.approx(fev(model, population))


def test_an_unknown_location_is_named():
    with pytest.raises(UserError, match="has no 'location_y'"):
        OLS({"centre": "truth"}).fit(small_recording(frames=100))


def test_locations_are_found_in_blocks_of_cells(population, monkeypatch):
    train = population["train"].to_dataset()
    whole = locations(train)
    monkeypatch.setattr("retinakit.spikes.location.CELLS_AT_ONCE", 7)
    np.testing.assert_array_equal(locations(train), whole)


def test_a_negative_rate_draws_no_spikes():
    recording = small_recording(frames=400)

    class Negative(OLS):
        def respond(self, split):
            return super().respond(split) - 100

    model = Negative({"lags": 2})
    model.fit(recording)
    result = Raster().run(model, recording)
    assert (result["rate_model"] < 0).all() and (result["model"] == 0).all()
