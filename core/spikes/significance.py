"""The mean and standard deviation of a spike-triggered average under the null hypothesis.

The null hypothesis is that the responses are independent of the stimulus.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.signal import correlate

from retinakit.contracts.frame_blocks import mean_frame
from retinakit.contracts.recording import full_history, mean_response
from retinakit.spikes.smoothing import pyramid, widths
from retinakit.spikes.spike_triggered import baseline_subtracted, sta

STIMULUS_VALUES = 2**25
"""Number of stimulus values that are read to estimate the statistics of the stimulus."""

STRETCHES = 4
"""Number of stretches of consecutive frames, spread over the recording, that are read."""

APART = 5
"""Standard errors by which the mean of a check differs from that of all, if not by chance."""

LONGEST_INTERVAL = 2000
"""Number of frames over which the stimulus may be correlated in time."""


class StimulusStatistics(NamedTuple):
    """Statistics of a stimulus over all its frames and checks.

    Attributes:
        mean: of all values; or ([channel,] y, x), if some checks differ from it in their mean, as
            those that never change or the sky of natural movies.
        covariance: (interval,) between the values of a check that are 0, 1, … frames apart. Values
            that may be due to chance are 0.
        gain: (width,) factor by which the variance of the map smoothed over each of
            `retinakit.spikes.smoothing.widths` exceeds that of white noise.
        kurtosis: (width,) excess kurtosis of the smoothed map, at least 0.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    gain: NDArray[np.float64]
    kurtosis: NDArray[np.float64]


