"""Spike-triggered covariance against its definition, and cells with known directions."""

import numpy as np
import pytest

from retinakit.covariance import stc
from retinakit.errors import UserError
from retinakit.recording import make_recording, make_split
from retinakit.testing import small_recording
from retinakit_plugins.analyses.stc import STC


def test_the_covariance_is_its_definition_with_counts_as_weights():
    random = np.random.default_rng(0)
    stimulus = random.standard_normal((400, 2, 3))
    counts = random.poisson(0.7, (400, 1)).astype(float)
    counts[50] = np.nan
    split = make_split(stimulus, counts, frame_interval=0.1, segment=np.repeat([0, 1], [150, 250]))
    ensemble = []
    for t in range(400):
        if (2 <= t < 150 or t >= 152) and counts[t, 0] > 0:
            window = stimulus[t - 2 : t + 1][::-1].ravel()
            ensemble += [window] * int(counts[t, 0])
    mean, covariance = stc(split, 3)
    np.testing.assert_allclose(mean, np.mean(ensemble, 0), atol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(np.array(ensemble).T), atol=1e-5)


def test_a_covariance_that_does_not_fit_is_refused_with_what_to_do():
    split = make_split(np.zeros((300, 60, 60), np.int8), np.ones((300, 1)), frame_interval=0.1)
    with pytest.raises(UserError, match=r"20 lags of 3600 checks.*crop the field"):
        stc(split, 20)


@pytest.fixture(scope="module")
def energy_cell():
    """Excited by one direction whatever its sign, and suppressed by another."""
    random = np.random.default_rng(0)
    excites, suppresses = np.zeros((2, 6, 6))
    excites[1:3, 1:3], suppresses[3:5, 3:5] = 0.5, 0.5
    splits = {}
    for name, frames in (("train", 60_000), ("validation", 500), ("test", 500)):
        stimulus = random.standard_normal((frames, 6, 6)).astype(np.float32)
        drive = [np.einsum("tyx,yx->t", stimulus, k) for k in (excites, suppresses)]
        rate = 0.3 * drive[0] ** 2 / (1 + drive[1] ** 2)
        counts = random.poisson(np.roll(rate, 1))  # one frame later
        splits[name] = make_split(stimulus, counts[:, None], frame_interval=0.1)
    return make_recording(splits), excites, suppresses


def test_both_directions_of_an_energy_cell_are_found_and_nothing_else(energy_cell):
    recording, excites, suppresses = energy_cell
    result = STC({"lags": 3}).run(recording).isel(cell=0)
    assert int(result["excitatory"]) == 1
    assert int(result["suppressive"]) == 1
    for side, direction in (("largest", excites), ("smallest", suppresses)):
        found = result["component_image"].sel(side=side, component=0)
        assert abs(float((found.sel(lag=1) * direction).sum())) > 0.95


def test_unrelated_spikes_stay_within_the_band():
    random = np.random.default_rng(1)
    stimulus = random.standard_normal((20_000, 4, 4))
    split = make_split(stimulus, random.poisson(0.3, (20_000, 1)), frame_interval=0.1)
    recording = make_recording({"train": split, "validation": split, "test": split})
    result = STC({"lags": 3, "draws": 20}).run(recording)
    assert int(result["excitatory"].item()) + int(result["suppressive"].item()) == 0


def test_the_average_is_projected_out():
    recording = small_recording(frames=2000, cells=1)
    result = STC({"lags": 3, "draws": 2}).run(recording).isel(cell=0)
    mean, _ = stc(recording["train"].to_dataset(), 3)
    for side in ("largest", "smallest"):
        found = result["component_image"].sel(side=side, component=0).values.ravel()
        assert abs(found @ mean) / np.linalg.norm(mean) < 0.02
