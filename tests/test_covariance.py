"""Spike-triggered covariances are their definition, by whichever algorithm."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retinakit.contracts import UserError, frame_blocks, full_history, make_split
from retinakit.kernels import compiled
from retinakit.spikes import stc, stimulus_covariance
from retinakit.spikes.algorithms import gram, gram_numba, window_covariance
from retinakit.spikes.algorithms.window_covariance import ALGORITHMS


def split(stimulus, response, **more):
    return make_split(np.asarray(stimulus), np.asarray(response), frame_interval=0.1, **more)


def windows_of(data, lags, first_lag=0):
    """All windows with a full history, as vectors, and their responses."""
    stimulus = data["stimulus"].values.astype(float)
    full = np.flatnonzero(full_history(data["segment"], lags + first_lag))
    lag = np.arange(first_lag, first_lag + lags)
    return stimulus[full[:, None] - lag].reshape(len(full), -1), data["response"].values[full, 0]


def by_definition(data, lags, first_lag=0):
    """Covariance, mean and total of the windows that were answered."""
    windows, weight = windows_of(data, lags, first_lag)
    known = np.isfinite(weight)
    windows, weight = windows[known], weight[known]
    mean = np.average(windows, axis=0, weights=weight)
    return np.cov(windows.T, aweights=weight, ddof=0), mean, weight.sum()


def two_valued(random, shape, low, high, dtype):
    return np.where(random.random(shape) < 0.4, high, low).astype(dtype)


STIMULI = {
    "±1": lambda random, shape: two_valued(random, shape, -1, 1, np.int8),
    "0 and 1": lambda random, shape: two_valued(random, shape, 0, 1, np.uint8),
    "3 and 7": lambda random, shape: two_valued(random, shape, 3, 7, np.uint8),
    "0 and 255": lambda random, shape: two_valued(random, shape, 0, 255, np.uint8),
    "bool": lambda random, shape: random.random(shape) < 0.5,
    "±0.5": lambda random, shape: two_valued(random, shape, -0.5, 0.5, np.float32),
    "int8": lambda random, shape: random.integers(-128, 128, shape, np.int8),
    "near 100": lambda random, shape: 100 + random.standard_normal(shape),
}
TWO_VALUES = ("±1", "0 and 1", "3 and 7", "0 and 255", "bool", "±0.5")
RESPONSES = {
    "spikes": lambda random, shape: random.poisson(0.7, shape).astype(float),
    "up to 300": lambda random, shape: (
        random.integers(0, 301, shape) * (random.random(shape) < 0.4)
    ),
    "rates": lambda random, shape: random.random(shape),
}


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@pytest.mark.parametrize("kind", STIMULI)
@pytest.mark.parametrize("answer", RESPONSES)
def test_every_algorithm_is_the_definition(algorithm, kind, answer, monkeypatch):
    monkeypatch.setattr(window_covariance, "_BYTES", 64 * 150)  # some blocks
    random = np.random.default_rng(0)
    stimulus = STIMULI[kind](random, (700, 3, 5))
    response = RESPONSES[answer](random, (700, 1)).astype(float)
    response[7::50] = np.nan
    data = split(stimulus, response, segment=np.repeat([0, 1, 2], [400, 4, 296]))
    able = kind in TWO_VALUES and answer != "rates"
    if algorithm == "bits" and not able:
        with pytest.raises(UserError, match="use 'product' or 'auto'"):
            stc(data, 4, first_lag=1, algorithm=algorithm)
        return
    result = stc(data, 4, first_lag=1, algorithm=algorithm, threads=2)
    exact = able and algorithm != "product"
    assert result.attrs["algorithm"] == ("bits" if exact else "product")
    expected, mean, total = by_definition(data, 4, 1)
    span = np.ptp(stimulus.astype(float))
    near = 1e-13 if exact else 1e-6
    np.testing.assert_allclose(result["stc"], expected, rtol=0, atol=near * span**2)
    np.testing.assert_array_equal(result["stc"], result["stc"].values.T)
    np.testing.assert_allclose(result["sta"].values.ravel(), mean, rtol=0, atol=near * span)
    np.testing.assert_allclose(result["spikes"], total)


@pytest.mark.parametrize("kind", ["±1", "near 100"])
def test_the_covariance_without_the_prior_and_the_average(kind):
    random = np.random.default_rng(0)
    data = split(STIMULI[kind](random, (400, 2, 2)), random.poisson(0.7, (400, 1)))
    prior = np.cov(windows_of(data, 3)[0].T, ddof=0)
    result = stc(data, 3, prior=True)
    np.testing.assert_allclose(result["stc"], by_definition(data, 3)[0] - prior, atol=1e-5)
    result = stc(data, 3, project_out=True)
    np.testing.assert_allclose(result["stc"].values @ result["sta"].values.ravel(), 0, atol=1e-4)


@pytest.mark.parametrize("kind", ["±1", "near 100", "0 and 255"])
@pytest.mark.parametrize(("lags", "first_lag"), [(4, 1), (1, 0)])
def test_the_prior_is_the_covariance_of_the_recorded_frames(kind, lags, first_lag, monkeypatch):
    monkeypatch.setattr(frame_blocks, "BYTES", 4000)  # some blocks
    random = np.random.default_rng(0)
    stimulus = STIMULI[kind](random, (700, 3, 5))
    segment = np.repeat([0, 1, 2], [400, 4, 296])
    recorded = random.random(700) < 0.8
    data = split(stimulus, np.where(recorded, 1.0, np.nan)[:, None], segment=segment)
    result = stimulus_covariance(data, lags, first_lag=first_lag, frames=recorded)
    expected, mean, _ = by_definition(data, lags, first_lag)
    span = np.ptp(stimulus.astype(float))
    np.testing.assert_allclose(result["covariance"], expected, rtol=0, atol=1e-6 * span**2)
    np.testing.assert_allclose(result["mean"].values.ravel(), mean, rtol=0, atol=1e-6 * span)
    assert result.attrs["two_valued"] == (kind != "near 100")


def test_repeats_are_summed_and_stay_counts():
    random = np.random.default_rng(0)
    stimulus = STIMULI["±1"](random, (300, 2, 3))
    response = random.poisson(0.4, (3, 300, 1))
    result = stc(split(stimulus, response), 4)
    expected, mean, total = by_definition(split(stimulus, response.mean(0)), 4)
    assert result.attrs["algorithm"] == "bits"
    np.testing.assert_allclose(result["stc"], expected, atol=1e-13)
    np.testing.assert_allclose(result["sta"].values.ravel(), mean, atol=1e-13)
    np.testing.assert_allclose(result["spikes"], total)


def test_a_third_value_late_in_the_movie_is_counted(monkeypatch):
    monkeypatch.setattr(window_covariance, "_BYTES", 64 * 50)
    random = np.random.default_rng(0)
    stimulus = STIMULI["±1"](random, (300, 3, 3))
    stimulus[250] = 0
    data = split(stimulus, random.poisson(0.5, (300, 1)))
    result = stc(data, 4)
    np.testing.assert_allclose(result["stc"], by_definition(data, 4)[0], atol=1e-6)
    assert result.attrs["algorithm"] == "product"


def test_a_movie_that_begins_grey_is_not_of_two_values(monkeypatch):
    monkeypatch.setattr(window_covariance, "_BYTES", 64 * 50)
    random = np.random.default_rng(0)
    stimulus = STIMULI["±1"](random, (300, 3, 3))
    stimulus[:100] = 1
    data = split(stimulus, random.poisson(0.5, (300, 1)))
    np.testing.assert_allclose(stc(data, 4)["stc"], by_definition(data, 4)[0], atol=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_stimulus_of_one_value_does_not_vary(algorithm):
    data = split(np.full((40, 2, 2), 5, np.int8), np.ones((40, 1)))
    result = stc(data, 3, algorithm=algorithm)
    np.testing.assert_array_equal(result["stc"], 0)
    np.testing.assert_array_equal(result["sta"], 5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_covariance_of_no_spikes_is_nan(algorithm):
    result = stc(split(np.ones((20, 2, 2)), np.zeros((20, 1))), 3, algorithm=algorithm)
    assert np.isnan(result["stc"]).all()
    assert np.isnan(result["sta"]).all()


def test_a_covariance_that_cannot_be_held_is_refused():
    data = split(np.zeros((30, 900, 900), np.int8), np.ones((30, 1)))
    with pytest.raises(UserError, match=r"crop the stimulus .* at most"):
        stc(data, 20)


def test_several_cells_need_a_name():
    data = split(np.ones((20, 2, 2)), np.ones((20, 2)), cell=["a", "b"])
    with pytest.raises(UserError, match="choose one"):
        stc(data, 3)
    assert stc(data, 3, cell="b")["spikes"] == 18


def test_an_unknown_algorithm_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'product'"):
        stc(split(np.ones((9, 1, 1)), np.ones((9, 1))), 2, algorithm="produkt")


def test_progress_counts_the_windows(monkeypatch):
    monkeypatch.setattr(window_covariance, "_BYTES", 64 * 50)
    random = np.random.default_rng(0)
    told = []
    data = split(STIMULI["±1"](random, (300, 3, 3)), np.ones((300, 1)))
    stc(data, 4, progress=lambda done, total, message: told.append((done, total)))
    assert len(told) > 3
    assert told == sorted(told)
    assert told[-1] == (297, 297)


@pytest.mark.parametrize(
    ("checks", "lags", "spikes"), [(1, 1, 1), (3, 5, 100), (70, 2, 17_000), (520, 2, 700)]
)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float32, np.float64])
def test_common_bits_are_the_same_compiled_and_in_numba(checks, lags, spikes, dtype):
    assert compiled is not None, "the test environment has a compiler, so the kernels are built"
    random = np.random.default_rng(0)
    stimulus = random.integers(0, 2, (3000, checks)).astype(dtype)
    frames = random.integers(lags, 3000, spikes)
    windows = stimulus[frames[:, None] - 1 - np.arange(lags)].reshape(spikes, -1)
    expected = 3 * np.triu(windows.T.astype(np.float32) @ windows.astype(np.float32))
    for add in (compiled.bit_gram, gram_numba.bit_gram):
        sums = np.zeros((lags * checks, lags * checks))
        assert add(stimulus, 0, 1, frames, 1, lags, 3.0, sums, 2)
        np.testing.assert_array_equal(np.triu(sums), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float32, np.float64])
def test_nothing_is_added_where_there_is_a_third_value(dtype):
    assert compiled is not None
    stimulus = np.random.default_rng(0).integers(0, 2, (50, 70)).astype(dtype)
    stimulus[49, 69] = 2
    for add in (compiled.bit_gram, gram_numba.bit_gram):
        sums = np.zeros((140, 140))
        assert not add(stimulus, 0, 1, np.arange(5, 45), 1, 2, 1.0, sums, 2)
        assert not sums.any()


@pytest.mark.parametrize("few", [0, 30, 10**6])
def test_counts_are_sums_of_powers_of_two_that_are_used_or_not(few, monkeypatch):
    monkeypatch.setattr(gram, "_FEW", few)
    random = np.random.default_rng(0)
    stimulus = random.integers(0, 2, (200, 5), np.uint8)
    frames = np.arange(3, 200)
    counts = random.integers(0, 301, len(frames))
    windows = stimulus[frames[:, None] - np.arange(3)].reshape(len(frames), -1).astype(float)
    sums = np.zeros((15, 15))
    assert gram.add_gram(stimulus, 0, 1, frames, counts, np.arange(3), sums, 1)
    np.testing.assert_array_equal(np.triu(sums), np.triu(windows.T * counts @ windows))


@pytest.mark.parametrize(
    ("frames", "first_lag", "lags", "shape", "error"),
    [
        ([2], 0, 4, (8, 8), "history"),
        ([5], 0, 2, (4, 4), "history"),
        ([3], 0, 4, (6, 6), "sums"),
        ([3], 0, 4, (8, 4), "sums"),
        ([3], -1, 1, (2, 2), "first_lag"),
    ],
)
def test_the_compiled_kernel_refuses_what_does_not_fit(frames, first_lag, lags, shape, error):
    assert compiled is not None
    stimulus, sums = np.zeros((5, 2), np.int8), np.zeros(shape)
    with pytest.raises((IndexError, ValueError), match=error):
        compiled.bit_gram(stimulus, 0, 1, np.array(frames), first_lag, lags, 1.0, sums, 1)


@pytest.mark.parametrize("bits", [128, 256])
def test_narrower_vectors_count_the_same(bits):
    """The processor here may be wider; the kernels are asked to hold back."""
    mine = Path(__file__)
    chosen = "same_compiled or third_value"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", mine, "-k", chosen]
    environment = os.environ | {"RETINAKIT_VECTOR_BITS": str(bits)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
