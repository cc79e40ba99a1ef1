"""Stimuli whose frames are drawn when they are used, from a description that is small."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import DTypeLike, NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from retinakit.contracts.recording import STIMULUS_DIMS

Draw = Callable[[NDArray[np.int64]], NDArray[Any]]


def drawn_frames(draw: Draw, shape: tuple[int, ...], dtype: DTypeLike) -> xr.Variable:
    """A lazy stimulus: indexing draws the indexed frames, and nothing is held in memory.

    A dataset that returns such a stimulus should be `volatile`, so that it is not stored either.

    Args:
        draw: a function from the numbers of frames (n,) to these frames (n, [channel,] y, x). For
            parallel runs it must be an object that can be pickled.
        shape: (frame, [channel,] y, x).
        dtype: of the frames.

    Returns:
        The stimulus, for `retinakit.contracts.make_split`.

    Example:
        >>> def draw(frames):
        ...     return np.broadcast_to(frames[:, None, None], (len(frames), 4, 6)).astype(np.int16)
        >>> stimulus = drawn_frames(draw, (1000, 4, 6), np.int16)
        >>> stimulus[990:993, 0, :2].values.tolist()
        [[990, 990], [991, 991], [992, 992]]
    """
    dims = STIMULUS_DIMS[len(shape) - 3]
    return xr.Variable(dims, indexing.LazilyIndexedArray(_DrawnFrames(draw, shape, dtype)))


class _DrawnFrames(BackendArray):
    def __init__(self, draw: Draw, shape: tuple[int, ...], dtype: DTypeLike):
        self.draw, self.shape, self.dtype = draw, shape, np.dtype(dtype)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        frames = np.arange(self.shape[0])[key[0]]
        values = self.draw(np.atleast_1d(frames))
        for axis in range(len(key) - 1, 0, -1):  # from the last, as an integer drops its axis
            values = values[(slice(None),) * axis + (key[axis],)]
        return values if frames.ndim else values[0]
