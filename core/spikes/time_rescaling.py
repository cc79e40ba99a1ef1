"""Time rescaling, a test of whether spikes follow a model's rate."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BAND = 1.36
"""Half width of the 95 % band of the Kolmogorov-Smirnov statistic, times the root of the number of
intervals."""


def rescaled_intervals(
    rate: ArrayLike, count: ArrayLike, *, largest: int | None = None, seed: int = 0
) -> NDArray[np.float64]:
    """Interspike intervals in units of the expected number of spikes, as quantiles (0 to 1).

    If the spikes follow the rate, the quantiles 1 - exp(-interval) are uniform (Brown et al. 2002).
    Because the rate of a bin is not small, the places of spikes within their bins are drawn. A bin
    with the largest possible count has the first spikes of a Poisson process that has as many or
    more in this bin, and the next interval begins with the next bin. For `largest` = 1, this is the
    correction of Haslinger et al. (2010). Consecutive segments and repeats may be concatenated,
    because a rescaled process has no memory.

    Args:
        rate: (...), of consecutive bins, spikes per bin given the spikes before: the mean of a
            Poisson count, or the negative logarithm of the probability of no spike.
        count: (...), spikes per bin. Bins that are NaN in either are left out.
        largest: the largest count that a bin can have; None if there is no limit.
        seed: of the places within bins.

    Returns:
        (interval,), sorted.

    Example:
        >>> rate = np.full(20_000, 0.2)
        >>> counts = np.random.default_rng(0).poisson(rate)
        >>> intervals = rescaled_intervals(rate, counts)
        >>> statistic, band = ks_statistic(intervals)
        >>> statistic < band, ks_statistic(rescaled_intervals(2 * rate, counts))[0] > band
        (True, True)
    """
    rates, counts = np.asarray(rate, float).ravel(), np.asarray(count, float).ravel()
    known = np.isfinite(rates) & np.isfinite(counts)
    rates, number = rates[known], np.rint(counts[known]).astype(int)
    random = np.random.default_rng(seed)
    drawn, full = number, np.zeros(len(number), bool)
    if largest is not None:
        from scipy.stats import poisson

        number = np.minimum(number, largest)
        drawn, full = number.copy(), number == largest
        beyond = random.random(int(full.sum())) * poisson.sf(largest - 1, rates[full])
        drawn[full] = np.maximum(np.nan_to_num(poisson.isf(beyond, rates[full])), largest)
    bins = np.repeat(np.arange(len(number)), drawn)
    places = random.random(len(bins))
    places = places[np.lexsort((places, bins))]  # increasing within each bin
    order = np.arange(len(bins)) - np.repeat(np.cumsum(drawn) - drawn, drawn)
    observed, last = order < number[bins], order == number[bins] - 1
    lengths = rates.copy()
    lengths[full] *= places[last & full[bins]]
    begins = np.cumsum(lengths) - lengths
    times = begins[bins[observed]] + rates[bins[observed]] * places[observed]
    return np.sort(-np.expm1(-np.diff(times)))


def ks_statistic(quantiles: NDArray[np.float64]) -> tuple[float, float]:
    """The Kolmogorov-Smirnov statistic of quantiles, and its 95 % band.

    Args:
        quantiles: (interval,), sorted, as returned by `rescaled_intervals`.

    Returns:
        The largest distance of their distribution from the uniform one, and the half width
        1.36 / √(number of intervals) of the band that has 95 % of the statistics of a true model.
        Both are NaN without intervals.

    Example:
        >>> statistic, band = ks_statistic(np.array([0.25, 0.75]))
        >>> statistic, round(band, 3)
        (0.25, 0.962)
    """
    number = len(quantiles)
    if not number:
        return np.nan, np.nan
    steps = np.arange(number + 1) / number
    distance = max(float((steps[1:] - quantiles).max()), float((quantiles - steps[:-1]).max()))
    return distance, BAND / float(np.sqrt(number))
