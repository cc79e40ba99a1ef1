"""The standard deviation of a spike-triggered average under the null hypothesis.

The null hypothesis is that the spikes are independent of the stimulus.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from retinakit.contracts.recording import full_history, mean_response
from retinakit.spikes.spike_triggered import sta

VARIANCE_VALUES = 2**25
"""Number of stimulus values from which the variance is estimated."""


def analytic_deviation(splits: Sequence[xr.Dataset], reach: int) -> xr.DataArray:
    """Standard deviation of the average for spikes independent of a white-noise stimulus.

    σ √(Σ r²) / Σ r, where σ is the standard deviation of the stimulus and r are the responses in
    frames with a full history.

    Args:
        splits: of a recording, as for `retinakit.spikes.sta`.
        reach: the length of the history in frames, `first_lag + lags` of the average.

    Returns:
        (cell,), in the units of the stimulus; NaN without spikes.

    Example:
        >>> from retinakit.testing import small_recording
        >>> train = small_recording()["train"].to_dataset()
        >>> analytic_deviation([train], reach=5).dims
        ('cell',)
    """
    stimulus = splits[0]["stimulus"]
    few = max(1, VARIANCE_VALUES // int(np.prod(stimulus.shape[1:])))
    first = stimulus[:few].astype(np.float64)
    counted = [
        mean_response(split).fillna(0).isel(frame=full_history(split["segment"], reach))
        for split in splits
    ]
    total = sum(r.astype(float).sum("frame") for r in counted)
    squares = sum((r.astype(float) ** 2).sum("frame") for r in counted)
    assert isinstance(total, xr.DataArray) and isinstance(squares, xr.DataArray)
    return first.std() * squares**0.5 / total.where(total > 0)


def shuffled_deviation(
    splits: Sequence[xr.Dataset], lags: int, first_lag: int, draws: int, seed: int
) -> xr.DataArray:
    """Standard deviation of the average for responses that are shifted in time.

    Each draw rotates the responses of a split by a random number of frames, at least the length of
    the history. This preserves the statistics of the spike train and removes its dependence on the
    stimulus.

    Args:
        splits, lags, first_lag: as for `retinakit.spikes.sta`.
        draws: the number of random shifts.
        seed: of the shifts.

    Returns:
        (cell,), in the units of the stimulus, computed over all draws, lags and checks.

    Raises:
        RecordingError: if no segment is as long as the history.

    Example:
        >>> from retinakit.testing import small_recording
        >>> train = small_recording()["train"].to_dataset()
        >>> shuffled = shuffled_deviation([train], lags=5, first_lag=0, draws=20, seed=0)
        >>> ratio = shuffled / analytic_deviation([train], reach=5)  # the stimulus is white
        >>> bool((abs(ratio - 1) < 0.2).all())
        True
    """
    random = np.random.default_rng(seed)
    reach = first_lag + lags
    squares = []
    for _ in range(draws):
        shifted = []
        for split in splits:
            frames = split.sizes["frame"]
            by = int(random.integers(min(reach, frames - 1), max(frames - reach, reach + 1)))
            response = split["response"]
            rolled = np.roll(response.values, by, axis=response.dims.index("frame"))
            shifted.append(split.assign(response=response.copy(data=rolled)))
        average = sta(shifted, lags, first_lag=first_lag)["sta"]
        squares.append((average**2).mean([dim for dim in average.dims if dim != "cell"]))
    result: xr.DataArray = xr.concat(squares, "draw").mean("draw") ** 0.5
    return result
