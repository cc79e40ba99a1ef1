"""The covariance of stimulus histories, and the transformation to whitened coordinates."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.contracts.errors import RecordingError, UserError
from retinakit.contracts.progress import Progress, silent
from retinakit.contracts.recording import full_history, lag_coordinate
from retinakit.spikes.algorithms.lagged_covariance import lagged_covariance
from retinakit.spikes.algorithms.window_covariance import require_memory

MATRICES = 6
"""Matrices that an analysis of the covariance holds: those of stimulus, spikes and whitening, their
product, and the copies that a matrix product and an eigenvalue decomposition make."""


def stimulus_covariance(
    split: xr.Dataset,
    lags: int = 20,
    *,
    first_lag: int = 0,
    frames: NDArray[np.bool_] | None = None,
    progress: Progress = silent,
) -> xr.Dataset:
    """The covariance of the stimulus histories of all frames, the prior of `stc`.

    Neighbouring lags share all but the first and last products of frames, so the cost is that of
    one product of check x check for each lag and frame. The stimulus is read in blocks, so it may
    be larger than memory.

    Args:
        split: a split of a recording.
        lags, first_lag: as for `retinakit.spikes.sta`.
        frames: (frame,), the frames to use; those without a full history are left out. By default
            all frames.
        progress: is called with the number of processed frames.

    Returns:
        `covariance (feature, feature_2)`, in squared units of the stimulus, where the features are
        lag, [channel,] y and x, flattened in this order; and `mean (lag, [channel,] y, x)`. The
        attribute `two_valued` is 1 if the stimulus has two values, such as black and white.

    Raises:
        RecordingError: if no frame has a full history.
        UserError: if the covariance and the matrices computed from it do not fit into memory.

    Example:
        >>> from retinakit.testing import small_recording
        >>> train = small_recording(size=4)["train"].to_dataset()
        >>> prior = stimulus_covariance(train, lags=3)
        >>> bool(abs(prior["covariance"] - np.eye(48)).max() < 0.2)  # the stimulus is white
        True
    """
    stimulus = split["stimulus"]
    require_memory(lags * int(np.prod(stimulus.shape[1:])), MATRICES)
    full = full_history(split["segment"], first_lag + lags)
    used = np.flatnonzero(full if frames is None else full & frames)
    if not len(used):
        raise RecordingError(
            f"no frame has {first_lag + lags} frames of history in its segment"
            f"{'' if frames is None else ' and a response'}; use fewer lags"
        )
    lag = np.arange(first_lag, first_lag + lags)
    found = lagged_covariance(stimulus, used, lag, progress)
    dims = ("lag", *(str(dim) for dim in stimulus.dims[1:]))
    coords: dict[str, Any] = lag_coordinate(lag, split.attrs["frame_interval"])
    coords |= {name: split[name].variable for name in dims if name in split.coords}
    return xr.Dataset(
        {
            "covariance": (("feature", "feature_2"), found.covariance),
            "mean": (dims, found.mean.reshape(lags, *stimulus.shape[1:])),
        },
        coords=coords,
        attrs={"two_valued": int(found.two_valued)},
    )


def white_shrinkage(covariance: NDArray[Any], samples: int) -> float:
    """The weight of a white covariance that best corrects sampling errors (Chen et al. 2010).

    The shrunk covariance is (1 - ρ) C + ρ μ 1, for the covariance C of a sample, its mean variance
    μ, and the weight ρ of eq 23 ("oracle approximating shrinkage"). For white noise ρ is near 1,
    because C differs from μ 1 by sampling errors only. For a correlated stimulus it approaches 0
    with the number of samples.

    Args:
        covariance: (feature, feature).
        samples: the number of samples from which it was computed.

    Returns:
        A number from 0 to 1.

    Example:
        >>> white_shrinkage(np.eye(3), 100), round(white_shrinkage(np.diag([4.0, 1.0]), 10**6), 3)
        (1.0, 0.0)
    """
    features, trace = len(covariance), float(covariance.trace())
    squares = float((covariance**2).sum())
    above = (1 - 2 / features) * squares + trace**2
    below = (samples + 1 - 2 / features) * (squares - trace**2 / features)
    return above / below if above < below else 1.0


def whitening_matrix(covariance: NDArray[Any], shrinkage: float = 0.0) -> NDArray[np.float64]:
    """The symmetric matrix W for which W s is white, for a stimulus s.

    W = ((1 - ρ) C + ρ μ 1)^(-1/2), for the covariance C of s with the mean variance μ. The
    shrinkage ρ regularises directions that the stimulus hardly contains, whose noise would
    otherwise dominate estimates in whitened coordinates.

    Args:
        covariance: (feature, feature).
        shrinkage: ρ, from 0 to 1; with 0, the covariance must not be singular.

    Returns:
        (feature, feature).

    Raises:
        UserError: if the stimulus does not vary.

    Example:
        >>> whitening_matrix(np.diag([4.0, 1.0])).round(3).tolist()
        [[0.5, 0.0], [0.0, 1.0]]
    """
    mean = float(covariance.trace()) / len(covariance)
    if not mean > 0:
        raise UserError(
            "the stimulus does not vary, so it has no covariance; choose another stimulus"
        )
    if shrinkage == 1:
        return np.eye(len(covariance)) / mean**0.5
    variance, vectors = np.linalg.eigh(covariance)
    least = np.finfo(float).eps * variance[-1]
    shrunk = (1 - shrinkage) * np.maximum(variance, least) + shrinkage * mean
    scaled = vectors * shrunk**-0.25
    result: NDArray[np.float64] = scaled @ scaled.T
    return result
