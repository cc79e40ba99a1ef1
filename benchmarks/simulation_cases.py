"""Simulated subunit cells, and the same simulation in torch, NumPy and SciPy.

The environment variable RETINAKIT_BENCHMARK_FRAMES shortens the large movie (2.4 GB). The peer
simulates a part of this movie.
"""

import os
from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np
import torch
from contest import Contest
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import lfilter

from retinakit.contracts import Bits
from retinakit.kernels import compiled
from retinakit.simulation import SubunitCells, simulate

LAGS, THRESHOLD, GAIN = 20, 2.5, 2 / 30
LARGE_FRAMES = int(os.environ.get("RETINAKIT_BENCHMARK_FRAMES", "300000"))
LARGE_PART = min(20_000, LARGE_FRAMES)
TOLERANCE = 2e-6
SMALL = "simulation, small: 600k frames of 8x8, 4 subunits of 1 cell"
LARGE = f"simulation, large: {LARGE_FRAMES // 1000}k frames of 90x90, 320 subunits of 80 cells"


def output(drive, cells):
    """The rate (frame, cell) from the filtered subunits (frame, subunit)."""
    summed = np.maximum(drive, 0).reshape(len(drive), cells, -1).sum(-1)
    return np.float32(GAIN) * np.maximum(summed - np.float32(THRESHOLD), 0)


class Case:
    """A population and the peers' code; `stimulus` is (frame, y, x), int8 of +1 and -1."""

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
        """A matrix product with dense weights, in blocks of frames, and scipy.signal.lfilter."""
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
        """torch's conv3d with the kernels of the subunits in space and time."""
        history = np.zeros((LAGS - 1, *stimulus.shape[1:]), np.float32)
        movie = torch.from_numpy(np.concatenate([history, stimulus]))[None, None]
        kernel = np.einsum("l,syx->slyx", self.temporal[::-1], self.spatial)
        with torch.inference_mode():
            drive = torch.nn.functional.conv3d(movie, torch.from_numpy(kernel)[:, None])
        return output(drive[0, :, :, 0, 0].numpy().T, self.count)

    def sliding_window(self, stimulus):
        """Sums of the subunits, and np.einsum over sliding windows in time."""
        weights = self.spatial.reshape(len(self.spatial), -1).T
        sums = stimulus.reshape(len(stimulus), -1).astype(np.float32) @ weights
        padded = np.concatenate([np.zeros((LAGS - 1, sums.shape[1]), np.float32), sums])
        windows = sliding_window_view(padded, LAGS, axis=0)
        drive = np.einsum("tsl,l->ts", windows, self.temporal[::-1])
        return output(drive, self.count)


@lru_cache(maxsize=1)
def small():
    random = np.random.default_rng(0)
    stimulus = 2 * random.integers(0, 2, (600_000, 8, 8), dtype=np.int8) - 1
    spatial = np.zeros((4, 8, 8), np.float32)
    for subunit in range(4):
        y, x = 2 + 2 * (subunit // 2), 2 + 2 * (subunit % 2)
        spatial[subunit, y : y + 2, x : x + 2] = 0.5
    return Case(stimulus, spatial, 1)


@lru_cache(maxsize=1)
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


def rate(cells, stimulus, **options):
    return simulate(cells, stimulus, **options).rate


def contests() -> Iterator[Contest]:
    """All contests, which run in one thread."""
    missing = "" if compiled is not None else "the compiled kernels are not installed"

    def with_lfilter(form):
        stimulus = forms(small().stimulus)[form]
        return partial(rate, small().cells, stimulus), partial(
            small().product_and_lfilter, stimulus
        )

    def with_windows():
        return partial(rate, small().cells, small().stimulus), partial(
            small().sliding_window, small().stimulus
        )

    def with_conv3d():
        stimulus = small().stimulus
        return partial(rate, small().cells, Bits.pack(stimulus)), partial(
            small().conv3d, stimulus.astype(np.float32)
        )

    def on_the_large_movie():
        case = large()
        return partial(rate, case.cells, case.stimulus, spikes="binary"), partial(
            case.product_and_lfilter, case.stimulus[:LARGE_PART]
        )

    for form, target in (("bits", 10), ("int8", 5), ("float32", 5)):
        yield Contest(
            f"simulation-small-lfilter-{form}",
            SMALL,
            target,
            partial(with_lfilter, form),
            TOLERANCE,
            missing=missing,
        )
    for name, sides, target in (
        ("simulation-small-windows-int8", with_windows, None),
        ("simulation-small-conv3d-bits", with_conv3d, 100),
    ):
        yield Contest(name, SMALL, target, sides, TOLERANCE, missing=missing)
    yield Contest(
        "simulation-large-lfilter-int8",
        LARGE,
        15,
        on_the_large_movie,
        TOLERANCE,
        share=LARGE_PART / LARGE_FRAMES,
        missing=missing,
    )
