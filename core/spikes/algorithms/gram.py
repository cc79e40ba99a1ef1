"""The Gram matrix of a two-valued stimulus before spikes, by popcount."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinakit.kernels import compiled
from retinakit.spikes.algorithms import gram_numba

_FEW = 2048  # so many spikes cost as much as one pass over the matrix

bit_gram: Callable[..., bool] = (gram_numba if compiled is None else compiled).bit_gram


def add_gram(
    values: NDArray[Any],
    low: Any,
    high: Any,
    frames: NDArray[np.int64],
    counts: NDArray[np.int64],
    lags: NDArray[np.int64],
    sums: NDArray[np.float64],
    threads: int,
) -> bool:
    """Adds, for features i and j, the spikes before which both are high.

    Args:
        values: (frame, check).
        frames, counts: where there were spikes, and how many.
        lags: consecutive.
        sums: (feature, feature), features being lag by check; on and above the diagonal.

    Returns:
        False, and nothing is added, if a value is neither low nor high.
    """
    twice = frames[:0]
    # A count is a sum of powers of two. A power that occurs in few frames is split into two of
    # the next lower power.
    for power in reversed(range(int(counts.max(initial=0)).bit_length())):
        chosen = np.concatenate([frames[(counts >> power & 1).astype(bool)], twice])
        few = power > 0 and len(chosen) < _FEW
        twice = np.repeat(chosen, 2) if few else frames[:0]
        if not few and not bit_gram(
            values, low, high, chosen, int(lags[0]), len(lags), 2.0**power, sums, threads
        ):
            return False
    return True
