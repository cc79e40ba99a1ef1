"""Sums over the frames that have a response, and over no others."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retinakit.kernels import compiled
from retinakit.triggered.response import Block


def add_int8(values: NDArray[Any], block: Block, first_lag: int, sums: Any, threads: int) -> bool:
    """Adds a block's sums of an 8-bit stimulus under counts, exactly.

    Args:
        values: (frame, pixel) int8 or uint8.
        sums: (cell, lag, pixel) int64.
    """
    starts, frames, counts = block.lists
    counts = counts.astype(np.int64)
    sparse_sums(values, starts, frames, counts, first_lag, sums, threads)
    return True


def add_float(values: NDArray[Any], block: Block, first_lag: int, sums: Any, threads: int) -> bool:
    """Adds a block's sums in the precision of the stimulus, at least float32.

    Args:
        values: (frame, pixel).
        sums: (cell, lag, pixel) float64.
    """
    precision = np.float64 if values.dtype == np.float64 else np.float32
    starts, frames, weights = block.lists
    weights = weights.astype(precision)
    values = values.astype(precision, copy=False)
    sparse_sums(values, starts, frames, weights, first_lag, sums, threads)
    return True


@numba.njit(cache=True, nogil=True)
def _sparse_sums(
    stimulus: NDArray[Any],
    starts: NDArray[np.int64],
    frames: NDArray[np.int64],
    weights: NDArray[Any],
    first_lag: int,
    sums: Any,
    threads: int,
) -> None:
    for cell in range(sums.shape[0]):
        for i in range(starts[cell], starts[cell + 1]):
            for lag in range(sums.shape[1]):
                frame = stimulus[frames[i] - first_lag - lag]
                for pixel in range(stimulus.shape[1]):
                    sums[cell, lag, pixel] += weights[i] * frame[pixel]


sparse_sums: Callable[..., None] = _sparse_sums if compiled is None else compiled.sparse_sums
