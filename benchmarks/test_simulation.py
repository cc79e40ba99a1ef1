"""Simulated subunit cells, against what one would write with torch, NumPy and SciPy.

python -m pytest benchmarks/test_simulation.py --benchmark-group-by=group

Everything on one thread. `test_goal_*` interleave the contestants and put the ratio of the
medians, with its target, into `extra_info["goal"]`. RETINAKIT_BENCHMARK_FRAMES shortens the large
movie (2.4 GB), of which the peer gets a part and its time is scaled.
"""

import os
import statistics
import time

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import lfilter

from retinakit.bits import Bits
from retinakit.kernels import compiled
from retinakit.simulation import SubunitCells, simulate

LAGS, THRESHOLD, GAIN = 20, 2.5, 2 / 30
LARGE_FRAMES = int(os.environ.get("RETINAKIT_BENCHMARK_FRAMES", "300000"))
LARGE_PART = min(20_000, LARGE_FRAMES)


def output(drive, cells):
    """From the filtered subunits (frame, subunit) to the rate (frame, cell)."""
    summed = np.maximum(drive, 0).reshape(len(drive), cells, -1).sum(-1)
    return np.float32(GAIN) * np.maximum(summed - np.float32(THRESHOLD), 0)


class Case:
    """A population and its peers; `stimulus` is (frame, y, x) of +1 and -1 in int8."""

    def __init__(self, stimulus, spatial, cells):
        random = np.random.default_rng(1)
        self.stimulus, self.spatial, self.count = stimulus, spatial, cells
        self.temporal = random.standard_normal(LAGS).astype(np.float32) / 4
        self.cells = SubunitCells(
            spatial,
            self.temporal,
            np.kron(np.eye(cells), np.ones(len(spatial) // cells)),
            threshold=THRESHOLD,
            gain=GAIN,
        )

    def product_and_lfilter(self, stimulus):
        """One product with the dense weights, in pieces, and scipy.signal.lfilter."""
        weights = self.spatial.reshape(len(self.spatial), -1).T.copy()
        frames = len(stimulus.packed if isinstance(stimulus, Bits) else stimulus)
        drive = np.empty((frames, weights.shape[1]), np.float32)
        for start in range(0, frames, 8192):
            part = slice(start, start + 8192)
            if isinstance(stimulus, Bits):
                numbers = Bits(stimulus.packed[part], stimulus.pixels).unpack()
            else:
                numbers = stimulus[part].reshape(-1, len(weights))
            np.matmul(numbers.astype(np.float32, copy=False), weights, out=drive[part])
        return output(lfilter(self.temporal, np.ones(1, np.float32), drive, axis=0), self.count)

    def conv3d(self, stimulus):
        """torch's convolution in space and time with the subunits' kernels."""
        history = np.zeros((LAGS - 1, *stimulus.shape[1:]), np.float32)
        movie = torch.from_numpy(np.concatenate([history, stimulus]))[None, None]
        kernel = np.einsum("l,syx->slyx", self.temporal[::-1], self.spatial)
        with torch.inference_mode():
            drive = torch.nn.functional.conv3d(movie, torch.from_numpy(kernel)[:, None])
        return output(drive[0, :, :, 0, 0].numpy().T, self.count)

    def sliding_window(self, stimulus):
        """Subunit sums, and np.einsum over a window in time."""
        weights = self.spatial.reshape(len(self.spatial), -1).T
        sums = stimulus.reshape(len(stimulus), -1).astype(np.float32) @ weights
        padded = np.concatenate([np.zeros((LAGS - 1, sums.shape[1]), np.float32), sums])
        windows = sliding_window_view(padded, LAGS, axis=0)
        drive = np.einsum("tsl,l->ts", windows, self.temporal[::-1])
        return output(drive, self.count)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small():
    random = np.random.default_rng(0)
    stimulus = 2 * random.integers(0, 2, (600_000, 8, 8), dtype=np.int8) - 1
    spatial = np.zeros((4, 8, 8), np.float32)
    for subunit in range(4):
        y, x = 2 + 2 * (subunit // 2), 2 + 2 * (subunit % 2)
        spatial[subunit, y : y + 2, x : x + 2] = 0.5
    return Case(stimulus, spatial, 1)


@pytest.fixture(scope="module")
def large():
    random = np.random.default_rng(0)
    stimulus = np.empty((LARGE_FRAMES, 90, 90), np.int8)
    for start in range(0, LARGE_FRAMES, 10_000):
        part = stimulus[start : start + 10_000]
        part[:] = 2 * random.integers(0, 2, part.shape, dtype=np.int8) - 1
    spatial = np.zeros((320, 90, 90), np.float32)
    for field in spatial:
        y, x = random.integers(0, 85, 2)
        field[y : y + 6, x : x + 6] = random.uniform(0, 0.3, (6, 6))
    return Case(stimulus, spatial, 80)


def forms(stimulus):
    return {
        "bits": Bits.pack(stimulus),
        "int8": stimulus,
        "float32": stimulus.astype(np.float32),
    }


def medians(rounds, *functions):
    """Median seconds of each, run in turn after one run that does not count."""
    seconds = [[] for _ in functions]
    for turn in range(rounds + 1):
        for function, taken in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if turn:
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def check_goal(benchmark, name, target, ratio, ours):
    """Records the ratio; the report's own time is that of our side."""
    benchmark.extra_info["goal"] = {"id": name, "ratio": ratio, "target": target}
    benchmark.pedantic(ours, rounds=1)
    print(f"{name} {ratio:.1f} {target} {'met' if ratio >= target else 'short'}")


def test_all_agree(small):
    for stimulus in forms(small.stimulus[:50_000]).values():
        rate = simulate(small.cells, stimulus).rate
        np.testing.assert_allclose(rate, small.product_and_lfilter(stimulus), atol=1e-6)
    stimulus = small.stimulus[:50_000]
    np.testing.assert_allclose(rate, small.conv3d(stimulus), atol=1e-6)
    np.testing.assert_allclose(rate, small.sliding_window(stimulus), atol=1e-6)
    np.testing.assert_array_equal(rate, simulate(small.cells, stimulus, backend="numba").rate)


def test_all_agree_on_the_large_movie(large):
    stimulus = large.stimulus[:5000]
    rate = simulate(large.cells, stimulus).rate
    np.testing.assert_allclose(rate, large.product_and_lfilter(stimulus), atol=2e-6)


@pytest.mark.benchmark(group="simulation, small")
@pytest.mark.parametrize("form", ["bits", "int8", "float32"])
@pytest.mark.parametrize("spikes", ["none", "binary", "poisson"])
def test_simulate(benchmark, small, form, spikes):
    stimulus = forms(small.stimulus)[form]
    benchmark(simulate, small.cells, stimulus, spikes=spikes)


@pytest.mark.benchmark(group="simulation, small")
@pytest.mark.parametrize("form", ["bits", "int8", "float32"])
def test_numba(benchmark, small, form):
    stimulus = forms(small.stimulus)[form]
    benchmark(simulate, small.cells, stimulus, backend="numba")


@pytest.mark.benchmark(group="simulation, small")
@pytest.mark.parametrize("peer", ["product_and_lfilter", "sliding_window", "conv3d"])
def test_peer(benchmark, small, peer):
    benchmark.pedantic(getattr(small, peer), (small.stimulus,), rounds=3, warmup_rounds=1)


needs_kernels = pytest.mark.skipif(compiled is None, reason="the compiled kernels are not there")


@needs_kernels
@pytest.mark.benchmark(group="goals")
@pytest.mark.parametrize(("form", "target"), [("bits", 10), ("int8", 5), ("float32", 5)])
def test_goal_small_against_product_and_lfilter(benchmark, small, form, target):
    stimulus = forms(small.stimulus)[form]

    def ours():
        return simulate(small.cells, stimulus)

    theirs, mine = medians(9, lambda: small.product_and_lfilter(stimulus), ours)
    check_goal(benchmark, f"simulation-small-lfilter-{form}", target, theirs / mine, ours)


@needs_kernels
@pytest.mark.benchmark(group="goals")
def test_goal_small_against_conv3d(benchmark, small):
    stimulus, movie = Bits.pack(small.stimulus), small.stimulus.astype(np.float32)

    def ours():
        return simulate(small.cells, stimulus)

    theirs, mine = medians(3, lambda: small.conv3d(movie), ours)
    check_goal(benchmark, "simulation-small-conv3d-bits", 100, theirs / mine, ours)


@needs_kernels
@pytest.mark.benchmark(group="goals")
def test_goal_large_with_spikes(benchmark, large):
    part = large.stimulus[:LARGE_PART]

    def ours():
        return simulate(large.cells, large.stimulus, spikes="binary")

    theirs, mine = medians(3, lambda: large.product_and_lfilter(part), ours)
    ratio = theirs * LARGE_FRAMES / LARGE_PART / mine
    check_goal(benchmark, "simulation-large-lfilter-int8", 15, ratio, ours)
