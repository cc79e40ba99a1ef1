"""Spike-triggered sums as matrix products, for responses that are rarely zero."""

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view
from numpy.typing import NDArray
from scipy import fft

from retinakit.spikes.algorithms.response import Block

_ROWS = 4096  # frames in a Toeplitz matrix
_PIXELS = 1024  # pixels whose spectra are in memory at once


def add_toeplitz(
    values: NDArray[Any], block: Block, first_lag: int, sums: Any, threads: int
) -> bool:
    """Adds the sums of a block as one product with a Toeplitz matrix of the responses.

    Row u of the matrix is r[u + lag] for every cell and lag, so that the stimulus is read once.

    Args:
        values: (frame, pixel).
        block: the responses.
        first_lag: the smallest lag.
        sums: (cell, lag, pixel) float64, modified in place.
        threads: not used.

    Returns:
        False, without adding anything, if the stimulus has NaN, which would propagate to all cells.
    """
    if not _finite(values):
        return False
    cells, lags, pixels = sums.shape
    response = np.pad(block.matrix(), ((0, lags), (0, 0)))
    rows = sliding_window_view(response, lags, axis=0)[first_lag:]
    used = len(values) - first_lag
    for begin in range(0, used, _ROWS):
        end = min(begin + _ROWS, used)
        toeplitz = rows[begin:end].reshape(end - begin, cells * lags)
        frames = values[begin:end].astype(np.float32, copy=False)
        sums += (toeplitz.T @ frames).reshape(cells, lags, pixels)
    return True


def add_fft(values: NDArray[Any], block: Block, first_lag: int, sums: Any, threads: int) -> bool:
    """Adds the sums of a block by Fourier transforms and one matrix product for each frequency.

    The transforms are of windows that overlap by the history. The response is 0 in the overlap, so
    that the circular correlation equals the linear one.

    Args, Returns: as for `add_toeplitz`.
    """
    if not _finite(values):
        return False
    cells, lags, pixels = sums.shape
    history = first_lag + lags - 1
    length = fft.next_fast_len(max(8 * (history + 1), 128), real=True)
    step = length - history
    windows = -(-(len(values) - history) // step)
    short = windows * step + history - len(values)
    response = sliding_window_view(np.pad(block.matrix(), ((0, short), (0, 0))), length, axis=0)[
        ::step
    ].copy()  # (window, cell, frame)
    response[..., :history] = 0
    spectrum = np.conj(fft.rfft(response, axis=2)).transpose(2, 1, 0).copy()
    # e^{-2πifl/N} times 2 for frequencies with a negative counterpart, as (lag, frequency)
    frequency = np.arange(len(spectrum))
    sides = np.where((frequency == 0) | (2 * frequency == length), 1, 2) / length
    lag = first_lag + np.arange(lags)
    back = (sides * np.exp(-2j * np.pi * np.outer(lag, frequency) / length)).astype(np.complex64)
    # The cross spectra of some pixels are summed over all windows, in groups that fit memory.
    group = max(1, 2**24 // (length * min(pixels, _PIXELS)))
    for left in range(0, pixels, _PIXELS):
        part = slice(left, min(left + _PIXELS, pixels))
        cross: Any = 0
        for first in range(0, windows, group):
            last = min(first + group, windows)
            frames = values[first * step : last * step + history, part]
            missing = (last - first) * step + history - len(frames)
            frames = np.pad(frames.astype(np.float32), ((0, missing), (0, 0)))
            down, across = frames.strides
            shape = (last - first, length, frames.shape[1])
            overlapping = as_strided(frames, shape, (step * down, down, across), writeable=False)
            stimulus = fft.rfft(overlapping, axis=1).transpose(1, 0, 2)
            cross = cross + spectrum[..., first:last] @ stimulus
        size = cross.shape[2]
        added = (back @ cross.reshape(len(frequency), cells * size)).real
        sums[..., part] += added.reshape(lags, cells, size).transpose(1, 0, 2)
    return True


def _finite(values: NDArray[Any]) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values.sum(dtype=np.float64)))
