"""Spike-triggered sums of two-valued stimuli, stored as one bit per check, by popcounts."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinakit.kernels import compiled
from retinakit.spikes.algorithms import bit_sums_numba
from retinakit.spikes.algorithms.response import Block

bit_sums: Callable[..., bool] = (bit_sums_numba if compiled is None else compiled).bit_sums


def add_bits(values: NDArray[Any], block: Block, first_lag: int, sums: Any, threads: int) -> bool:
    """Adds the sums of a block by positional popcount.

    Args:
        values: (frame, check).
        block: the spike counts.
        first_lag: the smallest lag.
        sums: (cell, lag, check), int64 for integer stimuli, otherwise float64; modified in place.
        threads: the number of threads.

    Returns:
        False, without adding anything, if the stimulus has more than two values.
    """
    levels = two_levels(values)
    if levels is None:
        return False
    starts, frames, counts = block.lists
    counts = counts.astype(np.int64, copy=False)
    return bit_sums(values, *levels, starts, frames, counts, first_lag, sums, threads)


def two_levels(values: NDArray[Any]) -> tuple[Any, Any] | None:
    """The lower and the higher value of a two-valued stimulus, determined from its first frames.

    Both are equal for a constant stimulus. The result is None if the first frames have more than
    two values.
    """
    few = values[:16]
    if len(few) and few.min() == few.max():
        few = values
    if not few.size:
        return None
    low, high = few.min(), few.max()
    return (low.item(), high.item()) if ((few == low) | (few == high)).all() else None
