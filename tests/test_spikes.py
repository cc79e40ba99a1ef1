"""Spike-triggered averages: the definition, and the mistakes that others make."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from retinakit.contracts import (
    SPLITS,
    RecordingError,
    UserError,
    frame_blocks,
    make_recording,
    make_split,
)
from retinakit.kernels import compiled
from retinakit.spikes import spike_triggered_ensemble, sta
from retinakit.spikes.algorithms import bit_sums_numba, event_sums_numba
from retinakit.spikes.algorithms.choice import ALGORITHMS
from retinakit_plugins.analyses.sta import STA

needs_compiled = pytest.mark.skipif(compiled is None, reason="the compiled kernels were not built")
both_kernels = pytest.mark.parametrize(
    "kernels",
    [
        pytest.param((compiled, compiled), id="compiled", marks=needs_compiled),
        pytest.param((bit_sums_numba, event_sums_numba), id="numba"),
    ],
)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no compiler")
def test_the_kernels_were_built_where_there_is_a_compiler():
    assert compiled is not None


def split(stimulus, response, **more):
    return make_split(np.asarray(stimulus), np.asarray(response), frame_interval=0.1, **more)


def by_definition(split, lags, first_lag=0):
    """Σ_t r[t, c] s[t - l] / Σ_t r[t, c], in plain loops."""
    stimulus, response = split["stimulus"].values.astype(float), split["response"].values
    segment = split["segment"].values
    cells = response.shape[-1]
    total, spikes = np.zeros((cells, lags, *stimulus.shape[1:])), np.zeros(cells)
    for t in range(len(stimulus)):
        oldest = t - first_lag - lags + 1
        if oldest < 0 or segment[oldest] != segment[t]:
            continue
        for c in range(cells):
            if np.isnan(response[t, c]):
                continue
            spikes[c] += response[t, c]
            for lag in range(lags):
                total[c, lag] += response[t, c] * stimulus[t - first_lag - lag]
    return total / spikes[:, None, None, None], spikes


@pytest.mark.parametrize("dtype", [np.int8, np.bool_, np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("first_lag", [0, 1])
@pytest.mark.parametrize("real", [False, True])
def test_the_average_is_its_definition(dtype, first_lag, real):
    random = np.random.default_rng(0)
    stimulus = (2 * random.integers(0, 2, (300, 4, 3)) - 1).astype(dtype)
    response = random.poisson(0.3, (300, 2)).astype(float)
    if real:
        response = response * random.random((300, 2))
        response[::17, 1] = np.nan
    data = split(stimulus, response, segment=np.repeat([0, 1, 2], [100, 3, 197]))
    expected, counted = by_definition(data, 5, first_lag)
    result = sta(data, 5, first_lag=first_lag)
    np.testing.assert_allclose(result["sta"], expected, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(result["spikes"], counted)


def test_the_spikes_own_frame_is_lag_zero_and_the_axis_says_so():
    stimulus = np.zeros((50, 2, 2), np.int8)
    stimulus[30, 0, 1] = 1
    response = np.zeros((50, 1))
    response[32] = 1
    result = sta(split(stimulus, response), 5)
    assert result["sta"].isel(cell=0, y=0, x=1).values.tolist() == [0, 0, 1, 0, 0]
    np.testing.assert_allclose(result["lag_time"], np.arange(5) * 0.1)


def test_spikes_without_history_are_neither_averaged_nor_counted():
    stimulus = np.ones((20, 1, 1), np.int8)
    result = sta(split(stimulus, np.ones((20, 1))), 5)
    assert float(result["spikes"].item()) == 16
    np.testing.assert_array_equal(result["sta"], 1)


def test_counts_of_hundreds_are_counted():
    random = np.random.default_rng(0)
    stimulus = (2 * random.integers(0, 2, (200, 2, 2)) - 1).astype(np.int8)
    response = np.zeros((200, 1), np.int64)
    response[[50, 120], 0] = 200, 100_000
    data = split(stimulus, response)
    np.testing.assert_allclose(sta(data, 3)["sta"], by_definition(data, 3)[0])


def test_responses_too_large_to_be_counted_are_averaged_as_numbers():
    random = np.random.default_rng(0)
    stimulus = (2 * random.integers(0, 2, (200, 2, 2)) - 1).astype(np.int8)
    data = split(stimulus, random.integers(0, 3, (200, 2)) * 2**35)
    result = sta(data, 3)
    np.testing.assert_allclose(result["sta"], by_definition(data, 3)[0], rtol=1e-6, atol=1e-9)
    assert float(result["spikes"].max()) > 2**36


def test_a_silent_cell_is_nan_and_spoils_no_other():
    random = np.random.default_rng(0)
    response = np.c_[np.zeros(100), random.poisson(1, 100)]
    result = sta(split(random.integers(-1, 2, (100, 2, 2)).astype(np.int8), response), 3)["sta"]
    assert np.isnan(result[0]).all()
    assert np.isfinite(result[1]).all()


def test_blocks_do_not_show(monkeypatch):
    random = np.random.default_rng(0)
    data = split(random.standard_normal((500, 3, 3)), random.poisson(0.5, (500, 2)))
    whole = sta(data, 4)
    monkeypatch.setattr(frame_blocks, "BYTES", 36 * 50)
    xr.testing.assert_allclose(sta(data, 4), whole, rtol=1e-5, atol=1e-6)


def test_several_splits_are_averaged_as_if_they_were_segments_of_one():
    random = np.random.default_rng(0)
    stimulus = random.integers(-1, 2, (200, 2, 2)).astype(np.int8)
    response = random.poisson(0.5, (200, 1))
    one = split(stimulus, response, segment=np.repeat([0, 1], 100))
    two = [split(stimulus[i : i + 100], response[i : i + 100]) for i in (0, 100)]
    np.testing.assert_array_equal(sta(two, 4)["sta"], sta(one, 4)["sta"])


def test_too_short_segments_are_named():
    data = split(np.ones((9, 1, 1), np.int8), np.ones((9, 1)))
    with pytest.raises(RecordingError, match="10 frames of history"):
        sta(data, 10)


def response_lists(random, cells, frames, history):
    """Frames and counts of each cell, as the kernels take them."""
    counts = random.poisson(0.3, (cells, frames))
    counts[:, :history] = 0
    counts[0, frames // 2] = 2**30
    counts[-1] = 0
    cell, frame = np.nonzero(counts)
    starts = np.searchsorted(cell, np.arange(cells + 1))
    return starts, frame.copy(), counts[cell, frame]


@needs_compiled
@pytest.mark.parametrize("checks", [1, 64, 512, 700, 5000])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float32, np.float64])
def test_counting_bits_is_the_same_compiled_and_in_numba(checks, dtype):
    random = np.random.default_rng(0)
    low, high = (3, 7) if dtype == np.uint8 else (-1, 1)
    stimulus = np.where(random.random((9000, checks)) < 0.5, low, high).astype(dtype)
    starts, frames, counts = response_lists(random, 3, 9000, 6)
    kind = np.int64 if stimulus.itemsize == 1 else np.float64
    first, second = np.zeros((2, 3, 5, checks), kind)
    assert compiled.bit_sums(stimulus, low, high, starts, frames, counts, 1, first, 2)
    assert bit_sums_numba.bit_sums(stimulus, low, high, starts, frames, counts, 1, second, 2)
    np.testing.assert_array_equal(first, second)
    cells = zip(np.split(frames, starts[1:-1]), np.split(counts, starts[1:-1]), strict=True)
    expected = [[c @ stimulus[f - 1 - lag].astype(kind) for lag in range(5)] for f, c in cells]
    np.testing.assert_array_equal(first, expected)


@needs_compiled
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_sums_of_eight_bits_are_the_same_compiled_and_in_numba(dtype):
    random = np.random.default_rng(0)
    limits = np.iinfo(dtype)
    stimulus = random.integers(limits.min, limits.max + 1, (5000, 200)).astype(dtype)
    stimulus[:, 0] = limits.min
    stimulus[:, 1] = limits.max
    starts, frames, counts = response_lists(random, 3, 5000, 12)
    first, second = np.zeros((2, 3, 12, 200), np.int64)
    compiled.sparse_sums(stimulus, starts, frames, counts, 1, first, 2)
    event_sums_numba.sparse_sums(stimulus, starts, frames, counts, 1, second, 2)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@both_kernels
def test_sums_of_numbers_are_products_and_nan_stays_with_the_spikes_that_saw_it(kernels, dtype):
    random = np.random.default_rng(0)
    stimulus = random.standard_normal((5000, 100)).astype(dtype)
    stimulus[4000, 70] = np.nan
    starts, frames, _ = response_lists(random, 3, 5000, 12)
    weights = random.standard_normal(len(frames)).astype(dtype)
    sums = np.zeros((3, 12, 100))
    kernels[1].sparse_sums(stimulus, starts, frames, weights, 1, sums, 2)
    cells = zip(np.split(frames, starts[1:-1]), np.split(weights, starts[1:-1]), strict=True)
    expected = np.array(
        [[w.astype(float) @ stimulus[f - 1 - lag] for lag in range(12)] for f, w in cells]
    )
    seen = np.isnan(expected)
    assert 0 < seen.sum() < 24
    np.testing.assert_allclose(sums, expected, atol=1e-3 if dtype == np.float32 else 1e-11)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float32, np.float64])
@both_kernels
def test_nothing_is_added_where_there_is_a_third_value(kernels, dtype):
    stimulus = np.random.default_rng(0).integers(0, 2, (50, 5000)).astype(dtype)
    response = np.array([0, 2]), np.array([10, 30]), np.array([1, 2])
    for check in (0, 511, 640, 4999):
        sums = np.zeros((1, 3, 5000), np.int64 if stimulus.itemsize == 1 else np.float64)
        low, high = dtype(0).item(), dtype(1).item()
        assert kernels[0].bit_sums(stimulus, low, high, *response, 0, sums, 2)
        sums[:] = 0
        spoiled = stimulus.copy()
        spoiled[49, check] = 2
        assert not kernels[0].bit_sums(spoiled, low, high, *response, 0, sums, 2)
        assert not sums.any()


@both_kernels
def test_the_kernels_refuse_spikes_without_history(kernels):
    bits, sparse = kernels
    stimulus, starts, sums = np.zeros((5, 2), np.int8), np.array([0, 1]), np.zeros((1, 4, 2), int)
    for frame in (2, 5):
        frames, counts = np.array([frame]), np.array([1])
        with pytest.raises(IndexError, match="history"):
            sparse.sparse_sums(stimulus, starts, frames, counts, 0, sums, 1)
        with pytest.raises(IndexError, match="history"):
            bits.bit_sums(stimulus, 0, 1, starts, frames, counts, 0, sums, 1)


@pytest.mark.parametrize("lags", [1, 7])
@pytest.mark.parametrize("cells", [1, 3])
def test_any_number_of_threads_and_of_spikes_counts_the_same_in_numba(lags, cells):
    random = np.random.default_rng(0)
    stimulus = random.integers(0, 2, (300, 1000)).astype(np.int8)
    for number in (0, 1, 15, 16, 17, 31, 33, 64, 250):
        frames = np.concatenate(
            [np.sort(random.choice(np.arange(10, 300), number, False)) for _ in range(cells)]
        )
        starts, counts = number * np.arange(cells + 1), random.integers(1, 3, len(frames))
        lists = zip(np.split(frames, starts[1:-1]), np.split(counts, starts[1:-1]), strict=True)
        expected = [[c @ stimulus[f - 2 - lag] for lag in range(lags)] for f, c in lists]
        for threads in (1, 2, 5):
            first, second = np.zeros((2, cells, lags, 1000), np.int64)
            response = starts, frames, counts, 2
            assert bit_sums_numba.bit_sums(stimulus, 0, 1, *response, first, threads)
            event_sums_numba.sparse_sums(stimulus, *response, second, threads)
            np.testing.assert_array_equal(first, expected)
            np.testing.assert_array_equal(second, expected)


STIMULI = {
    "±1": lambda random, shape: 2 * random.integers(0, 2, shape, np.int8) - 1,
    "bool": lambda random, shape: random.random(shape) < 0.5,
    "0 and 1": lambda random, shape: random.integers(0, 2, shape, np.uint8),
    "int8": lambda random, shape: random.integers(-128, 128, shape, np.int8),
    "uint8": lambda random, shape: random.integers(0, 256, shape, np.uint8),
    "int16": lambda random, shape: random.integers(-3000, 3000, shape, np.int16),
    "±0.3": lambda random, shape: np.float32(0.6) * random.integers(0, 2, shape) - np.float32(0.3),
    "float32": lambda random, shape: random.standard_normal(shape, np.float32),
    "float64": lambda random, shape: random.standard_normal(shape),
}
EIGHT_BITS = ("±1", "bool", "0 and 1", "int8", "uint8")
TWO_VALUES = ("±1", "bool", "0 and 1", "±0.3")


@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
@pytest.mark.parametrize("kind", STIMULI)
@pytest.mark.parametrize("real", [False, True])
def test_every_algorithm_is_the_definition(algorithm, kind, real):
    random = np.random.default_rng(1)
    stimulus = STIMULI[kind](random, (700, 5, 7))
    response = random.poisson(0.4, (700, 3)).astype(float)
    if real:
        response = random.random((700, 3)) * (random.random((700, 3)) < 0.7)
    response[::31, 1] = np.nan
    data = split(stimulus, response, segment=np.repeat([0, 1, 2], [400, 4, 296]))
    able = {"bits": not real and kind in TWO_VALUES, "int8": not real and kind in EIGHT_BITS}
    if not able.get(algorithm, True):
        with pytest.raises(UserError, match="use 'float' or 'auto'"):
            sta(data, 6, first_lag=1, algorithm=algorithm)
        return
    expected, counted = by_definition(data, 6, 1)
    result = sta(data, 6, first_lag=1, algorithm=algorithm, threads=2)
    scale = np.abs(stimulus.astype(float)).max()
    np.testing.assert_allclose(result["sta"], expected, rtol=1e-6, atol=1e-6 * scale)
    np.testing.assert_allclose(result["spikes"], counted)
    if not real and kind in EIGHT_BITS and algorithm in ("auto", "bits", "int8"):
        np.testing.assert_allclose(result["sta"], expected, rtol=1e-14, atol=1e-13)
    if algorithm != "auto":
        assert result.attrs["algorithm"] == algorithm
    else:
        assert result.attrs["algorithm"] in ALGORITHMS


def test_repeats_are_averaged_and_counts_stay_exact():
    random = np.random.default_rng(0)
    stimulus = 2 * random.integers(0, 2, (300, 4, 4), np.int8) - 1
    response = random.poisson(0.2, (3, 300, 2))
    mean = split(stimulus, response.mean(0))
    result = sta(split(stimulus, response), 5)
    assert result.attrs["algorithm"] == "bits"
    np.testing.assert_allclose(result["sta"], by_definition(mean, 5)[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result["spikes"], by_definition(mean, 5)[1])
    lost = response.astype(float)
    lost[1, 100:] = np.nan
    mean = split(stimulus, np.nanmean(lost, 0))
    np.testing.assert_allclose(
        sta(split(stimulus, lost), 5)["sta"], by_definition(mean, 5)[0], atol=1e-6
    )


def test_false_and_true_are_zero_and_one_and_not_minus_one():
    stimulus = np.zeros((40, 1, 2), bool)
    stimulus[:, 0, 1] = True
    for algorithm in ALGORITHMS:
        result = sta(split(stimulus, np.ones((40, 1))), 3, algorithm=algorithm)
        np.testing.assert_allclose(result["sta"], np.tile([0.0, 1.0], (1, 3, 1, 1)), atol=1e-6)


def test_a_stimulus_of_one_value_is_its_own_average():
    for value in (-1, 0, 1):
        stimulus = np.full((40, 2, 2), value, np.int8)
        np.testing.assert_array_equal(sta(split(stimulus, np.ones((40, 1))), 3)["sta"], value)


@pytest.mark.parametrize("algorithm", ["bits", "int8", "float", "toeplitz", "fft"])
def test_windows_do_not_cross_segments(algorithm):
    stimulus = np.repeat(np.array([-1, 1], np.int8), 20)[:, None, None]
    response = np.ones((40, 1))
    data = split(stimulus, response, segment=np.repeat([0, 1], 20))
    result = sta(data, 5, algorithm=algorithm)
    np.testing.assert_allclose(result["sta"], 0, atol=1e-6)
    assert float(result["spikes"].item()) == 32


@pytest.mark.parametrize("algorithm", ["auto", "float"])
def test_nan_in_the_stimulus_reaches_only_the_spikes_that_saw_it(algorithm):
    random = np.random.default_rng(0)
    stimulus = random.standard_normal((500, 2, 2), np.float32)
    stimulus[200, 0, 0] = np.nan
    response = random.random((500, 2))
    response[195:210, 0] = 0
    result = sta(split(stimulus, response), 5, algorithm=algorithm)["sta"]
    assert np.isfinite(result[0]).all()
    assert np.isnan(result[1, :, 0, 0]).all()
    assert np.isnan(result[1]).sum() == 5


@pytest.mark.parametrize("algorithm", ["toeplitz", "fft"])
def test_products_refuse_nan_in_the_stimulus(algorithm):
    stimulus = np.full((50, 1, 1), np.nan, np.float32)
    with pytest.raises(UserError, match="NaN"):
        sta(split(stimulus, np.ones((50, 1))), 3, algorithm=algorithm)


def test_a_third_value_late_in_the_movie_is_counted():
    random = np.random.default_rng(0)
    stimulus = 2 * random.integers(0, 2, (300, 3, 3), np.int8) - 1
    stimulus[250] = 0
    data = split(stimulus, random.poisson(0.5, (300, 1)))
    result = sta(data, 4)
    np.testing.assert_allclose(result["sta"], by_definition(data, 4)[0], rtol=1e-14, atol=1e-14)
    assert result.attrs["algorithm"] == "int8"


def test_an_unknown_algorithm_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'float'"):
        sta(split(np.ones((9, 1, 1)), np.ones((9, 1))), 2, algorithm="floats")


@pytest.mark.parametrize("bits", [128, 256])
def test_narrower_vectors_count_the_same(bits):
    """The processor here may be wider; the kernels are asked to hold back."""
    mine = Path(__file__)
    chosen = "same_compiled or every_algorithm or third_value"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", mine, "-k", chosen]
    environment = os.environ | {"RETINAKIT_VECTOR_BITS": str(bits)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_ensemble_is_the_windows_and_large_counts_are_weights():
    random = np.random.default_rng(0)
    response = np.zeros((60, 1), int)
    response[[1, 20, 40], 0] = 5, 200, 1
    stimulus = random.integers(-1, 2, (60, 2, 2)).astype(np.int8)
    result = spike_triggered_ensemble(split(stimulus, response), 4)
    assert result["frame"].values.tolist() == [20, 40]
    assert result["weight"].values.tolist() == [200, 1]
    assert result["ensemble"].dtype == np.int8
    np.testing.assert_array_equal(result["ensemble"][0], stimulus[[20, 19, 18, 17]])
    nothing = spike_triggered_ensemble(split(stimulus, 0 * response), 4)
    assert nothing["ensemble"].shape == (0, 4, 2, 2)


@pytest.mark.parametrize("field", [(1, 1), (1, 8), (8, 1)])
def test_the_average_of_a_single_row_or_pixel_is_drawn_in_time(field):
    random = np.random.default_rng(0)
    stimulus = random.standard_normal((400, *field))
    split = make_split(stimulus, np.exp(stimulus.reshape(400, -1)[:, :1]), frame_interval=0.02)
    recording = make_recording(dict.fromkeys(SPLITS, split))
    result = STA({"lags": 3}).run(recording)
    image, _ = STA({"lags": 3}).plot(xr.DataTree.from_dict({"/bars": result})).axes
    expected = result["sta"].values.reshape(3, -1)[::-1].T
    drawn = image.collections[0].get_array() if max(field) > 1 else image.lines[-1].get_ydata()
    np.testing.assert_allclose(np.reshape(drawn, expected.shape), expected)
