"""The Numba version of csrc/bits.cpp, a positional popcount with the same results."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retinakit.spikes.algorithms.common_numba import parallel, require_history
from retinakit.spikes.algorithms.vectors_numba import WORDS, add, load, store

_FRAMES = 4096  # frames in a block; one tile of a block fits into the L2 cache
_RUNS = 16  # runs of words that are added together

Words = NDArray[np.uint64]
njit = numba.njit(cache=True, nogil=True)


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
    """Adds Σ count · stimulus, or nothing and returns False if a value is neither low nor high.

    Args:
        values: (frame, check).
        starts: (cell + 1,), the start of each cell's part of `frames`, in which they increase.
        counts: of the frames.
        sums: (cell, lag, check), int64 or float64.

    Raises:
        IndexError: if a frame lacks its history.
    """
    require_history(frames, first_lag + sums.shape[1], len(values))
    bits = _pack(values, low, high, threads)
    if bits is None:
        return False
    if counts.sum() <= 2 * len(counts):  # adding a frame once per spike is less work
        lists = [counts]
    else:  # add a frame once for each bit of its count
        lists = [counts >> power & 1 for power in range(int(counts.max()).bit_length())]
    kind = int if sums.dtype == np.int64 else float
    for power, times in enumerate(lists):
        begins = np.r_[0, np.cumsum(times)][starts]
        scale, offset = kind(high - low) * 2**power, kind(low) * 2**power
        _add(bits, begins, np.repeat(frames, times), first_lag, scale, offset, sums, threads)
    return True


def _pack(values: NDArray[Any], low: Any, high: Any, threads: int) -> Words | None:
    """Bits (tile, frame, word) that are set for high values; None if there is a third value."""
    shape = (-(-values.shape[1] // (64 * WORDS)), len(values), WORDS)
    memory = np.empty(int(np.prod(shape)) + WORDS, np.uint64)
    first = -memory.ctypes.data % 64 // 8  # the start of a cache line
    bits = memory[first : first + len(memory) - WORDS].reshape(shape)
    low, high = values.dtype.type(low), values.dtype.type(high)

    def pack(begin: int, end: int) -> bool:
        return _pack_frames(values, low, high, bits, begin, end)

    return bits if all(parallel(pack, len(values), threads)) else None


def _add(
    bits: Words,
    starts: NDArray[np.int64],
    frames: NDArray[np.int64],
    first_lag: int,
    scale: Any,
    offset: Any,
    sums: Any,
    threads: int,
) -> None:
    """Adds scale · (number of set bits in a cell's frames) + offset · (number of its frames)."""
    groups = -(-np.diff(starts).max(initial=0) // _RUNS)
    planes = 4 + 2 * int(groups).bit_length()

    def add_cells(begin: int, end: int) -> None:
        _add_cells(bits, starts, frames, first_lag, scale, offset, planes, sums, begin, end)

    parallel(add_cells, bits.shape[0] * sums.shape[0], threads)


@njit
def _pack_frames(
    values: NDArray[Any], low: Any, high: Any, bits: Words, begin: int, end: int
) -> bool:
    flags = np.zeros(64, np.uint8)
    eights = flags.view(np.uint64)
    wrong = False
    for frame in range(begin, end):
        for word in range(WORDS * bits.shape[0]):
            part = values[frame, 64 * word : 64 * word + 64]
            if len(part) == 64:
                for i in range(64):
                    flags[i] = part[i] == high
                    wrong |= (part[i] != high) & (part[i] != low)
            else:
                flags[:] = 0
                for i in range(len(part)):
                    flags[i] = part[i] == high
                    wrong |= (part[i] != high) & (part[i] != low)
            packed = np.uint64(0)
            for i in range(8):  # the top byte of the product has the lowest bits of 8 bytes
                byte = eights[i] * np.uint64(0x0102040810204080) >> np.uint64(56)
                packed |= byte << np.uint64(8 * i)
            bits[word // WORDS, frame, word % WORDS] = packed
        if wrong:
            return False
    return True


@njit
def _add_cells(
    bits: Words,
    starts: NDArray[np.int64],
    frames: NDArray[np.int64],
    first_lag: int,
    scale: Any,
    offset: Any,
    number_of_planes: int,
    sums: Any,
    begin: int,
    end: int,
) -> None:
    """Adds the sums of a range of pairs of a tile and a cell, numbered tile by tile."""
    cells, lags = sums.shape[:2]
    size, history = WORDS * lags, first_lag + lags - 1
    planes = np.empty((cells, number_of_planes, size), np.uint64)  # the last lag comes first
    rest = np.empty(_RUNS * size, np.uint64)
    runs = np.empty(_RUNS, np.int64)
    for tile in range(begin // cells, -(-end // cells)):
        some = range(max(begin - cells * tile, 0), min(end - cells * tile, cells))
        words = bits[tile].reshape(-1)
        for cell in some:
            planes[cell] = 0
        at = starts[:-1].copy()
        for block in range(_FRAMES, len(bits[tile]) + _FRAMES, _FRAMES):
            for cell in some:
                while at[cell] + _RUNS <= starts[cell + 1] and frames[at[cell] + _RUNS - 1] < block:
                    for i in range(_RUNS):
                        runs[i] = WORDS * (frames[at[cell] + i] - history)
                    _add_runs(words, runs, (at[cell] - starts[cell]) // _RUNS, planes[cell])
                    at[cell] += _RUNS
        for cell in some:
            number, left = starts[cell + 1] - starts[cell], starts[cell + 1] - at[cell]
            if left:
                rest[:] = 0
                for i in range(_RUNS):
                    runs[i] = size * i
                for i in range(left):
                    run = WORDS * (frames[at[cell] + i] - history)
                    for w in range(0, size, WORDS):
                        store(rest, size * i + w, load(words, run + w))
                _add_runs(rest, runs, number // _RUNS, planes[cell])
            if number:
                here = sums[cell, :, 64 * WORDS * tile : 64 * WORDS * (tile + 1)]
                _add_values(planes[cell], -(-number // _RUNS), scale, offset * number, here)


@njit
def _add_runs(words: Words, at: NDArray[np.int64], groups: int, planes: Words) -> None:
    """Adds the bits of 16 runs of words to bit-sliced numbers (Harley & Seal).

    The numbers are sums over planes (plane, word): one plane for each of the bits 0 to 3, and two
    for each higher bit. The second of these is valid only if that bit is set in `groups`, the
    number of groups of 16 runs added so far.
    """
    flat, size = planes.reshape(-1), planes.shape[1]
    for w in range(0, size, WORDS):
        ones, twos = load(flat, w), load(flat, w + size)
        fours, eights = load(flat, w + 2 * size), load(flat, w + 3 * size)
        two_a, ones = add(ones, load(words, at[0] + w), load(words, at[1] + w))
        two_b, ones = add(ones, load(words, at[2] + w), load(words, at[3] + w))
        four_a, twos = add(twos, two_a, two_b)
        two_a, ones = add(ones, load(words, at[4] + w), load(words, at[5] + w))
        two_b, ones = add(ones, load(words, at[6] + w), load(words, at[7] + w))
        four_b, twos = add(twos, two_a, two_b)
        eight_a, fours = add(fours, four_a, four_b)
        two_a, ones = add(ones, load(words, at[8] + w), load(words, at[9] + w))
        two_b, ones = add(ones, load(words, at[10] + w), load(words, at[11] + w))
        four_a, twos = add(twos, two_a, two_b)
        two_a, ones = add(ones, load(words, at[12] + w), load(words, at[13] + w))
        two_b, ones = add(ones, load(words, at[14] + w), load(words, at[15] + w))
        four_b, twos = add(twos, two_a, two_b)
        eight_b, fours = add(fours, four_a, four_b)
        carry, eights = add(eights, eight_a, eight_b)
        store(flat, w, ones)
        store(flat, w + size, twos)
        store(flat, w + 2 * size, fours)
        store(flat, w + 3 * size, eights)
        # Two carries of 16 make one of 32, and so on; on average, one adder per group.
        x, pairs = w + 4 * size, groups
        while pairs & 1:
            carry, low = add(load(flat, x), load(flat, x + size), carry)
            store(flat, x, low)
            x, pairs = x + 2 * size, pairs >> 1
        store(flat, x + size, carry)


@njit
def _add_values(planes: Words, groups: int, scale: Any, offset: Any, sums: Any) -> None:
    """Adds scale · number + offset to sums (lag, check)."""
    lags, checks = sums.shape
    value = np.empty(64 * WORDS, np.uint64)
    for lag in range(lags):
        value[:] = 0
        for k in range(len(planes)):
            bit = k if k < 4 else k // 2 + 2
            if k > 4 and k % 2 and not groups >> (bit - 4) & 1:
                continue
            for word in range(WORDS):
                plane = planes[k, WORDS * (lags - 1 - lag) + word]
                part = value[64 * word : 64 * word + 64]
                for i in range(64):
                    part[i] += (plane >> np.uint64(i) & np.uint64(1)) << np.uint64(bit)
        for check in range(checks):
            sums[lag, check] += scale * np.int64(value[check]) + offset
