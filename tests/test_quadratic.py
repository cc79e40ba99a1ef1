"""The quadratic model, on cells with known axes."""

import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import SPLITS, UserError, make_recording, make_split
from retinakit.scores import bits_per_spike
from retinakit_plugins.models.quadratic import Quadratic

LAGS, BARS = 6, 10


def gabors():
    lag, x = np.meshgrid(np.arange(LAGS), np.arange(BARS), indexing="ij")
    envelope = np.exp(-(((x - 5) / 2.5) ** 2) - (((lag - 2) / 1.5) ** 2))
    filters = [envelope * np.cos(1.1 * x + 0.6 * lag + phase) for phase in (0, np.pi / 2)]
    return np.array([f / np.linalg.norm(f) for f in filters])


@pytest.fixture(scope="module")
def complex_cell():
    random, splits = np.random.default_rng(0), {}
    for name, frames in zip(SPLITS, (30_000, 8000, 8000), strict=True):
        movie = random.choice(np.array([-1, 1], np.int8), (frames, BARS))
        energy = np.zeros(frames)
        for weights in gabors():
            drive = np.zeros(frames)
            for lag in range(LAGS):
                drive[lag:] += movie[: frames - lag] @ weights[lag]
            energy += drive**2
        rate = 0.1 * energy[:, None]
        splits[name] = make_split(
            movie[:, None, :], random.poisson(rate), frame_interval=0.01, rate=rate
        )
    return make_recording(splits)


def test_the_axes_of_a_complex_cell_span_those_of_the_truth(complex_cell):
    model = Quadratic({"lags": LAGS, "components": 6})
    curves = model.fit(complex_cell)
    assert curves["refined_validation_loss"].item() < curves["cell_validation_loss"].min() - 0.003
    assert curves["components"].item() >= 2 and bool(curves["converged"].all())
    parameters = model.parameters()
    weights = parameters["quadratic_weight"].values[0]
    axes = parameters["quadratic_filter"].values[0, :2].reshape(2, -1)
    assert (weights[:2] > 0.2).all()
    overlap = np.linalg.svd(
        np.linalg.qr(axes.T)[0].T @ np.linalg.qr(gabors().reshape(2, -1).T)[0], compute_uv=False
    )
    assert overlap.min() > 0.95
    test = complex_cell["test"].to_dataset()
    predicted = model.predict(test)
    known = predicted.notnull().all("cell")
    found, truth = (
        float(bits_per_spike(rate[known], test["response"][known])[0])
        for rate in (predicted, test["rate"])
    )
    assert found > 0.95 * truth


def test_a_covariance_that_is_too_large_is_refused(complex_cell):
    with pytest.raises(UserError, match="make images at most 6"):
        Quadratic({"lags": 600}).fit(complex_cell)


def changed(recording, change):
    return recording.map_over_datasets(lambda s: change(s) if "response" in s else s)


def test_a_silent_cell_and_one_without_validation_are_fitted_beside_others(complex_cell):
    def three(split):
        silent = xr.zeros_like(split["response"]).assign_coords(cell=[1])
        lost = split["response"].assign_coords(cell=[2]).astype(float)
        lost = lost * np.nan if split.sizes["frame"] == 8000 else lost
        cells = xr.concat([split["response"], silent, lost], "cell").transpose("frame", "cell")
        return split[["stimulus"]].assign(response=cells)

    model = Quadratic({"lags": LAGS, "components": 4})
    curves = model.fit(changed(complex_cell, three))
    assert curves["components"].values.tolist()[2] == curves["components"].values[0] >= 2
    assert (
        float(model.predict(complex_cell["test"].to_dataset()[["stimulus"]])[LAGS:, 1].max()) < 1e-3
    )
