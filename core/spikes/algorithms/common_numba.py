"""What the Numba twins of csrc/bits.cpp and csrc/sparse.cpp have in common."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray


def parallel(work: Callable[[int, int], Any], items: int, threads: int) -> list[Any]:
    """What work(begin, end) returns of consecutive ranges that cover the items, one a thread."""
    workers = min(threads, items)
    if workers <= 1:
        return [work(0, items)] if items else []
    bounds = [items * i // workers for i in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, bounds[:-1], bounds[1:]))


def require_history(frames: NDArray[np.int64], reach: int, available: int) -> None:
    """IndexError where a frame is not among the available ones with `reach` - 1 before it."""
    if len(frames) and (frames.min() < reach - 1 or frames.max() >= available):
        raise IndexError("a spike lacks its history in the stimulus")
