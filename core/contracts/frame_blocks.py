"""Blocks of frames, for computations on a stimulus that may be larger than memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

BYTES = 256 * 2**20
"""Size of a block of the stimulus in memory."""

LAYER = 4
"""A block may be larger than `BYTES` by up to this factor, to hold a whole chunk of a file."""


def blocks(stimulus: xr.DataArray, history: int = 0, itemsize: int = 0) -> Iterator[slice]:
    """Iterates over blocks of frames; each begins with the last `history` frames before it.

    Blocks end at the ends of chunks, of the file (the encoding `preferred_chunks` of xarray's
    backends) or of dask, so that except for its history no block reads a part of a chunk.

    Args:
        stimulus: (frame, ...).
        history: the number of frames by which a block overlaps the one before it.
        itemsize: bytes per value during the computation; at least those of the stimulus are used.

    Example:
        >>> large = np.broadcast_to(np.float32(0), (6, 8192, 8192))  # 256 MB for each frame
        >>> list(blocks(xr.DataArray(large, dims=("frame", "y", "x")), history=1))
        [slice(0, 4, None), slice(3, 6, None)]
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
    """Reads the first frames, for an estimate of the contrast.

    Args:
        stimulus: (frame, ...).
        most: the maximum number of frames; at most one block is read.

    Returns:
        (frame, ...), the values.

    Example:
        >>> first_frames(xr.DataArray(np.ones((5, 2, 2)), dims=("frame", "y", "x")), most=3).shape
        (3, 2, 2)
    """
    first = next(blocks(stimulus, itemsize=np.dtype(float).itemsize))
    values: NDArray[Any] = stimulus[: min(most, first.stop)].values
    return values


def _chunk_ends(stimulus: xr.DataArray, longest: int) -> NDArray[np.int64] | None:
    """The frames at which chunks end, with 0 first; None without chunks or if they are too long."""
    if stimulus.chunks is not None:
        return np.cumsum([0, *stimulus.chunks[0]])
    length = stimulus.encoding.get("preferred_chunks", {}).get(stimulus.dims[0], 0)
    if not 0 < length <= longest:
        return None
    return np.append(np.arange(0, len(stimulus), length), len(stimulus))


class Reader:
    """Reads consecutive blocks, and does not read the history again from a chunked file.

    Args:
        stimulus: (frame, ...).
        history: frames by which blocks overlap, as for `blocks`.

    Example:
        >>> stimulus = xr.DataArray(np.arange(10), dims="frame")
        >>> reader = Reader(stimulus, history=2)
        >>> reader[slice(0, 5)].tolist(), reader[slice(3, 8)].tolist()
        ([0, 1, 2, 3, 4], [3, 4, 5, 6, 7])
    """

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


def mean_frame(stimulus: xr.DataArray) -> NDArray[np.float64]:
    """The mean over frames ([channel,] y, x) of a stimulus that is read in blocks.

    Example:
        >>> mean_frame(xr.DataArray(np.eye(2)[:, None], dims=("frame", "y", "x"))).tolist()
        [[0.5, 0.5]]
    """
    reader = Reader(stimulus, 0)
    total = sum(reader[part].sum(0, dtype=float) for part in blocks(stimulus))
    mean: NDArray[np.float64] = total / len(stimulus)
    return mean
