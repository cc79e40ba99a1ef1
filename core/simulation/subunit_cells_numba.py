"""The Numba version of csrc/simulation.cpp, with the same operations in the same order."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

BLOCK = 64
"""Number of frames that are processed together."""

_IDENTITY, _RECTIFY, _SOFTPLUS = 0, 1, 2
_NONE, _BINARY = 0, 1

_f = np.float32
_LOG2E, _SHIFT, _LN2, _LN2_REST = _f(1.44269504), _f(128.5), _f(0.693359375), _f(2.12194440e-4)
_LOWEST, _HIGHEST, _ZERO, _ONE, _TWO = _f(-87), _f(88), _f(0), _f(1), _f(2)
_E0, _E1, _E2 = _f(1.9875691500e-4), _f(1.3981999507e-3), _f(8.3334519073e-3)
_E3, _E4, _E5 = _f(4.1665795894e-2), _f(1.6666665459e-1), _f(5.0000001201e-1)
_L15, _L13, _L11, _L9 = _f(1) / _f(15), _f(1) / _f(13), _f(1) / _f(11), _f(1) / _f(9)
_L7, _L5, _L3 = _f(1) / _f(7), _f(1) / _f(5), _f(1) / _f(3)

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_UNIT = 1.0 / 2147483648.0

njit = numba.njit(cache=True, nogil=True)


@njit
def _exponential(x: Any) -> Any:
    x = x if x > _LOWEST else _LOWEST
    x = x if x < _HIGHEST else _HIGHEST
    n = np.int32(x * _LOG2E + _SHIFT) - np.int32(128)
    whole = _f(n)
    r = (x - whole * _LN2) + whole * _LN2_REST
    y = _E0
    y = y * r + _E1
    y = y * r + _E2
    y = y * r + _E3
    y = y * r + _E4
    y = y * r + _E5
    y = (y * (r * r) + r) + _ONE
    return y * _f(2.0 ** np.float64(n))


@njit
def _softplus(x: Any) -> Any:
    e = _exponential(-x if x > _ZERO else x)
    z = e / (_TWO + e)
    s = z * z
    y = _L15
    y = y * s + _L13
    y = y * s + _L11
    y = y * s + _L9
    y = y * s + _L7
    y = y * s + _L5
    y = y * s + _L3
    y = y * s + _ONE
    return (x if x > _ZERO else _ZERO) + (_TWO * z) * y


@njit
def _apply(nonlinearity: int, row: NDArray[np.float32]) -> None:
    if nonlinearity == _IDENTITY:
        return
    for t in range(len(row)):
        if nonlinearity == _RECTIFY:
            row[t] = row[t] if row[t] > _ZERO else _ZERO
        elif nonlinearity == _SOFTPLUS:
            row[t] = _softplus(row[t])
        else:
            row[t] = _exponential(row[t])


@njit
def _add(weight: np.float32, values: NDArray[Any], out: NDArray[np.float32]) -> None:
    for t in range(len(out)):
        out[t] += weight * values[t]


@njit
def _fill(
    stimulus: NDArray[Any], offset: int, frames: int, groups: NDArray[np.int32], tile: Any
) -> None:
    """Copies frames (frame, pixel) to a tile (pixel, frame) of float32."""
    for t in range(frames):
        frame = stimulus[offset + t]
        for g in range(len(groups)):
            for p in range(min(8, len(frame) - 8 * groups[g])):
                tile[8 * g + p, t] = _f(frame[8 * groups[g] + p])


@njit
def _philox(seed: Any, a: Any, b: Any, c: Any, words: NDArray[np.uint64]) -> None:
    d = np.uint64(0)
    k, m = seed & _LOW, seed >> _HALF
    for _ in range(10):
        x, y = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (y >> _HALF) ^ b ^ k, y & _LOW
        c, d = (x >> _HALF) ^ d ^ m, x & _LOW
        k, m = (k + np.uint64(0x9E3779B9)) & _LOW, (m + np.uint64(0xBB67AE85)) & _LOW
    words[0], words[1], words[2], words[3] = a, b, c, d


@njit
def _poisson(rate: Any, uniform: float) -> int:
    if uniform < 1.0 - np.float64(rate):
        return 0
    probability = np.float64(_exponential(-rate))
    below, count = probability, 0
    while uniform >= below and count < 255:
        count += 1
        probability = probability * np.float64(rate) / np.float64(count)
        below = below + probability
    return count


@njit
def _draw(kind: int, rate: Any, word: Any) -> int:
    uniform = np.float64(word >> np.uint64(1)) * _UNIT
    if kind == _BINARY:
        return int(uniform < np.float64(rate))
    return _poisson(rate, uniform) if rate > _ZERO else 0


@njit
def simulate(
    stimulus: NDArray[Any],
    first: int,
    start: int,
    stop: int,
    groups: NDArray[np.int32],
    spatial_start: NDArray[np.int64],
    spatial_index: NDArray[np.int32],
    spatial_weight: NDArray[np.float32],
    temporal: NDArray[np.float32],
    output_start: NDArray[np.int64],
    output_index: NDArray[np.int32],
    output_weight: NDArray[np.float32],
    threshold: NDArray[np.float32],
    gain: NDArray[np.float32],
    nonlinearity: int,
    output_nonlinearity: int,
    spikes: int,
    seed: int,
    rate: NDArray[np.float32],
    counts: NDArray[np.uint8],
) -> None:
    """Computes rates and counts of the frames `start` to `stop`; see csrc/simulation.h."""
    subunits, lags = temporal.shape
    cells, history = len(threshold), lags - 1
    tile = np.zeros((8 * len(groups), BLOCK), np.float32)
    drive = np.zeros((subunits, history + BLOCK), np.float32)
    active = np.zeros((subunits, BLOCK), np.float32)
    row = np.zeros(BLOCK, np.float32)
    words = np.zeros(4, np.uint64)
    frame = max(first, start - history)
    while frame < stop:
        past = frame < start
        now = min(BLOCK, (start if past else stop) - frame)
        _fill(stimulus, frame - first, now, groups, tile)
        for s in range(subunits):
            newest = drive[s, history:]
            newest[:] = _ZERO
            for k in range(spatial_start[s], spatial_start[s + 1]):
                _add(spatial_weight[k], tile[spatial_index[k]], newest)
            if not past:
                active[s] = _ZERO
                for lag in range(lags):
                    _add(temporal[s, lag], drive[s, history - lag :], active[s])
                _apply(nonlinearity, active[s])
            for t in range(history):
                drive[s, t] = drive[s, t + now]
        if not past:
            for c in range(cells):
                row[:] = _ZERO
                for k in range(output_start[c], output_start[c + 1]):
                    _add(output_weight[k], active[output_index[k]], row)
                for t in range(BLOCK):
                    row[t] -= threshold[c]
                _apply(output_nonlinearity, row)
                for t in range(now):
                    row[t] *= gain[c]
                    rate[frame + t, c] = row[t]
                if spikes == _NONE:
                    continue
                for repeat in range(len(counts)):
                    for t in range(now):
                        if t % 4 == 0:
                            counter = np.uint64((frame + t) // 4)
                            _philox(
                                np.uint64(seed), counter, np.uint64(c), np.uint64(repeat), words
                            )
                        counts[repeat, frame + t, c] = _draw(spikes, row[t], words[t % 4])
        frame += now
