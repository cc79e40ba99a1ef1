"""The Gram matrix of the spike-triggered ensemble of a two-valued stimulus, by popcounts."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinakit.kernels import compiled
from retinakit.spikes.algorithms import gram_numba

_FEW = 2048  # number of spikes that costs as much as one pass over the matrix

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
    """Adds, for all pairs of features, the number of spikes for which both features are high.

    Args:
        values: (frame, check).
        low, high: the two values of the stimulus.
        frames, counts: (event,), the frames with spikes, and the spike counts.
        lags: (lag,), consecutive.
        sums: (feature, feature), modified in place on and above the diagonal; the features are lag
            and check, flattened.
        threads: the number of threads.

    Returns:
        False, without adding anything, if a value is neither low nor high.
    """
    twice = frames[:0]
    # A count is a sum of powers of two. A power that occurs in few frames is replaced by two of
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
