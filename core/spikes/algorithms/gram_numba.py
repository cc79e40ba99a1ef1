"""The Numba version of the Gram matrix by popcounts."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

_SPIKES = 16384  # number of spikes that are processed together
_NEAR_ROWS = 8  # number of rows that fit into the L1 cache


def bit_gram(
    values: NDArray[Any],
    low: Any,
    high: Any,
    frames: NDArray[np.int64],
    first_lag: int,
    lags: int,
    scale: float,
    sums: NDArray[np.float64],
    threads: int,
) -> bool:
    """Adds scale · (number of frames for which both features are high) to the upper triangle.

    See `retinakit.spikes.algorithms.gram.add_gram` for the arguments and the result.
    """
    low, high = values.dtype.type(low), values.dtype.type(high)
    if not ((values == low) | (values == high)).all():
        return False
    rows = np.empty((len(sums), -(-min(len(frames), _SPIKES) // 64)), np.uint64)
    for begin in range(0, len(frames), _SPIKES):
        some = frames[begin : begin + _SPIKES]
        here = rows[:, : -(-len(some) // 64)]
        _fill(values, high, some, first_lag, lags, here)
        _add_common(here, scale, sums)
    return True


@numba.njit(cache=True, nogil=True)
def _fill(
    values: NDArray[Any],
    high: Any,
    frames: NDArray[np.int64],
    first_lag: int,
    lags: int,
    rows: NDArray[np.uint64],
) -> None:
    """Writes a row of bits for each feature, with one bit for each spike."""
    checks = values.shape[1]
    column = np.empty(len(rows), np.uint64)
    for word in range(rows.shape[1]):
        column[:] = 0
        here = frames[64 * word : 64 * word + 64]
        for i in range(len(here)):
            for lag in range(lags):
                shown = values[here[i] - first_lag - lag]
                part = column[lag * checks : (lag + 1) * checks]
                for check in range(checks):
                    part[check] |= np.uint64(shown[check] == high) << np.uint64(i)
        rows[:, word] = column


@numba.njit(cache=True, nogil=True)
def _add_common(rows: NDArray[np.uint64], scale: float, sums: NDArray[np.float64]) -> None:
    """Adds scale · (number of bits that are set in both rows)."""
    for near in range(0, len(rows), _NEAR_ROWS):
        end = min(near + _NEAR_ROWS, len(rows))
        for i in range(end):
            for j in range(max(near, i), end):
                common = np.uint64(0)
                for word in range(rows.shape[1]):
                    common += _popcount(rows[i, word] & rows[j, word])
                sums[i, j] += scale * common


@numba.njit(inline="always")
def _popcount(word: Any) -> Any:
    """The number of set bits of a 64-bit word."""
    word -= word >> np.uint64(1) & np.uint64(0x5555555555555555)
    pairs = np.uint64(0x3333333333333333)
    word = (word & pairs) + (word >> np.uint64(2) & pairs)
    word = word + (word >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return word * np.uint64(0x0101010101010101) >> np.uint64(56)
