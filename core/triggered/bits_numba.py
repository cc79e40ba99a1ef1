"""Counting bits without the compiled kernels."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

WORDS = 8
"""Words of 64 checks in a tile: a cache line of each frame."""
_FRAMES = 4096  # a block of one tile stays in the L2 cache

Words = NDArray[np.uint64]


def bit_sums(
    values: NDArray[Any],
    low: Any,
    high: Any,
    starts: NDArray[np.int64],
    frames: NDArray[np.int64],
    counts: NDArray[np.int64],
    first_lag: int,
    sums: Any,
    threads: int,
) -> bool:
    """Adds Σ count · stimulus; False, and nothing is added, if a value is neither low nor high."""
    bits = _empty((-(-values.shape[1] // (64 * WORDS)), len(values), WORDS))
    if not _pack_bits(values, low, high, bits, threads):
        return False
    kind = int if sums.dtype == np.int64 else float
    scale, offset = kind(high) - kind(low), kind(low)
    # A count is a sum of powers of two: those of its binary digits.
    for power in range(int(counts.max(initial=0)).bit_length()):
        chosen = (counts >> power & 1).astype(bool)
        begins, part = np.r_[0, np.cumsum(chosen)][starts], 2**power
        _bit_sums(
            bits, begins, frames[chosen], first_lag, scale * part, offset * part, sums, threads
        )
    return True


def _empty(shape: tuple[int, ...]) -> Words:
    """An array that begins on a cache line."""
    size = int(np.prod(shape))
    memory = np.empty(size + WORDS, np.uint64)
    first = -memory.ctypes.data % 64 // 8
    return memory[first : first + size].reshape(shape)


@numba.njit(cache=True, nogil=True)
def _pack_bits(values: NDArray[Any], low: Any, high: Any, bits: Words, threads: int) -> bool:
    checks = values.shape[1]
    flags = np.empty(64, np.uint8)
    eights = flags.view(np.uint64)
    for frame in range(values.shape[0]):
        for word in range(WORDS * bits.shape[0]):
            first = 64 * word
            if first + 64 > checks:
                flags[:] = 0
            wrong = 0
            for i in range(min(64, checks - first)):
                value = values[frame, first + i]
                flags[i] = value == high
                wrong += (value != high) & (value != low)
            if wrong:
                return False
            packed = np.uint64(0)
            for i in range(8):  # the product has the lowest bits of 8 bytes in its top byte
                byte = eights[i] * np.uint64(0x0102040810204080) >> np.uint64(56)
                packed |= byte << np.uint64(8 * i)
            bits[word // WORDS, frame, word % WORDS] = packed
    return True


@numba.njit(inline="always")
def _add(low: Any, a: Any, b: Any) -> Any:
    """low + a + b = 2 high + low, bit by bit."""
    either = low ^ a
    return (low & a) | (either & b), either ^ b


@numba.njit(inline="always")
def _ripple(planes: Words, level: int, bits: Any) -> None:
    """Adds bits · 2^level to numbers of which plane k holds bit k."""
    while bits != 0:
        carry = planes[level] & bits
        planes[level] ^= bits
        bits = carry
        level += 1


@numba.njit(cache=True, nogil=True)
def _count(words: Words, lines: Words, planes: Words) -> None:
    """Adds some words to bit-sliced numbers, 16 at a time."""
    ones = twos = fours = eights = np.uint64(0)
    whole = len(lines) // 16 * 16
    for i in range(0, whole, 16):
        group = lines[i : i + 16]
        two_a, ones = _add(ones, words[group[0]], words[group[1]])
        two_b, ones = _add(ones, words[group[2]], words[group[3]])
        four_a, twos = _add(twos, two_a, two_b)
        two_a, ones = _add(ones, words[group[4]], words[group[5]])
        two_b, ones = _add(ones, words[group[6]], words[group[7]])
        four_b, twos = _add(twos, two_a, two_b)
        eight_a, fours = _add(fours, four_a, four_b)
        two_a, ones = _add(ones, words[group[8]], words[group[9]])
        two_b, ones = _add(ones, words[group[10]], words[group[11]])
        four_a, twos = _add(twos, two_a, two_b)
        two_a, ones = _add(ones, words[group[12]], words[group[13]])
        two_b, ones = _add(ones, words[group[14]], words[group[15]])
        four_b, twos = _add(twos, two_a, two_b)
        eight_b, fours = _add(fours, four_a, four_b)
        sixteen, eights = _add(eights, eight_a, eight_b)
        _ripple(planes, 4, sixteen)
    for i in range(whole, len(lines)):
        _ripple(planes, 0, words[lines[i]])
    _ripple(planes, 0, ones)
    _ripple(planes, 1, twos)
    _ripple(planes, 2, fours)
    _ripple(planes, 3, eights)


@numba.njit(cache=True, nogil=True)
def _bit_sums(
    bits: Words,
    starts: NDArray[np.int64],
    frames: NDArray[np.int64],
    first_lag: int,
    scale: Any,
    offset: Any,
    sums: Any,
    threads: int,
) -> None:
    cells, lags, checks = sums.shape
    planes = np.empty((cells, lags, WORDS, 32), np.uint64)
    lines = np.empty(_FRAMES, np.uint64)
    value = np.empty(64, np.int64)
    for tile in range(bits.shape[0]):
        planes[:] = 0
        flat = bits[tile].reshape(-1)
        words = min(WORDS, -(-checks // 64) - WORDS * tile)
        at = starts[:-1].copy()
        for begin in range(0, bits.shape[1], _FRAMES):
            for cell in range(cells):
                end = at[cell]
                while end < starts[cell + 1] and frames[end] < begin + _FRAMES:
                    end += 1
                for lag in range(lags):
                    for i in range(at[cell], end):
                        lines[i - at[cell]] = WORDS * (frames[i] - first_lag - lag)
                    here = lines[: end - at[cell]]
                    for word in range(words):
                        _count(flat[word:], here, planes[cell, lag, word])
                at[cell] = end
        for cell in range(cells):
            number = starts[cell + 1] - starts[cell]
            for lag in range(lags):
                for word in range(words if number else 0):
                    value[:] = 0
                    for k in range(32):
                        plane = planes[cell, lag, word, k]
                        if plane:
                            for i in range(64):
                                value[i] += np.int64(plane >> np.uint64(i) & np.uint64(1)) << k
                    first = 64 * (WORDS * tile + word)
                    for i in range(min(64, checks - first)):
                        sums[cell, lag, first + i] += scale * value[i] + offset * number
