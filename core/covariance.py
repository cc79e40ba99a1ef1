"""Spike-triggered covariance (Schwartz et al. 2006)."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.linalg.blas import ssyrk

from retinakit.errors import UserError
from retinakit.progress import Progress, silent
from retinakit.recording import full_history, mean_response

LARGEST_COVARIANCE = 2**30
"""Bytes of the largest covariance that is made."""
BLOCK = 4096
"""Windows that are multiplied together."""


def windows(split: xr.Dataset, frames: NDArray[Any], lags: int) -> NDArray[np.float32]:
    """The stimulus before some frames, (frame, lag · pixel), lag 0 first.

    Args:
        split: of a recording.
        frames: indices of frames with a full history.
        lags: length of the history, the frame's own included.
    """
    first, last = int(frames.min()) - lags + 1, int(frames.max()) + 1
    stimulus = split["stimulus"][first:last].values.reshape(last - first, -1)
    chosen = frames[:, None] - first - np.arange(lags)
    return stimulus[chosen].reshape(len(frames), -1).astype(np.float32)


def stc(
    split: xr.Dataset, lags: int, *, shift: int = 0, progress: Progress = silent
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and covariance of the stimulus before the spikes of one cell.

    With windows x_t of `lags` frames and counts r_t, a = Σ r x / Σ r, and the covariance is
    Σ r (x - a)(x - a)ᵀ / (Σ r - 1): a bin of two spikes counts twice, not four times.

    Args:
        split: of a recording, with one cell. Repeats are averaged; frames without a full history
            or a response do not count.
        lags: length of a window.
        shift: move the responses by so many frames around the split, for a null.
        progress: is told the windows done.

    Returns:
        a (lag · pixel,), and the covariance (lag · pixel, lag · pixel).

    Raises:
        UserError: if the covariance would be too large, or there are fewer than two spikes.
    """
    size = lags * int(np.prod(split["stimulus"].shape[1:]))
    if 4 * size**2 > LARGEST_COVARIANCE:
        raise UserError(
            f"the covariance of {size} values ({lags} lags of {size // lags} checks) needs "
            f"{4 * size**2 / 1e9:.1f} GB; crop the field, use fewer lags, or collapse the stimulus "
            "in time with temporal_collapse"
        )
    weight = np.roll(np.nan_to_num(np.asarray(mean_response(split), float)[:, 0]), shift)
    weight[~full_history(split["segment"], lags)] = 0
    frames = np.flatnonzero(weight)
    total = weight.sum()
    if total < 2:
        raise UserError(
            f"cell {split['cell'].item()} has {total:g} spikes with a full history; leave it out"
        )
    mean = np.zeros(size)
    second = np.zeros((size, size), np.float32, order="F")
    for begin in range(0, len(frames), BLOCK):
        block = frames[begin : begin + BLOCK]
        ensemble = windows(split, block, lags)
        mean += weight[block] @ ensemble
        ensemble *= np.sqrt(weight[block, None]).astype(np.float32)
        # One triangle of the sum of outer products, added to in place.
        second = ssyrk(1.0, ensemble.T, beta=1.0, c=second, overwrite_c=1)
        progress(begin + len(block), len(frames), "spike-triggered covariance")
    mean /= total
    upper = np.triu(second.astype(np.float64))
    covariance = upper + np.triu(upper, 1).T
    covariance = (covariance - total * np.outer(mean, mean)) / (total - 1)
    return mean, covariance


def prior_covariance(split: xr.Dataset, lags: int, frames: int, seed: int) -> NDArray[np.float64]:
    """Covariance of the windows of random frames, whatever the response.

    Args:
        split: of a recording.
        lags: length of a window.
        frames: how many to draw.
        seed: of the draw.

    Returns:
        (lag · pixel, lag · pixel).
    """
    known = np.flatnonzero(full_history(split["segment"], lags))
    random = np.random.default_rng(seed)
    chosen = np.sort(random.choice(known, min(frames, len(known)), replace=False))
    ones = xr.zeros_like(split["response"].isel(cell=[0]), dtype=float)
    if "repeat" in ones.dims:
        ones = ones.isel(repeat=0)
    ones[{"frame": chosen}] = 1
    return stc(split.drop_vars("response").isel(cell=[0]).assign(response=ones), lags)[1]
