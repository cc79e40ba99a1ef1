"""Spike-triggered sums: the compiled kernel, its Numba twin, and one matrix product a lag.

python -m pytest benchmarks/test_spike_triggered.py --benchmark-group-by=group
"""

import numpy as np
import pytest

from retinakit.kernels import compiled
from retinakit.spikes import _spike_triggered_sum

FRAMES, PIXELS, LAGS, SPIKES = 100_000, 32 * 32, 20, 15_000


@pytest.fixture(scope="module")
def case():
    random = np.random.default_rng(0)
    stimulus = 2 * random.integers(0, 2, (FRAMES, PIXELS), dtype=np.int8) - 1
    spikes = np.sort(random.integers(LAGS, FRAMES, SPIKES))
    frames, counts = np.unique(spikes, return_counts=True)
    return stimulus, frames, counts.astype(np.int32)


def kernel(function, stimulus, frames, counts):
    sums = np.zeros((LAGS, PIXELS), np.int64)
    function(stimulus, frames, counts, 0, sums)
    return sums


def product(stimulus, frames, counts):
    weight = np.zeros((1, FRAMES), np.float32)
    weight[0, frames] = counts
    numbers = stimulus.astype(np.float32)
    return np.concatenate([weight[:, lag:] @ numbers[: FRAMES - lag] for lag in range(LAGS)])


def test_kernels_agree(case):
    expected = product(*case)
    np.testing.assert_array_equal(kernel(_spike_triggered_sum, *case), expected)
    if compiled is not None:
        np.testing.assert_array_equal(kernel(compiled.spike_triggered_sum, *case), expected)


@pytest.mark.benchmark(group="spike-triggered average, 1 cell")
@pytest.mark.skipif(compiled is None, reason="the compiled kernels are not there")
def test_compiled(benchmark, case):
    benchmark(kernel, compiled.spike_triggered_sum, *case)


@pytest.mark.benchmark(group="spike-triggered average, 1 cell")
def test_numba(benchmark, case):
    benchmark(kernel, _spike_triggered_sum, *case)


@pytest.mark.benchmark(group="spike-triggered average, 1 cell")
def test_matrix_product(benchmark, case):
    benchmark(product, *case)
