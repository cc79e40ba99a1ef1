"""Blocks of frames, to go through a stimulus that may be larger than memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

BYTES = 256 * 2**20
"""How much of the stimulus is held as numbers at a time."""

LAYER = 4
"""Up to this many times as much is held where the chunks of a file are so long."""


def blocks(stimulus: xr.DataArray, history: int = 0, itemsize: int = 0) -> Iterator[slice]:
    """Blocks of frames, of which each begins with the last `history` frames of the one before.

    They end where chunks of the file (the encoding `preferred_chunks`, as xarray's backends set it)
    or of dask end, so that no block reads a part of a chunk, but for its history.

    Args:
        stimulus: (frame, ...).
        history: frames.
        itemsize: bytes of a value while it is worked on; those of the stimulus, if they are more.
    """
    frames = len(stimulus)
    frame_bytes = int(np.prod(stimulus.shape[1:])) * max(itemsize, stimulus.dtype.itemsize)
    most = max(2 * (history + 1), BYTES // frame_bytes)
    ends = _chunk_ends(stimulus, LAYER * most)
    end = 0
    while end < frames:
        begin, end = end, end + most
        if ends is not None:
            fits = np.searchsorted(ends, end, side="right") - 1
            end = int(ends[fits] if ends[fits] > begin else ends[fits + 1])
        end = min(end, frames)
        yield slice(max(0, begin - history), end)


def first_frames(stimulus: xr.DataArray, most: int = 10_000) -> NDArray[Any]:
    """The first frames, from which the contrast is estimated: at most a block of them.

    Example:
        >>> first_frames(xr.DataArray(np.ones((5, 2, 2)), dims=("frame", "y", "x")), most=3).shape
        (3, 2, 2)
    """
    first = next(blocks(stimulus, itemsize=np.dtype(float).itemsize))
    values: NDArray[Any] = stimulus[: min(most, first.stop)].values
    return values


def _chunk_ends(stimulus: xr.DataArray, longest: int) -> NDArray[np.int64] | None:
    """Where chunks end, from 0 on; None if there are none, or they are too long to be held."""
    if stimulus.chunks is not None:
        return np.cumsum([0, *stimulus.chunks[0]])
    length = stimulus.encoding.get("preferred_chunks", {}).get(stimulus.dims[0], 0)
    if not 0 < length <= longest:
        return None
    return np.append(np.arange(0, len(stimulus), length), len(stimulus))


class Reader:
    """Reads blocks in turn; the history of a block is not read from a chunked file again."""

    def __init__(self, stimulus: xr.DataArray, history: int):
        self.stimulus, self.history = stimulus, history
        self.keeps = history > 0 and "preferred_chunks" in stimulus.encoding
        self.end, self.kept = 0, stimulus[:0].values

    def __getitem__(self, part: slice) -> NDArray[Any]:
        shared = self.end - part.start
        if not 0 < shared <= len(self.kept):
            values = self.stimulus[part].values
        else:
            fresh = self.stimulus[self.end : part.stop].values
            values = np.concatenate([self.kept[-shared:], fresh])
        if self.keeps:
            self.end, self.kept = part.stop, values[-self.history :].copy()
        return values
