"""Two-valued stimuli as one bit a check, counted 64 at a time."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinakit.kernels import compiled
from retinakit.spikes.algorithms import bit_sums_numba
from retinakit.spikes.algorithms.response import Block

bit_sums: Callable[..., bool] = (bit_sums_numba if compiled is None else compiled).bit_sums


def add_bits(values: NDArray[Any], block: Block, first_lag: int, sums: Any, threads: int) -> bool:
    """Adds a block's sums by positional popcount; False if the stimulus has a third value.

    Args:
        values: (frame, check).
        block: counts.
        sums: (cell, lag, check), int64 for integer stimuli, or float64.
    """
    levels = two_levels(values)
    if levels is None:
        return False
    starts, frames, counts = block.lists
    counts = counts.astype(np.int64, copy=False)
    return bit_sums(values, *levels, starts, frames, counts, first_lag, sums, threads)


def two_levels(values: NDArray[Any]) -> tuple[Any, Any] | None:
    """The lower and the higher value of a stimulus that has two, going by its first frames.

    A stimulus of a single value gives it twice. A bool stimulus gives 0 and 1, a ±1 stimulus -1
    and 1.
    """
    few = values[:16]
    if len(few) and few.min() == few.max():
        few = values
    if not few.size:
        return None
    low, high = few.min(), few.max()
    return (low.item(), high.item()) if ((few == low) | (few == high)).all() else None
