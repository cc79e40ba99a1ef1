"""Sums over the frames that have a response, and over no others."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinakit.kernels import compiled
from retinakit.spikes.algorithms import event_sums_numba
from retinakit.spikes.algorithms.response import Block

sparse_sums: Callable[..., None] = (event_sums_numba if compiled is None else compiled).sparse_sums


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
