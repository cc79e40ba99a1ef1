"""What counts of a response: the frames with a full history and a value."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.sparse import csr_array

from retinakit.recording import full_history, mean_response

DENSE = 0.25
"""From this part of frames with a response on, the response is kept as a matrix."""


class Response:
    """r[t, c], zero where the history is not full or nothing was recorded.

    Where every repeat of an integer response is complete, r is the sum over repeats, so that it
    stays whole, and is `repeats` times the mean; otherwise it is the mean.

    Attributes:
        repeats: by which sums over r are to be divided.
        total: (cell,) Σ_t r[t, c] / repeats.
        counts: whether every r is a whole number and none is negative.
        terms: how many r are not zero.
    """

    def __init__(self, split: xr.Dataset, reach: int):
        self.full = full_history(split["segment"], reach)
        values, self.repeats = _over_repeats(split)
        self.frames, self.cells = values.shape
        index = np.flatnonzero(values != 0)
        frame, cell = np.divmod(index, self.cells)
        some = values.reshape(-1)[index]
        counted = self.full[frame] & np.isfinite(some)
        if not counted.all():
            frame, cell, some = frame[counted], cell[counted], some[counted]
        self.terms = len(some)
        total = np.bincount(cell, some, minlength=self.cells)
        self.total: NDArray[np.float64] = total / self.repeats
        self.counts = bool((some >= 0).all() and (some == np.round(some)).all())
        self._sparse: csr_array | None = None
        self._dense: NDArray[Any] | None = None
        if self.terms <= DENSE * values.size:
            start = np.searchsorted(frame, np.arange(self.frames + 1))
            self._sparse = csr_array((some, cell, start), shape=values.shape)
        else:
            self._dense = np.where(self.full[:, None] & np.isfinite(values), values, 0)

    def between(self, begin: int, end: int, oldest: int) -> "Block":
        """The response of the frames begin to end, counted from `oldest`."""
        part = self._sparse if self._sparse is not None else self._dense
        assert part is not None
        return Block(part[begin:end], begin - oldest)

    def events(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Frames in which the one cell responded, and how much."""
        _, frames, r = self.between(0, self.frames, 0).lists()
        return frames, r.astype(float)


class Block:
    """The response r of some frames, of which the first has the number `first`."""

    def __init__(self, part: Any, first: int):
        self.part, self.first = part, first

    def lists(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
        """Cell by cell: where its list starts (cell + 1), and its frames and their r."""
        columns = (csr_array(self.part) if isinstance(self.part, np.ndarray) else self.part).tocsc()
        frames = columns.indices.astype(np.int64) + self.first
        return columns.indptr.astype(np.int64), frames, columns.data

    def matrix(self) -> NDArray[np.float32]:
        """(frame, cell) from frame 0 on; the frames before `first` are 0."""
        part = self.part if isinstance(self.part, np.ndarray) else self.part.toarray()
        matrix = np.zeros((self.first + part.shape[0], part.shape[1]), np.float32)
        matrix[self.first :] = part
        return matrix

    def empty(self) -> bool:
        return not np.any(self.part if isinstance(self.part, np.ndarray) else self.part.data)


def _over_repeats(split: xr.Dataset) -> tuple[NDArray[Any], int]:
    """(frame, cell), the sum over repeats and their number, or the mean and 1."""
    response = split["response"]
    if "repeat" not in response.dims:
        return np.asarray(response), 1
    whole = np.asarray(response.sum("repeat", skipna=False))
    if np.isfinite(whole).all():
        return whole, response.sizes["repeat"]
    return np.asarray(mean_response(split)), 1
