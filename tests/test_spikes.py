"""Spike-triggered averages: the definition, and the mistakes that others make."""

import numpy as np
import pytest
import xarray as xr

from retinakit import spikes
from retinakit.errors import RecordingError
from retinakit.kernels import compiled
from retinakit.recording import make_split
from retinakit.spikes import sta


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
    monkeypatch.setattr(spikes, "BLOCK_BYTES", 36 * 50)
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


def test_the_compiled_kernel_equals_its_numba_twin():
    assert compiled is not None, "the test environment has a compiler, so the kernels are built"
    random = np.random.default_rng(0)
    stimulus = random.integers(-128, 128, (400, 5000), dtype=np.int8)
    frames = np.sort(random.integers(6, 400, 9000))
    counts = random.integers(1, 60, 9000).astype(np.int32)
    counts[::1000] = 2**30
    first, second = np.zeros((2, 5, 5000), np.int64)
    compiled.spike_triggered_sum(stimulus, frames, counts, 1, first)
    spikes._spike_triggered_sum(stimulus, frames, counts, 1, second)
    np.testing.assert_array_equal(first, second)


def test_the_compiled_kernel_refuses_spikes_without_history():
    assert compiled is not None
    with pytest.raises(IndexError, match="history"):
        compiled.spike_triggered_sum(
            np.zeros((5, 2), np.int8), np.array([2]), np.array([1], np.int32), 0,
            np.zeros((4, 2), np.int64),
        )  # fmt: skip
