"""The covariance of chosen windows of a stimulus."""

import os
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.linalg import blas

from retinakit.errors import UserError
from retinakit.progress import Progress

_BYTES = 64 * 2**20  # of windows held at a time
_FRAMES = 16384  # of the stimulus read at a time


def weighted_covariance(
    stimulus: xr.DataArray,
    frames: NDArray[np.int64],
    weight: NDArray[Any],
    lags: NDArray[np.int64],
    progress: Progress,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Σ w (s - m)(s - m)ᵀ / Σ w and m = Σ w s / Σ w, of the windows s before increasing frames.

    Symmetric rank-k updates do half the work of a product, and a weight enters by its root.
    """
    pixels = int(np.prod(stimulus.shape[1:]))
    features = len(lags) * pixels
    rows = max(1, _BYTES // (4 * features))
    second, first = np.zeros((features, features)), np.zeros(features)
    shift: Any = None  # near the mean, so that single precision does not suffer from it
    done = 0
    while done < len(frames):
        oldest = int(frames[done] - lags[-1])
        fit = int(np.searchsorted(frames, oldest + _FRAMES + lags[-1]))
        here = slice(done, max(done + 1, min(done + rows, fit)))
        read = stimulus[oldest : int(frames[here][-1] - lags[0]) + 1].values
        values = read.reshape(len(read), pixels).astype(np.float32)
        shift = values.mean(0) if shift is None else shift
        windows = (values - shift)[frames[here, None] - lags - oldest].reshape(-1, features)
        first += weight[here] @ windows
        windows *= np.sqrt(weight[here])[:, None].astype(np.float32)
        second += blas.ssyrk(1, windows.T)  # the upper triangle, from Fortran's order
        done = here.stop
        progress(done, len(frames), "spike-triggered covariance")
    total = weight.sum()
    if not total:
        return np.full_like(second, np.nan), np.full_like(first, np.nan)
    second += np.triu(second, 1).T
    mean = first / total
    second /= total
    second -= np.outer(mean, mean)
    return second, mean + np.tile(shift, len(lags))


def require_memory(features: int) -> None:
    """Refuses a covariance that cannot be held.

    Raises:
        UserError: saying how many features would fit.
    """
    needed = 3 * 8 * features**2  # the sum, a block's, and one more while they are added
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if needed > memory:
        side = int((memory / 24) ** 0.5)
        raise UserError(
            f"a covariance of {features} features (lags x checks) needs {needed / 1e9:.0f} GB and "
            f"{memory / 1e9:.0f} GB are free; crop the stimulus around the receptive field or "
            f"project it to fewer dimensions, to at most {side} features"
        )
