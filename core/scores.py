"""Scores of predictions against a known rate, repeated trials, or single-trial spike counts.

All functions take DataArrays with the dimension `frame` and reduce it; other dimensions (`cell`,
sweeps) remain. Frames in which the prediction or the observation is NaN are excluded. Scores are
not clipped to a range. A score that is not defined is NaN, and `reason` gives the reason.
"""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

NOT_RECORDED = "the cell was not recorded"
"""The `reason` for a cell that was not recorded in the scored frames."""

RATE_FLOOR = 1e-8
"""Added to the rate in the logarithm of the Poisson loss, here and in training."""


def _pair(predicted: xr.DataArray, observed: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    both = predicted.notnull() & observed.notnull()
    return predicted.where(both), observed.where(both)


def correlation(predicted: xr.DataArray, observed: xr.DataArray) -> xr.DataArray:
    """Pearson correlation over frames.

    Args:
        predicted, observed: (frame, ...).

    Returns:
        (...), NaN if either is constant within the precision of its dtype.

    Example:
        >>> rate = xr.DataArray([0.0, 1.0, 2.0, 1.0], dims="frame")
        >>> round(float(correlation(rate, 3 - 2 * rate)), 6)
        -1.0
    """
    predicted, observed = _pair(predicted, observed)
    (a, varies_a), (b, varies_b) = _deviation(predicted), _deviation(observed)
    variance = (a**2).mean("frame") * (b**2).mean("frame")
    return (a * b).mean("frame") / variance.where(varies_a & varies_b) ** 0.5


def correlation_interval(
    predicted: xr.DataArray, observed: xr.DataArray, draws: int, block: int, seed: int
) -> tuple[xr.DataArray, xr.DataArray]:
    """The 95 % confidence interval of the correlation, by a block bootstrap over frames.

    Args:
        predicted, observed: (frame, cell).
        draws: the number of bootstrap samples.
        block: the length in frames of the blocks that are resampled.
        seed: of the random draws.

    Returns:
        The 2.5th and 97.5th percentiles over the bootstrap samples, (cell) each, NaN where the
        correlation is NaN.

    Example:
        >>> random = np.random.default_rng(0)
        >>> rate = xr.DataArray(random.random((500, 1)), {"cell": [0]}, ("frame", "cell"))
        >>> noisy = rate + 0.3 * random.standard_normal(rate.shape)
        >>> low, high = correlation_interval(rate, noisy, draws=200, block=10, seed=0)
        >>> bool(low < correlation(rate, noisy)), bool(correlation(rate, noisy) < high)
        (True, True)
    """
    frames = predicted.notnull().any("cell").values
    both = [a.transpose("frame", "cell").isel(frame=frames) for a in _pair(predicted, observed)]
    a, b = (_deviation(trace)[0].values for trace in both)
    known = np.isfinite(a)
    a, b = np.where(known, a, 0), np.where(known, b, 0)
    length = min(block, len(a))
    starts = np.arange(len(a) - length + 1)
    # The moments of a bootstrap sample are sums of the moments of its blocks.
    running = np.cumsum(np.stack([known, a, b, a * a, b * b, a * b]).astype(float), 1)
    running = np.pad(running, ((0, 0), (1, 0), (0, 0)))
    of_block = running[:, starts + length] - running[:, starts]
    random, values = np.random.default_rng(seed), []
    for _ in range(draws):
        drawn = random.integers(0, len(starts), -(-len(a) // length))
        n, *moments = of_block[:, drawn].sum(1)
        values.append(_correlation_of_moments(n, *moments))
    missing = correlation(*both).isnull().values
    drawn_values = np.where(missing, 0.0, np.array(values))
    low, high = np.nanpercentile(drawn_values, [2.5, 97.5], axis=0)
    coords = {"cell": predicted["cell"].variable}
    low, high = (
        xr.DataArray(np.where(missing, np.nan, edge), coords, ("cell",)) for edge in (low, high)
    )
    return low, high


def _correlation_of_moments(
    n: NDArray[np.float64],
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    aa: NDArray[np.float64],
    bb: NDArray[np.float64],
    ab: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Pearson correlation from moments summed over n frames; NaN where either is constant."""
    n = np.maximum(n, 1)
    power = np.maximum(aa - a * a / n, 0) * np.maximum(bb - b * b / n, 0)
    varies = power > 1e-24 * aa * bb
    return np.divide(ab - a * b / n, np.sqrt(power), out=np.full(len(n), np.nan), where=varies)


def reason(predicted: xr.DataArray, observed: xr.DataArray) -> xr.DataArray:
    """The reason why a score is not defined, as text.

    Args:
        predicted: (frame, ...).
        observed: ([repeat,] frame, ...).

    Returns:
        (...), "" where the score is defined.

    Example:
        >>> dims = ("frame", "cell")
        >>> predicted = xr.DataArray([[0.1, 0.1], [0.2, 0.1]], dims=dims)
        >>> reason(predicted, xr.DataArray([[0.0, 0.0], [1.0, 1.0]], dims=dims)).values.tolist()
        ['', 'the prediction is constant']
    """
    if "repeat" in observed.dims:
        observed = observed.mean("repeat")
    recorded = observed.notnull().any("frame")
    predicted, observed = _pair(predicted, observed)
    reasons = {
        NOT_RECORDED: ~recorded,
        "no response in a frame with a full history": observed.isnull().all("frame"),
        "the response is constant": ~_deviation(observed)[1],
        "the prediction is constant": ~_deviation(predicted)[1],
    }
    holds = [condition.broadcast_like(recorded).values for condition in reasons.values()]
    return recorded.copy(data=np.select(holds, list(reasons), ""))


def _deviation(trace: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """A trace minus its mean, and whether it varies by more than rounding errors."""
    precision = float(np.finfo(trace.dtype).eps) if trace.dtype.kind == "f" else 0.0
    deviation = trace.astype(float) - trace.astype(float).mean("frame")
    floor = (4 * precision) ** 2 * (trace.astype(float) ** 2).mean("frame")
    return deviation, (deviation**2).mean("frame") > floor


def fraction_of_explained_variance(predicted: xr.DataArray, rate: xr.DataArray) -> xr.DataArray:
    """Fraction of the variance of a noise-free rate that is explained.

    FEV = 1 - mean (predicted - rate)² / Var(rate)

    Args:
        predicted, rate: (frame, ...), in the same units.

    Returns:
        (...), at most 1, and negative for a prediction worse than the mean rate.

    Example:
        >>> rate = xr.DataArray([0.0, 1.0, 2.0, 1.0], dims="frame")
        >>> mean = xr.full_like(rate, 1.0)
        >>> [float(fraction_of_explained_variance(p, rate)) for p in (rate, mean)]
        [1.0, 0.0]
    """
    predicted, rate = _pair(predicted, rate)
    return 1 - ((predicted - rate) ** 2).mean("frame") / rate.var("frame")


def explainable_variance(response: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """The variance of a response that a stimulus can explain, and the variance of the noise.

    total = variance over frames and repeats, noise = mean over frames of the variance across
    repeats (both with ddof 1), explainable = total - noise.

    Args:
        response: (repeat, frame, ...).

    Returns:
        The explainable variance and the noise variance, (...) each, in squared units of the
        response.

    Example:
        >>> response = xr.DataArray([[0.0, 4.0], [2.0, 6.0]], dims=("repeat", "frame"))
        >>> [round(float(variance), 6) for variance in explainable_variance(response)]
        [4.666667, 2.0]
    """
    total = response.var(("repeat", "frame"), ddof=1)
    noise = response.var("repeat", ddof=1).mean("frame")
    return total - noise, noise


def feve(predicted: xr.DataArray, response: xr.DataArray) -> xr.DataArray:
    """Fraction of the explainable variance that is explained (see `explainable_variance`).

    FEVE = 1 - (mse - noise) / explainable, with the mean squared error over frames and repeats.

    Args:
        predicted: (frame, ...).
        response: (repeat, frame, ...), in the same units.

    Returns:
        (...), NaN if the explainable variance is not positive. It is negative for a prediction
        worse than the mean response, and may exceed 1 with few repeats.

    Example:
        >>> response = xr.DataArray([[0.0, 4.0], [2.0, 6.0]], dims=("repeat", "frame"))
        >>> round(float(feve(response.mean("repeat"), response)), 3)  # with only two repeats
        1.214
    """
    response = response.where(predicted.notnull())
    explainable, noise = explainable_variance(response)
    mse = ((response - predicted) ** 2).mean(("repeat", "frame"))
    return 1 - (mse - noise) / explainable.where(explainable > 0)


def correlation_ceiling(response: xr.DataArray) -> xr.DataArray:
    """The correlation of a perfect model with the mean response over repeats.

    CCmax = sqrt(SP / Var(mean response)), with the signal power SP of Sahani & Linden (2003) as
    in Schoppe et al. (2016), eqs 5 and 7.

    Args:
        response: (repeat, frame, ...). Repeats without any response are excluded, and then frames
            in which one of the other repeats is missing.

    Returns:
        (...), NaN if the signal power is not positive or there is one repeat.

    Example:
        >>> same = xr.DataArray([[0.0, 4.0, 1.0]] * 3, dims=("repeat", "frame"))
        >>> round(float(correlation_ceiling(same)), 6)  # responses without noise
        1.0
    """
    recorded = response.notnull().any("frame")
    repeats = recorded.sum("repeat")
    complete = (response.notnull() | ~recorded).all("repeat") & (repeats > 1)
    response = response.where(complete)
    power_of_sum = response.sum("repeat").where(complete).var("frame", ddof=1)
    sum_of_powers = response.var("frame", ddof=1).sum("repeat")
    signal = (power_of_sum - sum_of_powers) / (repeats * (repeats - 1)).where(repeats > 1)
    variance = response.mean("repeat").var("frame", ddof=1)
    return (signal / variance.where(variance > 0)).where(signal > 0) ** 0.5


def poisson_deviance(predicted: xr.DataArray, response: xr.DataArray) -> xr.DataArray:
    """Mean Poisson deviance per bin, 2 (y log(y / p) - y + p).

    Args:
        predicted: (frame, ...), p, expected spikes per bin.
        response: ([repeat,] frame, ...), y, spikes per bin.

    Returns:
        (...), 0 for a prediction equal to the response, and NaN if a prediction is negative.

    Example:
        >>> counts = xr.DataArray([1.0, 2.0, 3.0], dims="frame")
        >>> [round(float(poisson_deviance(p, counts)), 3) for p in (counts, counts + 1)]
        [0.0, 0.422]
    """
    predicted, response = _pair(predicted, response)
    positive = response > 0
    ratio = _log(xr.where(positive, response, 1.0)) - _log(predicted.where(positive, 1.0))
    terms = 2 * (xr.where(positive, response * ratio, 0.0) - response + predicted)
    dims = [dim for dim in ("repeat", "frame") if dim in terms.dims]
    mean = terms.where(response.notnull() & predicted.notnull()).mean(dims)
    return mean.where(_is_rate(predicted))


def poisson_loss(predicted: xr.DataArray, response: xr.DataArray) -> xr.DataArray:
    """Mean Poisson loss per bin, p - y log(p + RATE_FLOOR), as minimised in training.

    This is the negative log-likelihood up to a term that depends on the response only.

    Args:
        predicted: (frame, ...), p, expected spikes per bin.
        response: ([repeat,] frame, ...), y, spikes per bin.

    Returns:
        (...), in nats per bin, NaN if a prediction is negative.

    Example:
        >>> counts = xr.DataArray([1.0, 2.0], dims="frame")
        >>> round(float(poisson_loss(counts, counts)), 3)
        0.807
    """
    predicted, response = _pair(predicted, response)
    terms = predicted - response * _log(predicted + RATE_FLOOR)
    mean = terms.mean([dim for dim in ("repeat", "frame") if dim in terms.dims])
    return mean.where(_is_rate(predicted))


def _is_rate(predicted: xr.DataArray) -> xr.DataArray:
    """Whether no prediction is negative, so that it is the mean of a Poisson distribution."""
    over = [dim for dim in ("repeat", "frame") if dim in predicted.dims]
    return ~(predicted < 0).any(over)


def _log(values: xr.DataArray) -> xr.DataArray:
    """The logarithm, without a warning: -inf for 0 or less, NaN for NaN."""
    with np.errstate(divide="ignore"):
        logarithm: xr.DataArray = xr.ufuncs.log(values.clip(0))
    return logarithm


def bits_per_spike(predicted: xr.DataArray, response: xr.DataArray) -> xr.DataArray:
    """Gain in Poisson log-likelihood over a constant rate, in bits per spike.

    (LL(predicted) - LL(mean response)) / (spikes · ln 2), over the same frames.

    Args:
        predicted: (frame, ...), expected spikes per bin.
        response: ([repeat,] frame, ...), spikes per bin.

    Returns:
        (...), NaN without spikes or if a prediction is negative.

    Example:
        >>> counts = xr.DataArray([0.0, 4.0], dims="frame")
        >>> [float(bits_per_spike(p, counts)) for p in (counts, counts * 0 + 2)]
        [1.0, 0.0]
    """
    response = response.where(predicted.notnull())
    predicted = predicted.where(response.notnull())
    dims = [dim for dim in ("repeat", "frame") if dim in response.dims]
    spikes, bins = response.sum(dims), response.notnull().sum(dims)
    constant = spikes / bins
    likelihood = (response * _log(predicted.where(response != 0, 1.0)) - predicted).sum(dims)
    null = spikes * np.log(constant.where(spikes > 0)) - spikes
    gain = (likelihood - null) / (spikes.where(spikes > 0) * np.log(2))
    return gain.where(_is_rate(predicted))
