"""The Numba version of csrc/sparse.cpp, with the same sums of 8-bit stimuli."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retinakit.spikes.algorithms.common_numba import parallel, require_history

_PIXELS = 64  # pixels of a line, the part of a frame that is processed together
_BLOCK_BYTES = 2**18  # bytes of a block of lines, which fits into the L2 cache
_LARGEST_TERMS = 128  # number of terms summed in 16 bits: 128 · 255 does not overflow

njit = numba.njit(cache=True, nogil=True)


def sparse_sums(
    stimulus: NDArray[Any],
    starts: NDArray[np.int64],
    frames: NDArray[np.int64],
    weights: NDArray[Any],
    first_lag: int,
    sums: Any,
    threads: int,
) -> None:
    """Adds Σ weight · stimulus over the frames of each cell, for each lag.

    Args:
        stimulus: (frame, pixel) of 8 bits, float32 or float64.
        starts: (cell + 1,), the start of each cell's part of `frames`, in which they increase.
        weights: of the frames; int64 for 8-bit stimuli, otherwise with the dtype of the stimulus.
        sums: (cell, lag, pixel) int64 or float64.

    Raises:
        IndexError: if a frame lacks its history.
    """
    lags = sums.shape[1]
    require_history(frames, first_lag + lags, len(stimulus))
    exact = stimulus.itemsize == 1
    kind, most = (np.int16, _LARGEST_TERMS) if exact else (stimulus.dtype, np.inf)

    def add(begin: int, end: int) -> None:
        block = np.empty(lags * _PIXELS, kind)
        _add_lines(stimulus, starts, frames, weights, first_lag, block, most, sums, begin, end)

    parallel(add, -(-stimulus.shape[1] // _PIXELS), threads)


@njit
def _add_lines(
    stimulus: NDArray[Any],
    starts: NDArray[np.int64],
    frames: NDArray[np.int64],
    weights: NDArray[Any],
    first_lag: int,
    block: NDArray[Any],
    most: Any,
    sums: Any,
    begin: int,
    end: int,
) -> None:
    """Adds the sums of a range of lines; `block` cannot overflow for weights up to `most`."""
    available, pixels = stimulus.shape
    cells, lags, _ = sums.shape
    history, step = first_lag + lags - 1, _BLOCK_BYTES // (_PIXELS * stimulus.itemsize)
    # The last line may extend beyond the pixels; these sums are not used.
    lines = np.empty((step + history) * _PIXELS, stimulus.dtype)
    for first in range(_PIXELS * begin, _PIXELS * end, _PIXELS):
        used = min(_PIXELS, pixels - first)
        at = starts[:-1].copy()
        for frame in range(0, available, step):
            oldest, stop = max(0, frame - history), min(frame + step, available)
            for i in range(oldest, stop):
                for p in range(used):
                    lines[_PIXELS * (i - oldest) + p] = stimulus[i, first + p]
            for cell in range(cells):
                here = sums[cell, :, first : first + used]
                block[:] = 0
                total = 0
                while at[cell] < starts[cell + 1] and frames[at[cell]] < stop:
                    weight, run = weights[at[cell]], _PIXELS * (frames[at[cell]] - history - oldest)
                    if total + weight > most:
                        _add(1, block, here)
                        block[:] = 0
                        total = 0
                    if weight > most:
                        _add(weight, lines[run:], here)
                    else:
                        _add_run(block.dtype.type(weight), lines, run, block)
                        total += weight
                    at[cell] += 1
                _add(1, block, here)


@njit
def _add_run(weight: Any, lines: NDArray[Any], first: int, block: NDArray[Any]) -> None:
    run = lines[first : first + len(block)]
    for i in range(len(block)):
        block[i] += weight * run[i]


@njit
def _add(weight: Any, block: NDArray[Any], sums: Any) -> None:
    lags, width = sums.shape
    for lag in range(lags):
        line = block[_PIXELS * (lags - 1 - lag) :]
        for p in range(width):
            sums[lag, p] += weight * line[p]
