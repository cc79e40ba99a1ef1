"""The weighted covariance of windows of a stimulus."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.linalg import blas

from retinakit.contracts.errors import UserError, nearest
from retinakit.contracts.progress import Progress
from retinakit.kernels import as_numbers
from retinakit.spikes.algorithms.bit_sums import two_levels
from retinakit.spikes.algorithms.gram import add_gram

ALGORITHMS = ("bits", "product")
_BYTES = 128 * 2**20  # maximum size in memory of the windows, and of the stimulus
_EXACT = 2**53  # integers up to this one are exact in double precision
_ROWS = 64  # number of rows of a covariance that fit into the cache


@dataclass(frozen=True)
class Windows:
    """Windows of a stimulus with weights.

    Attributes:
        stimulus: (frame, ...).
        frames: (window,), increasing; lag 0 of each window.
        weight: (window,), nonnegative.
        lags: (lag,), consecutive.
        threads: the number of threads of "bits".
        progress: is called with the number of processed windows.
    """

    stimulus: xr.DataArray
    frames: NDArray[np.int64]
    weight: NDArray[np.float64]
    lags: NDArray[np.int64]
    threads: int
    progress: Progress

    @property
    def pixels(self) -> int:
        return int(np.prod(self.stimulus.shape[1:]))

    @property
    def features(self) -> int:
        return len(self.lags) * self.pixels

    def blocks(self, shown: int, number: int) -> Iterator[tuple[slice, NDArray[Any], int]]:
        """Iterates over blocks of at most `number` windows that span at most `shown` frames.

        Yields:
            The slice of windows, the stimulus (frame, pixel), and the number of its first frame.
        """
        done = 0
        while done < len(self.frames):
            oldest = int(self.frames[done] - self.lags[-1])
            fit = int(np.searchsorted(self.frames, oldest + shown))
            here = slice(done, min(max(done + 1, min(done + number, fit)), len(self.frames)))
            done = here.stop
            read = self.stimulus[oldest : int(self.frames[done - 1] - self.lags[0]) + 1].values
            yield here, as_numbers(read.reshape(len(read), self.pixels)), oldest
            self.progress(done, len(self.frames), "spike-triggered covariance")


class Moments(NamedTuple):
    """Moments of windows offset + scale · x: Σ w x, and Σ w x xᵀ on and above the diagonal."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    offset: Any
    scale: float


def weighted_covariance(
    windows: Windows, algorithm: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """The covariance Σ w (s - m)(s - m)ᵀ / Σ w, the mean m = Σ w s / Σ w, and the algorithm.

    Raises:
        UserError: if the algorithm does not exist or does not support the stimulus or the weights.
    """
    if algorithm not in ("auto", *ALGORITHMS):
        raise UserError(
            f"there is no algorithm '{algorithm}'; {nearest(algorithm, ['auto', *ALGORITHMS])}"
        )
    moments = None if algorithm == "product" else _of_bits(windows)
    used = "product" if moments is None else "bits"
    if moments is None:
        if algorithm == "bits":
            raise UserError(
                "algorithm 'bits' requires a two-valued stimulus and spike counts; use 'product' "
                "or 'auto'"
            )
        moments = _of_numbers(windows)
    covariance, mean = _centred(moments, windows.weight.sum())
    return covariance, mean, used


def _of_bits(windows: Windows) -> Moments | None:
    """Exact moments of bits x; None if the stimulus is not two-valued or w are not integers."""
    if (windows.weight % 1).any() or windows.weight.sum() > _EXACT:
        return None
    counts = windows.weight.astype(np.int64)
    size = windows.pixels * windows.stimulus.dtype.itemsize + 64  # bits are in lines of 64 bytes
    lags, threads = windows.lags, windows.threads
    second = np.zeros((windows.features, windows.features))
    levels = None
    for here, values, oldest in windows.blocks(max(1, _BYTES // size), len(counts)):
        levels = levels or two_levels(values)
        frames = windows.frames[here] - oldest
        if not levels or not add_gram(values, *levels, frames, counts[here], lags, second, threads):
            return None
    low, high = levels or (0, 0)  # without windows
    return Moments(second.diagonal().copy(), second, low, high - low)


def _of_numbers(windows: Windows) -> Moments:
    """Moments by symmetric rank-k updates, which need half the operations of a matrix product.

    The windows are multiplied by the square root of their weights.
    """
    shown, number = (max(1, _BYTES // (4 * size)) for size in (windows.pixels, windows.features))
    second = np.zeros((windows.features, windows.features))
    first, shift = np.zeros(windows.features), np.zeros(windows.pixels, np.float32)
    for here, values, oldest in windows.blocks(shown, number):
        values = values.astype(np.float32)
        if here.start == 0:
            # Subtracting approximately the mean avoids cancellation in single precision. A NaN of
            # some frames must not affect windows without it.
            shift = np.where(np.isfinite(values), values, 0).mean(0)
        at = windows.frames[here, None] - windows.lags - oldest
        some = (values - shift)[at].reshape(-1, windows.features)
        weight = windows.weight[here].astype(np.float32)
        first += weight @ some
        some *= np.sqrt(weight)[:, None]
        second += blas.ssyrk(1, some.T, lower=True).T  # upper, from Fortran's order
    return Moments(first, second, np.tile(shift, len(windows.lags)), 1.0)


def _centred(moments: Moments, total: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The covariance, in the memory of the second moments, and the mean; NaN for a total of 0."""
    first, second, offset, scale = moments
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = first / total
        for begin in range(0, len(second), _ROWS):
            rows = second[begin : begin + _ROWS, begin:]
            rows /= total
            rows -= np.outer(mean[begin : begin + _ROWS], mean[begin:])
            rows *= scale**2
            square = np.triu(rows[:, : len(rows)])
            rows[:, : len(rows)] = square + np.triu(square, 1).T
            second[begin + _ROWS :, begin : begin + _ROWS] = rows[:, _ROWS:].T
    return second, offset + scale * mean


def require_memory(features: int, matrices: int = 3) -> None:
    """Checks that a covariance fits into memory.

    Args:
        features: the number of rows.
        matrices: the number of matrices of this size; by default the sum, that of the prior, and
            that of a block.

    Raises:
        UserError: if it does not; the message gives the largest possible number of features.
    """
    needed = 8 * matrices * features**2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if needed > memory:
        side = int((memory / (8 * matrices)) ** 0.5)
        raise UserError(
            f"a covariance of {features} features (lags x checks) requires {needed / 1e9:.0f} GB "
            f"and {memory / 1e9:.0f} GB are free; crop the stimulus around the receptive field or "
            f"reduce it to at most {side} features"
        )
