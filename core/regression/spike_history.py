"""Regressors and drives from the spikes before each frame."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

njit = numba.njit(cache=True, nogil=True)


@njit
def _add_regressors(
    response: NDArray[np.float64],
    basis: NDArray[np.float64],
    start: int,
    end: int,
    out: NDArray[np.float32],
) -> None:
    lags, functions = basis.shape
    for t in range(start, end):
        for cell in range(response.shape[1]):
            count = response[t, cell]
            if count == 0:
                continue
            for lag in range(min(lags, end - t - 1)):
                for function in range(functions):
                    out[t + 1 + lag, cell, function] += count * basis[lag, function]


@njit
def _add_drive(
    response: NDArray[np.float64],
    filters: NDArray[np.float64],
    start: int,
    end: int,
    out: NDArray[np.float64],
) -> None:
    cells, _, lags = filters.shape
    for t in range(start, end):
        for source in range(response.shape[1]):
            count = response[t, source]
            if count == 0:
                continue
            for lag in range(min(lags, end - t - 1)):
                for cell in range(cells):
                    out[t + 1 + lag, cell] += count * filters[cell, source, lag]


def history_regressors(
    response: NDArray[Any], basis: NDArray[np.float64], pieces: list[slice]
) -> NDArray[np.float32]:
    """Convolves the responses before each frame with basis functions.

    The regressor of a cell and a function is Σ_lag basis[lag - 1] · response[t - lag] for lags from
    1 on, so that the response of a frame is not among its own regressors. Responses before the
    start of a segment count as 0.

    Args:
        response: (frame, cell), finite.
        basis: (lag, function); the first row is lag 1, the frame before.
        pieces: the segments, as returned by `retinakit.contracts.segments`.

    Returns:
        (frame, cell, function) float32.

    Example:
        >>> spikes = np.array([[1], [0], [0], [2]])
        >>> history_regressors(spikes, np.array([[1.0], [0.5]]), [slice(0, 4)])[:, 0, 0].tolist()
        [0.0, 1.0, 0.5, 0.0]
    """
    counts = np.ascontiguousarray(response, dtype=float)
    out = np.zeros((*counts.shape, basis.shape[1]), np.float32)
    for piece in pieces:
        _add_regressors(counts, np.ascontiguousarray(basis), piece.start, piece.stop, out)
    return out


def history_drive(
    response: NDArray[Any], filters: NDArray[np.float64], pieces: list[slice]
) -> NDArray[np.float64]:
    """The drive of each cell from the responses of all cells before a frame.

    drive[t, cell] = Σ_source Σ_lag filters[cell, source, lag - 1] · response[t - lag, source], for
    lags from 1 on. Responses before the start of a segment count as 0.

    Args:
        response: (frame, source), finite.
        filters: (cell, source, lag); the first lag is 1, the frame before.
        pieces: the segments, as returned by `retinakit.contracts.segments`.

    Returns:
        (frame, cell).

    Example:
        >>> spikes = np.array([[1], [0], [2]])
        >>> filters = np.array([[[-3.0, -1.0]], [[0.5, 0.0]]])
        >>> history_drive(spikes, filters, [slice(0, 3)]).tolist()
        [[0.0, 0.0], [-3.0, 0.5], [-1.0, 0.0]]
    """
    counts = np.ascontiguousarray(response, dtype=float)
    out = np.zeros((len(counts), len(filters)))
    for piece in pieces:
        _add_drive(counts, np.ascontiguousarray(filters), piece.start, piece.stop, out)
    return out
