"""Mistakes of other libraries in spike-triggered statistics that no other test here is about."""

import numpy as np
import pytest

from retinakit.contracts import make_split
from retinakit.spikes import spike_triggered_ensemble, sta, stc
from retinakit.spikes.algorithms.choice import ALGORITHMS


def noise(response, stimulus=None, **more):
    random = np.random.default_rng(0)
    if stimulus is None:
        stimulus = 2 * random.integers(0, 2, (len(response), 3, 3), np.int8) - 1
    return make_split(stimulus, response, frame_interval=0.1, **more)


@pytest.mark.parametrize("scale", [0.5, 1.5, 3, 1e-3])
def test_an_average_is_divided_by_the_responses_be_they_whole_numbers_or_not(scale):
    counts = np.random.default_rng(1).poisson(0.6, (400, 2))
    expected = sta(noise(counts), 4)
    found = sta(noise(counts * scale), 4)
    np.testing.assert_allclose(found["sta"], expected["sta"], atol=1e-6)
    np.testing.assert_allclose(found["spikes"], expected["spikes"] * scale)
    np.testing.assert_array_equal(sta(noise(counts.astype(float)), 4)["sta"], expected["sta"])
    covariances = [stc(noise(r), 4, cell=1)["stc"] for r in (counts, counts * scale)]
    np.testing.assert_allclose(*covariances, atol=1e-5)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.uint16])
def test_counts_in_small_integers_do_not_overflow(kind):
    most = min(200, np.iinfo(kind).max)
    response = np.zeros((3, 100, 1), kind)
    response[:, 30], response[:, 50] = most, 1
    split = noise(response[0])
    in_repeats = noise(response, split["stimulus"].values)
    for algorithm in ("bits", "int8", "float", "toeplitz", "fft"):
        found = sta(split, 4, algorithm=algorithm)
        assert found["spikes"] == most + 1
        shown = split["stimulus"].values.astype(float)
        expected = (most * shown[30] + shown[50]) / (most + 1)
        np.testing.assert_allclose(found["sta"][0, 0], expected, atol=1e-6)
    assert sta(in_repeats, 4)["spikes"] == most + 1
    assert stc(split, 4)["spikes"] == most + 1
    assert spike_triggered_ensemble(split, 4)["weight"].values.tolist() == [most, 1]


def test_no_window_of_an_ensemble_or_a_covariance_crosses_a_segment():
    stimulus = np.repeat(np.array([-1, 1], np.int8), 20)[:, None, None]
    split = noise(np.ones((40, 1)), stimulus, segment=np.repeat([0, 1], 20))
    found = spike_triggered_ensemble(split, 5)
    assert found["frame"].values.tolist() == [*range(4, 20), *range(24, 40)]
    windows = found["ensemble"].values.reshape(32, 5)
    assert (windows == windows[:, :1]).all()
    np.testing.assert_allclose(stc(split, 5)["stc"], np.ones((5, 5)), atol=1e-6)


def test_a_covariance_and_an_ensemble_of_booleans_are_of_zero_and_one():
    random = np.random.default_rng(0)
    stimulus, counts = random.random((300, 2, 2)) < 0.3, random.poisson(0.5, (300, 1))
    split = noise(counts, stimulus)
    numbers = noise(counts, stimulus.astype(float))
    np.testing.assert_allclose(stc(split, 3)["stc"], stc(numbers, 3)["stc"], atol=1e-6)
    assert stc(split, 3)["sta"].values.min() >= 0
    ensembles = [spike_triggered_ensemble(s, 3)["ensemble"] for s in (split, numbers)]
    np.testing.assert_array_equal(*ensembles)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_was_not_recorded_of_one_cell_is_left_out_of_no_other(algorithm):
    response = np.random.default_rng(1).poisson(0.6, (400, 2)).astype(float)
    expected = sta(noise(response), 4, algorithm=algorithm)
    response[50:90, 0] = np.nan
    found = sta(noise(response), 4, algorithm=algorithm)
    np.testing.assert_allclose(found["sta"][1], expected["sta"][1], atol=1e-6)
    assert np.isfinite(found["sta"]).all()
    assert found["spikes"][0] == np.nansum(response[3:, 0])


def test_a_nan_that_no_spike_saw_is_in_no_covariance():
    random = np.random.default_rng(2)
    stimulus = random.standard_normal((400, 3, 3)).astype(np.float32)
    response = random.poisson(0.5, (400, 1))
    response[200:204] = 0  # the windows of 4 frames that hold frame 200
    spoiled = stimulus.copy()
    spoiled[200] = np.nan
    found, expected = (stc(noise(response, movie), 4) for movie in (spoiled, stimulus))
    np.testing.assert_allclose(found["stc"], expected["stc"], atol=1e-5)
    np.testing.assert_allclose(found["sta"], expected["sta"], atol=1e-6)
