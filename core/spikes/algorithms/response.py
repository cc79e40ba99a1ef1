"""What counts of a response: the frames with a full history and a value."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.contracts.recording import full_history, mean_response

Lists = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]
"""Cell by cell: where its list starts (cell + 1), and its frames and their r."""


class Response:
    """r[t, c], zero where the history is not full or nothing was recorded.

    Where every repeat of an integer response is complete, r is the sum over repeats, so that it
    stays whole, and is `repeats` times the mean; otherwise it is the mean.

    Attributes:
        full: (frame,) whether the history is.
        values: (frame, cell) r where the history is full; NaN where nothing was recorded.
        lists: the r that are not zero.
        repeats: by which sums over r are to be divided.
        total: (cell,) Σ_t r[t, c] / repeats.
        counts: whether every r is a whole number and none is negative.
        terms: how many r are not zero.
    """

    def __init__(self, split: xr.Dataset, reach: int):
        self.full = full_history(split["segment"], reach)
        self.values, self.repeats = _over_repeats(split)
        self.frames, self.cells = self.values.shape
        self.lists: Lists = _lists(np.ascontiguousarray(self.values), self.full)
        starts, _, r = self.lists
        self.terms = len(r)
        total = [r[a:b].sum(dtype=np.float64) for a, b in pairwise(starts)]
        self.total: NDArray[np.float64] = np.array(total) / self.repeats
        self.counts = bool((r >= 0).all() and (r.dtype.kind in "biu" or (r == np.round(r)).all()))

    def between(self, begin: int, end: int, oldest: int) -> "Block":
        """The response of the frames begin to end, counted from `oldest`."""
        starts, frames, r = self.lists
        here = [slice(*a + np.searchsorted(frames[a:b], (begin, end))) for a, b in pairwise(starts)]
        lists = (
            np.cumsum([0, *(part.stop - part.start for part in here)]),
            np.concatenate([frames[part] for part in here]) - oldest,
            np.concatenate([r[part] for part in here]),
        )
        return Block(lists, self.values[begin:end], self.full[begin:end], begin - oldest)

    def events(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Frames in which the one cell responded, and how much."""
        _, frames, r = self.lists
        return frames, r.astype(float)


@dataclass(frozen=True)
class Block:
    """The response of some frames, of which the first has the number `first`.

    Attributes:
        lists: of these frames.
        values: (frame, cell).
        full: (frame,)
    """

    lists: Lists
    values: NDArray[Any]
    full: NDArray[np.bool_]
    first: int

    def matrix(self) -> NDArray[np.float32]:
        """(frame, cell) from frame 0 on; the frames before `first` are 0."""
        matrix = np.zeros((self.first + len(self.values), self.values.shape[1]), np.float32)
        known = self.full[:, None] & np.isfinite(self.values)
        matrix[self.first :] = np.where(known, self.values, 0)
        return matrix

    def empty(self) -> bool:
        return not len(self.lists[1])


def _over_repeats(split: xr.Dataset) -> tuple[NDArray[Any], int]:
    """(frame, cell), the sum over repeats and their number, or the mean and 1."""
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
