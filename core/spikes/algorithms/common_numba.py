"""Common functions of the Numba versions of csrc/bits.cpp and csrc/sparse.cpp."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray


def parallel(work: Callable[[int, int], Any], items: int, threads: int) -> list[Any]:
    """Calls work(begin, end) for consecutive ranges of the items, one per thread."""
    workers = min(threads, items)
    if workers <= 1:
        return [work(0, items)] if items else []
    bounds = [items * i // workers for i in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, bounds[:-1], bounds[1:]))


def require_history(frames: NDArray[np.int64], reach: int, available: int) -> None:
    """Raises IndexError unless each frame and the `reach` - 1 frames before it are available."""
    if len(frames) and (frames.min() < reach - 1 or frames.max() >= available):
        raise IndexError("a spike lacks its history in the stimulus")
