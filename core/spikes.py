"""Spike-triggered statistics."""

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.errors import RecordingError
from retinakit.kernels import compiled
from retinakit.progress import Progress, silent
from retinakit.recording import full_history, lag_coordinate, mean_response

BLOCK_BYTES = 256 * 2**20
"""How much of the stimulus is held as numbers at a time."""


@numba.njit(cache=True, nogil=True)
def _spike_triggered_sum(
    stimulus: NDArray[np.int8],
    frames: NDArray[np.int64],
    counts: NDArray[np.int32],
    first_lag: int,
    sums: NDArray[np.int64],
) -> None:
    for i in range(len(frames)):
        for lag in range(len(sums)):
            frame = stimulus[frames[i] - first_lag - lag]
            for pixel in range(stimulus.shape[1]):
                sums[lag, pixel] += np.int64(counts[i]) * frame[pixel]


spike_triggered_sum: Callable[..., None] = (
    compiled.spike_triggered_sum if compiled is not None else _spike_triggered_sum
)
"""Adds counts[i] · stimulus[frames[i] - first_lag - lag] to sums[lag], in exact integers."""


def sta(
    splits: xr.Dataset | Sequence[xr.Dataset],
    lags: int = 20,
    *,
    first_lag: int = 0,
    progress: Progress = silent,
) -> xr.Dataset:
    """Spike-triggered average of every cell.

    sta[c, l, p] = Σ_t r[t, c] · s[t - l, p] / Σ_t r[t, c], over the frames t that have a full
    history in their segment and a response. Integer stimuli and counts are summed exactly. The
    stimulus is read in blocks, so it may be larger than memory.

    Args:
        splits: a split of a recording, or several to average over. Repeats are averaged first.
        lags: how many lags.
        first_lag: the first of them; 0 is the frame shown in the response's own bin.
        progress: is told the frames done.

    Returns:
        `sta (cell, lag, [channel,] y, x)` with the coordinate `lag_time`, and `spikes (cell)`: the
        spikes that were counted.

    Raises:
        RecordingError: if no frame has so long a history.
    """
    splits = [splits] if isinstance(splits, xr.Dataset) else list(splits)
    reach = first_lag + lags
    weights = [_counted(split, reach) for split in splits]
    if not any(len(full) and full.any() for _, full in weights):
        raise RecordingError(f"no segment is as long as {reach} frames of history; use fewer lags")
    integer = all(
        split["stimulus"].dtype in (np.int8, np.bool_) and np.array_equal(weight, np.round(weight))
        for split, (weight, _) in zip(splits, weights, strict=True)
    )
    total: Any = 0
    for split, (weight, _) in zip(splits, weights, strict=True):
        total = total + _sums(split["stimulus"], weight, lags, first_lag, integer, progress)
    spikes = sum(weight.sum(0, dtype=float) for weight, _ in weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        average = total / np.reshape(spikes, (-1, *[1] * (total.ndim - 1)))
    first = splits[0]
    dims = ("cell", "lag", *first["stimulus"].dims[1:])
    lag = np.arange(first_lag, reach)
    coords: dict[str, Any] = lag_coordinate(lag, first.attrs["frame_interval"])
    coords |= {str(name): first[name].variable for name in dims if name in first.coords}
    units = first["stimulus"].attrs.get("units", "contrast")
    return xr.Dataset(
        {"sta": (dims, average, {"units": units}), "spikes": ("cell", spikes)}, coords=coords
    )


def _counted(split: xr.Dataset, reach: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The responses that count, (frame, cell), 0 elsewhere, and which frames have a history."""
    full = full_history(split["segment"], reach)
    response = np.asarray(mean_response(split))
    return np.where(full[:, None] & np.isfinite(response), response, 0), full


def _sums(
    stimulus: xr.DataArray,
    weight: NDArray[Any],
    lags: int,
    first_lag: int,
    integer: bool,
    progress: Progress,
) -> NDArray[Any]:
    """Σ_t weight[t, c] · s[t - l, p], as (cell, lag, [channel,] y, x)."""
    shape = stimulus.shape[1:]
    pixels, cells = int(np.prod(shape)), weight.shape[1]
    reach = first_lag + lags
    total = np.zeros((cells, lags, pixels), np.int64 if integer else np.float64)
    block = max(2 * reach, BLOCK_BYTES // (pixels * (1 if integer else 4)))
    # Blocks overlap by the history; a window across two segments has weight 0.
    for begin in range(0, stimulus.shape[0] - reach + 1, block - reach + 1):
        end = min(begin + block, stimulus.shape[0])
        values = stimulus[begin:end].values.reshape(end - begin, pixels)
        here = weight[begin:end].copy()
        here[: reach - 1] = 0  # counted in the block before, or without a full history
        if integer:
            values = np.ascontiguousarray(values).view(np.int8)
            for cell in range(cells):
                frames = np.flatnonzero(here[:, cell])
                counts = here[frames, cell].astype(np.int32)
                spike_triggered_sum(values, frames, counts, first_lag, total[cell])
        else:
            values = values.astype(np.float32, copy=False)
            counts = here.astype(np.float32)
            for lag in range(lags):
                shift = first_lag + lag
                total[:, lag] += counts[shift:].T @ values[: len(values) - shift]
        progress(end, stimulus.shape[0], "spike-triggered average")
    return total.reshape(cells, lags, *shape)
