"""The stimulus, filtered by each cell's filter in space and time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.regression.projection import Region

BLOCK = 4096
"""Number of frames that are filtered together."""


def filter_stimulus(
    stimulus: xr.DataArray, kernel: NDArray[Any], pieces: Sequence[slice]
) -> NDArray[np.float64]:
    """Filters a stimulus, Σ_lag Σ_pixel kernel[cell, lag, pixel] · stimulus[t - lag, pixel].

    The stimulus before the start of a segment is taken as 0. It is read in blocks, so it may be
    larger than memory. Only the rectangle of a kernel that is not 0 is used.

    Args:
        stimulus: (frame, [channel,] y, x).
        kernel: (cell, lag, [channel,] y, x).
        pieces: the segments, as returned by `retinakit.contracts.segments`.

    Returns:
        (frame, cell).

    Example:
        >>> flash = xr.DataArray(np.array([1.0, 0, 0])[:, None, None], dims=("frame", "y", "x"))
        >>> kernel = np.array([0.5, 2.0])[None, :, None, None]
        >>> filter_stimulus(flash, kernel, [slice(0, 3)]).ravel().tolist()
        [0.5, 2.0, 0.0]
    """
    cells, lags = kernel.shape[:2]
    drive = np.zeros((stimulus.sizes["frame"], cells))
    boxes = [_box(one) for one in kernel]
    inside = [
        one[..., *box].reshape(lags, -1).astype(np.float32)
        for one, box in zip(kernel, boxes, strict=True)
    ]
    for piece in pieces:
        for first in range(piece.start, piece.stop, BLOCK):
            last, begin = min(first + BLOCK, piece.stop), max(piece.start, first - lags + 1)
            block = stimulus[begin:last].values
            for cell, (box, weights) in enumerate(zip(boxes, inside, strict=True)):
                seen = block[..., *box].reshape(len(block), -1).astype(np.float32)
                by_lag = seen @ weights.T
                for lag in range(min(lags, last - begin)):
                    start = max(first, begin + lag)
                    drive[start:last, cell] += by_lag[start - lag - begin : last - lag - begin, lag]
    return drive


def spread_over_history(
    weight: NDArray[Any], kernel: NDArray[Any], pieces: Sequence[slice]
) -> NDArray[np.float32]:
    """The adjoint of `filter_stimulus`: the gradient of weighted drives by the stimulus.

        gradient[t, pixel] = Σ_cell Σ_lag weight[t + lag, cell] · kernel[cell, lag, pixel]

    Args:
        weight: (frame, cell), of the drives.
        kernel: (cell, lag, [channel,] y, x).
        pieces: the segments, as returned by `retinakit.contracts.segments`.

    Returns:
        (frame, [channel,] y, x), of the sum over frames and cells of weight · drive.

    Example:
        >>> weight = np.array([0.0, 0.0, 3.0])[:, None]
        >>> kernel = np.array([0.5, 2.0])[None, :, None, None]
        >>> spread_over_history(weight, kernel, [slice(0, 3)]).ravel().tolist()
        [0.0, 6.0, 1.5]
    """
    gradient = np.zeros((len(weight), *kernel.shape[2:]), np.float32)
    lags = kernel.shape[1]
    for cell in np.flatnonzero(weight.any(0)):
        box = _box(kernel[cell])
        inside = kernel[cell][..., *box]
        for piece in pieces:
            of_piece = gradient[piece][..., *box]  # a view
            weights = weight[piece, cell]
            for lag in range(min(lags, len(weights))):
                weighted = weights[lag:]
                used = np.flatnonzero(weighted)
                shape = (-1, *[1] * (inside.ndim - 1))
                of_piece[used] += (weighted[used].reshape(shape) * inside[lag]).astype(np.float32)
    return gradient


def _box(kernel: NDArray[Any]) -> Region:
    """The rows and columns of the smallest rectangle outside of which a kernel is 0."""
    used = (kernel != 0).any(tuple(range(kernel.ndim - 2)))
    return _extent(used.any(1)), _extent(used.any(0))


def _extent(used: NDArray[np.bool_]) -> slice:
    """The range from the first to the last element that is used, at least one element."""
    places = np.flatnonzero(used)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 1)