def stimulus_statistics(stimulus: xr.DataArray) -> StimulusStatistics:
    """Mean, correlations in time and space, and kurtosis of a stimulus.

    They are estimated from at most 2²⁵ values, in four stretches of frames.

    Args:
        stimulus: (frame, [channel,] y, x).

    Example:
        >>> random = np.random.default_rng(0)
        >>> held = np.repeat(random.standard_normal((3000, 8, 9)), 2, axis=0)
        >>> found = stimulus_statistics(xr.DataArray(held, dims=("frame", "y", "x")))
        >>> (found.covariance[:3] / found.covariance[0]).round(1).tolist(), found.gain.round(1)
        ([1.0, 0.5, 0.0], array([1., 1.]))
    """
    frames, pixels = len(stimulus), int(np.prod(stimulus.shape[1:]))
    length = min(-(-frames // STRETCHES), max(1, STIMULUS_VALUES // pixels // STRETCHES))
    starts = np.linspace(0, frames - length, STRETCHES).round().astype(int)
    read = [
        np.asarray(stimulus[start : start + length], np.float32).reshape(length, -1)
        for start in np.unique(starts)
    ]
    of_checks = np.array([part.mean(0, dtype=float) for part in read])
    mean = np.asarray(of_checks.mean())
    apart = _apart(of_checks)
    read = [part - np.float32(mean) for part in read]
    varying = np.full(pixels, True)
    if apart.any():
        mean = mean_frame(stimulus)
        pattern = (of_checks.mean(0) - of_checks.mean()).astype(np.float32)
        read = [part - pattern for part in read]
        changes = np.any([np.ptp(part, 0) > 0 for part in read], 0)
        varying = changes | ~apart if changes.any() else varying
    # Some checks are enough for the correlation in time.
    known = [part[:, varying] for part in read] if not varying.all() else read
    some = [part[:, :: max(1, part.shape[1] // 256) | 1].astype(float) for part in known]
    intervals = np.arange(min(max(1, length // 4), LONGEST_INTERVAL))
    sums = sum(
        correlate(one, one, method="fft")[length - 1 :][: len(intervals)]
        for part in some
        for one in part.T
    )
    number = sum(part.shape[1] for part in some) * (length - intervals)
    covariance: Any = sums / number
    chance = 4 * covariance[0] / np.sqrt(number)
    covariance[1:][np.abs(covariance[1:]) < chance[1:]] = 0
    variance = float(np.mean([(part.astype(float) ** 2).mean() for part in known]))
    covariance *= variance / covariance[0] if covariance[0] > 0 else 1
    maps = np.concatenate([part[:: max(1, length // 64)] for part in read])
    maps = maps.reshape(-1, *stimulus.shape[-2:])
    levels = [level.values.astype(float) for level in pyramid(maps)]
    power = np.array([(values**2).mean() for values in levels])
    gain = power / power[0] if power[0] > 0 else np.ones_like(power)
    kurtosis = np.array([_excess_kurtosis(values.ravel()) for values in levels])
    return StimulusStatistics(mean, covariance, gain, kurtosis)


def _apart(means: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the mean of each check differs from that of all by more than chance.

    Args:
        means: (stretch, check), in several stretches of frames. Their differences give the
            standard error of a mean, also of a stimulus that is correlated in time.
    """
    if len(means) < 2:
        return np.zeros(means.shape[1], bool)
    error = np.sqrt(means.var(0, ddof=1).mean() / len(means))
    apart: NDArray[np.bool_] = np.abs(means.mean(0) - means.mean()) > APART * error
    return apart


def _excess_kurtosis(values: NDArray[Any]) -> float:
    """The excess kurtosis around 0, or 0 if it is negative or may be due to chance."""
    square = float((values**2).mean())
    excess = float((values**4).mean()) / square**2 - 3 if square > 0 else 0.0
    return excess if excess > 4 * np.sqrt(24 / len(values)) else 0.0


def analytic_noise(splits: Sequence[xr.Dataset], reach: int) -> xr.Dataset:
    """Mean and standard deviation of the average for responses independent of the stimulus.

    The mean is that of the stimulus, or 0 for a response of either sign, whose baseline is
    subtracted as by `retinakit.spikes.sta`. The standard deviation is √(Σ_k R_k C_k) / Σ_t |r_t|
    for a stationary stimulus, where C_k is its covariance at an interval of k frames, and
    R_k = Σ_t r_t r_{t+k}, over the responses r in frames with a full history. For a white stimulus
    with the standard deviation σ, this is σ √(Σ r²) / Σ |r|.

    Args:
        splits: of a recording, as for `retinakit.spikes.sta`.
        reach: the length of the history in frames, `first_lag + lags` of the average.

    Returns:
        `mean (cell)`, or `mean (cell, [channel,] y, x)` if the mean of the stimulus differs between
        checks, and `deviation (cell, width)`, in the units of the stimulus, and the excess
        `kurtosis (cell, width)`. Those with a width are of the average smoothed over the widths in
        checks that `receptive_field` uses, the first of which is 0. NaN without spikes. The
        kurtosis is κ Σ r⁴ / (Σ r²)² with that of the stimulus κ, and 0 if this is negative: it
        matters for few spikes and a sparse stimulus.

    Example:
        >>> from retinakit.testing import small_recording
        >>> train = small_recording()["train"].to_dataset()
        >>> dict(analytic_noise([train], reach=5).sizes)
        {'cell': 2, 'width': 2}
    """
    statistics = stimulus_statistics(splits[0]["stimulus"])
    total: Any = 0.0
    absolute: Any = 0.0
    squares: Any = 0.0
    fourth: Any = 0.0
    power: Any = 0.0
    for split in baseline_subtracted(splits, reach):
        response = mean_response(split).transpose("frame", "cell")
        full = full_history(split["segment"], reach)[:, None]
        r = np.where(full & response.notnull(), response, 0).astype(float)
        total = total + r.sum(0)
        absolute = absolute + np.abs(r).sum(0)
        squares = squares + (r**2).sum(0)
        fourth = fourth + (r**4).sum(0)
        power = power + np.array([_power(one, statistics.covariance) for one in r.T])
    divisor = np.where(absolute > 0, absolute, np.nan)
    deviation = np.sqrt(np.maximum(power, 0)) / divisor
    return _noise(
        splits[0],
        np.multiply.outer(total / divisor, statistics.mean),
        np.multiply.outer(deviation, np.sqrt(statistics.gain)),
        np.multiply.outer(
            fourth / np.where(absolute > 0, squares, np.nan) ** 2, statistics.kurtosis
        ),
    )


def _power(response: NDArray[np.float64], covariance: NDArray[np.float64]) -> float:
    """Σ_k R_k C_k over intervals k of either sign, with the autocorrelation R of the response."""
    covariance = np.trim_zeros(covariance[: len(response)], "b")
    power = float(response @ response) * (covariance[0] if len(covariance) else 0)
    if len(covariance) > 1:
        correlated = correlate(response, response, method="fft")[len(response) :]
        power += 2 * float(correlated[: len(covariance) - 1] @ covariance[1:])
    return power


def shuffled_noise(
    splits: Sequence[xr.Dataset], lags: int, first_lag: int, draws: int, seed: int
) -> xr.Dataset:
    """Mean and standard deviation of the average for responses that are shifted in time.

    Each draw rotates the responses of a split by a random number of frames, at least the length of
    the history. This preserves the statistics of the responses and removes their dependence on the
    stimulus.

    Args:
        splits, lags, first_lag: as for `retinakit.spikes.sta`.
        draws: the number of random shifts.
        seed: of the shifts.

    Returns:
        As for `analytic_noise`, over all draws, lags and checks.

    Raises:
        RecordingError: if no segment is as long as the history.

    Example:
        >>> from retinakit.testing import small_recording
        >>> train = small_recording()["train"].to_dataset()
        >>> shuffled = shuffled_noise([train], lags=5, first_lag=0, draws=20, seed=0)
        >>> ratio = shuffled["deviation"] / analytic_noise([train], reach=5)["deviation"]
        >>> bool((abs(ratio - 1) < 0.2).all())
        True
    """
    random = np.random.default_rng(seed)
    reach = first_lag + lags
    signed = baseline_subtracted(splits, reach)
    pattern = stimulus_statistics(splits[0]["stimulus"]).mean
    pattern = pattern - pattern.mean()
    # The average of spike counts has the mean of each check; a response of either sign has none.
    unsigned = ~np.any([(mean_response(split) < 0).any("frame") for split in signed], axis=0)
    pattern = np.multiply.outer(unsigned, pattern)  # (cell,), or (cell, [channel,] y, x)
    means, squares, kurtosis = [], [], []
    for _ in range(draws):
        shifted = []
        for split in signed:
            frames = split.sizes["frame"]
            by = int(random.integers(min(reach, frames - 1), max(frames - reach, reach + 1)))
            response = split["response"]
            rolled = np.roll(response.values, by, axis=response.dims.index("frame"))
            shifted.append(split.assign(response=response.copy(data=rolled)))
        average = sta(shifted, lags, first_lag=first_lag)["sta"].values.astype(float)
        average -= pattern.reshape(
            len(average), 1, *(pattern.shape[1:] or [1] * (average.ndim - 2))
        )
        mean = average.reshape(len(average), -1).mean(1)
        average -= mean.reshape(-1, *[1] * (average.ndim - 1))
        levels = [level.values.reshape(len(average), -1) for level in pyramid(average)]
        means.append(mean)
        kurtosis.append([[_excess_kurtosis(one) for one in values] for values in levels])
        squares.append(np.stack([(values**2).mean(1) for values in levels], 1))
    return _noise(
        splits[0],
        np.mean(means, 0).reshape(-1, *[1] * (pattern.ndim - 1)) + pattern,
        np.sqrt(np.mean(squares, 0)),
        np.median(kurtosis, 0).T,
    )


def _noise(
    split: xr.Dataset, mean: NDArray[Any], deviation: NDArray[Any], kurtosis: NDArray[Any]
) -> xr.Dataset:
    return xr.Dataset(
        {
            "mean": (("cell", *split["stimulus"].dims[1:])[: np.ndim(mean)], mean),
            "deviation": (("cell", "width"), deviation),
            "kurtosis": (("cell", "width"), kurtosis),
        },
        {
            "cell": split["cell"].variable,
            "width": ("width", widths(split.sizes["y"], split.sizes["x"]), {"units": "check"}),
        },
    )
