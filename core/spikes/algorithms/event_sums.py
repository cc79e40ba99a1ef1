"""Spike-triggered sums over the frames with a nonzero response."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinakit.kernels import compiled
from retinakit.spikes.algorithms import event_sums_numba
from retinakit.spikes.algorithms.response import Block

sparse_sums: Callable[..., None] = (event_sums_numba if compiled is None else compiled).sparse_sums


def add_int8(values: NDArray[Any], block: Block, first_lag: int, sums: Any, threads: int) -> bool:
    """Adds the exact sums of a block, for an 8-bit stimulus and spike counts.

    Args:
        values: (frame, pixel) int8 or uint8.
        block: the spike counts.
        first_lag: the smallest lag.
        sums: (cell, lag, pixel) int64, modified in place.
        threads: the number of threads.

    Returns:
        True.
    """
    starts, frames, counts = block.lists
    counts = counts.astype(np.int64)
    sparse_sums(values, starts, frames, counts, first_lag, sums, threads)
    return True


def add_float(values: NDArray[Any], block: Block, first_lag: int, sums: Any, threads: int) -> bool:
    """Adds the sums of a block in the precision of the stimulus, at least float32.

    Args:
        values: (frame, pixel).
        block: the responses.
        first_lag: the smallest lag.
        sums: (cell, lag, pixel) float64, modified in place.
        threads: the number of threads.

    Returns:
        True.
    """
    precision = np.float64 if values.dtype == np.float64 else np.float32
    starts, frames, weights = block.lists
    weights = weights.astype(precision)
    values = values.astype(precision, copy=False)
    sparse_sums(values, starts, frames, weights, first_lag, sums, threads)
    return True
