"""The responses that enter spike-triggered sums: those with a full history and a value."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.contracts.recording import full_history, mean_response

Lists = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]
"""Start of each cell's list (cell + 1,), and the frames and responses of all lists (term,)."""

MOST_COUNTED = 2**31 - 1
"""The kernels count the spikes of a cell in 32 bits."""


class Response:
    """The responses r[t, c], 0 in frames without a full history or a recorded response.

    If all repeats are complete, r is the sum over repeats, so that spike counts remain integers;
    otherwise it is the mean over repeats.

    Args:
        split: of a recording.
        reach: the length of the history in frames.

    Attributes:
        full: (frame,) whether the history is full.
        values: (frame, cell) r; NaN where it was not recorded.
        lists: the nonzero r in frames with a full history.
        repeats: the divisor that turns sums of r into means over repeats.
        total: (cell,) Σ_t |r[t, c]| / repeats.
        counts: whether all r are nonnegative integers, and their sums small enough to be counted.
        terms: the number of nonzero r.
    """

    def __init__(self, split: xr.Dataset, reach: int):
        self.full = full_history(split["segment"], reach)
        self.values, self.repeats = _over_repeats(split)
        self.frames, self.cells = self.values.shape
        self.lists: Lists = _lists(np.ascontiguousarray(self.values), self.full)
        starts, _, r = self.lists
        self.terms = len(r)
        total = [np.abs(r[a:b]).sum(dtype=np.float64) for a, b in pairwise(starts)]
        self.total: NDArray[np.float64] = np.array(total) / self.repeats
        whole = r.dtype.kind in "biu" or (r == np.round(r)).all()
        few = max(total, default=0) < MOST_COUNTED
        self.counts = bool(whole and few and (r >= 0).all())

    def between(self, begin: int, end: int, oldest: int) -> "Block":
        """The responses in the frames begin to end, with frame numbers relative to `oldest`."""
        starts, frames, r = self.lists
        here = [slice(*a + np.searchsorted(frames[a:b], (begin, end))) for a, b in pairwise(starts)]
        lists = (
            np.cumsum([0, *(part.stop - part.start for part in here)]),
            np.concatenate([frames[part] for part in here]) - oldest,
            np.concatenate([r[part] for part in here]),
        )
        return Block(lists, self.values[begin:end], self.full[begin:end], begin - oldest)

    def events(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The frames with nonzero r, and r; for the response of a single cell."""
        _, frames, r = self.lists
        return frames, r.astype(float)


@dataclass(frozen=True)
class Block:
    """The responses in a block of frames.

    Attributes:
        lists, values, full: as in `Response`, for these frames.
        first: the number of the first frame, which is the length of the history before it.
    """

    lists: Lists
    values: NDArray[Any]
    full: NDArray[np.bool_]
    first: int

    def matrix(self) -> NDArray[np.float32]:
        """The responses (frame, cell) from frame 0; 0 in the frames before `first`."""
        matrix = np.zeros((self.first + len(self.values), self.values.shape[1]), np.float32)
        known = self.full[:, None] & np.isfinite(self.values)
        matrix[self.first :] = np.where(known, self.values, 0)
        return matrix

    def empty(self) -> bool:
        return not len(self.lists[1])


def _over_repeats(split: xr.Dataset) -> tuple[NDArray[Any], int]:
    """The sum over repeats (frame, cell) and their number, or the mean and 1; see `Response`."""
    response = split["response"]
    if "repeat" not in response.dims:
        return np.asarray(response), 1
    whole = np.asarray(response.sum("repeat", skipna=False))
    if np.isfinite(whole).all():
        return whole, response.sizes["repeat"]
    return np.asarray(mean_response(split)), 1


@numba.njit(cache=True)
def _lists(values: NDArray[Any], full: NDArray[np.bool_]) -> Any:
    cells = values.shape[1]
    starts = np.zeros(cells + 1, np.int64)
    number = starts[1:]
    for frame in range(len(values)):
        if full[frame]:
            for cell in range(cells):
                number[cell] += (values[frame, cell] != 0) & np.isfinite(values[frame, cell])
    starts[1:] = np.cumsum(number)
    at = starts[:-1].copy()
    frames, r = np.empty(starts[-1], np.int64), np.empty(starts[-1], values.dtype)
    for frame in range(len(values)):
        if full[frame]:
            for cell in range(cells):
                value = values[frame, cell]
                if value != 0 and np.isfinite(value):
                    frames[at[cell]], r[at[cell]] = frame, value
                    at[cell] += 1
    return starts, frames, r
