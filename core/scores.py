"""Scores of predictions against a known rate, repeated trials, or single-trial spike counts.

All functions take DataArrays with the dimension `frame` and reduce it; other dimensions (`cell`,
sweeps) remain. Scores are not clipped to a range.

The scored frames are the same for every model. Frames in which the observation is NaN are excluded,
and so are the first frames of each segment (coordinate `segment`) up to the first prediction, which
have no full history. If any other prediction is NaN or infinite, the score is NaN. `reason` gives
the reason why a score is NaN.

The Poisson scores (likelihood, loss, deviance, bits) take a negative rate as 0. In a bin without
spikes a negative rate is therefore as good as 0 and not better. In a bin with a spike a rate of 0
or less has a likelihood of 0, so the log-likelihood and the bits are -inf, and loss and deviance
are +inf.
"""

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, ndtri, xlogy

from retinakit.contracts.recording import full_history, segments

NOT_RECORDED = "the cell was not recorded"
"""The `reason` for a cell that was not recorded in the scored frames."""

NOT_PREDICTED = "a prediction is NaN or infinite"
"""The `reason` for a cell whose prediction is missing in a frame with a full history."""

CONSTANT_PREDICTION = "the prediction is constant"
"""The `reason` for a cell without a correlation because its prediction does not vary."""

SPIKE_AT_ZERO_RATE = "a rate of 0 or less is predicted in a bin with a spike"
"""The `reason` for Poisson scores that are infinite."""

RATE_FLOOR = 1e-8
"""Added to the rate in the logarithm of the Poisson loss in training, which keeps it finite."""

SMALLEST_POPULATION = 3
"""Cells of a population correlation; that of two cells is always 1 or -1."""


def checked(predicted: xr.DataArray, lags: int) -> xr.DataArray:
    """A prediction in which missing values in frames with a full history are infinite.

    Scores of a prediction that is NaN from the start of a segment cannot tell a missing value from
    a frame without a full history. With the number of lags they can.

    Args:
        predicted: (frame, ...), with the coordinate `segment` if there are several.
        lags: of the model.

    Example:
        >>> predicted = xr.DataArray([np.nan, np.nan, 0.5], dims="frame")
        >>> checked(predicted, lags=2).values
        array([nan, inf, 0.5])
    """
    frames = predicted.sizes["frame"]
    segment = predicted["segment"] if "segment" in predicted.coords else np.zeros(frames, int)
    full = xr.DataArray(full_history(segment, lags), dims="frame")
    marked: xr.DataArray = predicted.where(predicted.notnull() | ~full, np.inf)
    return marked.transpose(*predicted.dims)


def _scored(predicted: xr.DataArray, observed: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Whether each bin is scored, and whether each cell lacks a prediction in such a bin."""
    others = [dim for dim in predicted.dims if dim != "frame"]
    missing = predicted.isnull().all(others).values
    for part in segments(predicted):
        missing[part] = np.logical_and.accumulate(missing[part])
    scored = observed.notnull() & xr.DataArray(~missing, dims="frame")
    over = [dim for dim in ("repeat", "frame") if dim in (scored & predicted.notnull()).dims]
    return scored, (scored & ~np.isfinite(predicted)).any(over)


def _pair(predicted: xr.DataArray, observed: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Both traces, NaN in the bins that are not scored and throughout for a missing prediction."""
    scored, lacking = _scored(predicted, observed)
    scored = scored & ~lacking
    return predicted.where(scored), observed.where(scored)


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
    coords = {"cell": predicted["cell"].variable}
    if not frames.any():
        empty = xr.DataArray(np.full(predicted.sizes["cell"], np.nan), coords, ("cell",))
        return empty, empty
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
    missing = correlation(*both).isnull().values | np.isnan(values).all(0)
    drawn_values = np.where(missing, 0.0, np.array(values))
    low, high = np.nanpercentile(drawn_values, [2.5, 97.5], axis=0)
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
        predicted: ([repeat,] frame, ...).
        observed: ([repeat,] frame, ...).

    Returns:
        (...), "" where the correlation is defined.

    Example:
        >>> dims = ("frame", "cell")
        >>> predicted = xr.DataArray([[0.1, 0.1], [0.2, 0.1]], dims=dims)
        >>> reason(predicted, xr.DataArray([[0.0, 0.0], [1.0, 1.0]], dims=dims)).values.tolist()
        ['', 'the prediction is constant']
    """
    if "repeat" in observed.dims:
        observed = observed.mean("repeat")
    if "repeat" in predicted.dims:
        predicted = predicted.mean("repeat")
    recorded = observed.notnull().any("frame")
    lacking = _scored(predicted, observed)[1]
    predicted, observed = _pair(predicted, observed)
    reasons = {
        NOT_RECORDED: ~recorded,
        NOT_PREDICTED: lacking,
        "no response in a frame with a full history": observed.isnull().all("frame"),
        "the response is constant": ~_deviation(observed)[1],
        CONSTANT_PREDICTION: ~_deviation(predicted)[1],
    }
    holds = xr.broadcast(*reasons.values())
    return holds[0].copy(data=np.select([one.values for one in holds], list(reasons), ""))


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
        (...), at most 1, and negative for a prediction worse than the mean rate; NaN if the rate is
        constant.

    Example:
        >>> rate = xr.DataArray([0.0, 1.0, 2.0, 1.0], dims="frame")
        >>> mean = xr.full_like(rate, 1.0)
        >>> [float(fraction_of_explained_variance(p, rate)) for p in (rate, mean)]
        [1.0, 0.0]
    """
    predicted, rate = _pair(predicted, rate)
    variance = rate.var("frame").where(_deviation(rate)[1])
    return 1 - ((predicted - rate) ** 2).mean("frame") / variance


def mean_squared_error(predicted: xr.DataArray, observed: xr.DataArray) -> xr.DataArray:
    """Mean squared error over frames.

    Args:
        predicted, observed: (frame, ...), in the same units.

    Returns:
        (...), in squared units of the response.

    Example:
        >>> observed = xr.DataArray([0.0, 2.0], dims="frame")
        >>> float(mean_squared_error(observed + 3, observed))
        9.0
    """
    predicted, observed = _pair(predicted, observed)
    return ((predicted - observed) ** 2).mean("frame")


def population_correlation(predicted: xr.DataArray, observed: xr.DataArray) -> xr.DataArray:
    """Pearson correlation over cells between the means over time of prediction and response.

    It says whether the model predicts which cells respond more, whatever their time courses.

    Args:
        predicted, observed: (frame, cell, ...), in the same units.

    Returns:
        (...), NaN for fewer than three cells with responses, if either mean is the same for all
        cells, or if a prediction is missing.

    Example:
        >>> rate = xr.DataArray([[0.0, 1.0, 4.0], [2.0, 1.0, 8.0]], dims=("frame", "cell"))
        >>> float(population_correlation(rate[::-1], rate).round(6))
        1.0
    """
    scored, lacking = _scored(predicted, observed)
    means = [trace.where(scored).mean("frame") for trace in (predicted.where(~lacking), observed)]
    first, second = (
        mean.rename(cell="frame").drop_vars("frame", errors="ignore") for mean in means
    )
    # A missing prediction counts as infinite, so that its cell is not left out.
    first = first.where(first.notnull() | second.isnull(), np.inf)
    return correlation(first, second).where(second.count("frame") >= SMALLEST_POPULATION)


def correlation_of_mean(predicted: xr.DataArray, observed: xr.DataArray) -> xr.DataArray:
    """Pearson correlation over frames between the means over cells (Zheng et al. 2021, Fig 3C).

    It says whether the model predicts the time course of the whole population's response.

    Args:
        predicted, observed: (frame, cell, ...), in the same units.

    Returns:
        (...), NaN if either mean is constant or a prediction is missing. Cells without responses
        are left out of both means.

    Example:
        >>> rate = xr.DataArray([[0.0, 1.0], [1.0, 2.0], [0.0, 0.0]], dims=("frame", "cell"))
        >>> float(correlation_of_mean(rate[:, ::-1], rate).round(6))
        1.0
    """
    lacking = _scored(predicted, observed)[1].any("cell")
    means = [trace.mean("cell") for trace in _pair(predicted, observed)]
    return correlation(*means).where(~lacking)


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
    predicted, response = _pair(predicted, response)
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
    total, power, repeats, _ = _repeats(response)
    return _ceiling(total, power.sum("repeat"), repeats)


def correlation_ceiling_error(response: xr.DataArray) -> xr.DataArray:
    """The standard error of `correlation_ceiling`, by the jackknife over repeats.

    SE² = (n - 1) / n Σ (CC_i - mean CC)², where CC_i is the ceiling without repeat i (Efron & Stein
    1981). It estimates the spread over other draws of the repeats with the same stimulus, and is
    on average somewhat larger.

    Args:
        response: as for `correlation_ceiling`.

    Returns:
        (...), NaN for fewer than three repeats or if a ceiling without a repeat is not defined.

    Example:
        >>> rate = np.random.default_rng(0).gamma(1.0, 1.0, 200)
        >>> counts = np.random.default_rng(1).poisson(rate, (10, 200))
        >>> response = xr.DataArray(counts, dims=("repeat", "frame"))
        >>> 0.002 < float(correlation_ceiling_error(response)) < 0.01
        True
    """
    total, power, repeats, kept = _repeats(response)
    recorded = power.notnull()
    without = _ceiling(total - kept.fillna(0), power.sum("repeat") - power, repeats - 1)
    mean = without.where(recorded).sum("repeat") / repeats.where(repeats > 0)
    squares = ((without - mean) ** 2).where(recorded, 0.0).sum("repeat", skipna=False)
    return (squares * (repeats - 1) / repeats.where(repeats > 2)) ** 0.5


def _repeats(
    response: xr.DataArray,
) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray, xr.DataArray]:
    """The sum over repeats, the variance of each, their number, and the responses that are used."""
    recorded = response.notnull().any("frame")
    repeats = recorded.sum("repeat")
    complete = (response.notnull() | ~recorded).all("repeat") & (repeats > 1)
    response = response.where(complete)
    total = response.sum("repeat").where(complete)
    return total, response.var("frame", ddof=1), repeats, response


def _ceiling(total: xr.DataArray, powers: xr.DataArray, repeats: xr.DataArray) -> xr.DataArray:
    """The ceiling from the sum of repeats, the sum of their variances, and their number."""
    power = total.var("frame", ddof=1)
    signal = (power - powers) / (repeats * (repeats - 1)).where(repeats > 1)
    variance = power / (repeats**2).where(repeats > 1)
    return (signal / variance.where(variance > 0)).where(signal > 0) ** 0.5


def poisson_log_likelihood(predicted: xr.DataArray, response: xr.DataArray) -> xr.DataArray:
    """Mean Poisson log-likelihood per bin, y log p - p - log y!.

    Args:
        predicted: ([repeat,] frame, ...), p, expected spikes per bin; negative ones are taken as 0.
        response: ([repeat,] frame, ...), y, spikes per bin.

    Returns:
        (...), in nats per bin; -inf if a rate is 0 or less in a bin with a spike.

    Example:
        >>> counts = xr.DataArray([0.0, 1.0], dims="frame")
        >>> [float(poisson_log_likelihood(p, counts)) for p in (counts, 1 - counts)]
        [-0.5, -inf]
    """
    terms, response = _poisson_terms(predicted, response)
    return (terms - gammaln(response + 1)).mean(_bins(terms))


def poisson_deviance(predicted: xr.DataArray, response: xr.DataArray) -> xr.DataArray:
    """Mean Poisson deviance per bin, 2 (y log(y / p) - y + p).

    Args:
        predicted: ([repeat,] frame, ...), p, expected spikes per bin; negative ones are taken as 0.
        response: ([repeat,] frame, ...), y, spikes per bin.

    Returns:
        (...), 0 for a prediction equal to the response; inf if a rate is 0 or less in a bin with a
        spike.

    Example:
        >>> counts = xr.DataArray([1.0, 2.0, 3.0], dims="frame")
        >>> [round(float(poisson_deviance(p, counts)), 3) for p in (counts, counts + 1)]
        [0.0, 0.422]
    """
    terms, response = _poisson_terms(predicted, response)
    saturated = xr.apply_ufunc(xlogy, response, response, dask="allowed") - response
    return 2 * (saturated - terms).mean(_bins(terms))


def poisson_loss(predicted: xr.DataArray, response: xr.DataArray) -> xr.DataArray:
    """Mean Poisson loss per bin, p - y log p.

    This is the negative log-likelihood up to a term that depends on the response only. In training
    it has `RATE_FLOOR` in the logarithm, which keeps it finite.

    Args:
        predicted: ([repeat,] frame, ...), p, expected spikes per bin; negative ones are taken as 0.
        response: ([repeat,] frame, ...), y, spikes per bin.

    Returns:
        (...), in nats per bin; inf if a rate is 0 or less in a bin with a spike.

    Example:
        >>> counts = xr.DataArray([1.0, 2.0], dims="frame")
        >>> round(float(poisson_loss(counts, counts)), 3)
        0.807
    """
    terms, _ = _poisson_terms(predicted, response)
    return -terms.mean(_bins(terms))


def bits_per_spike(predicted: xr.DataArray, response: xr.DataArray) -> xr.DataArray:
    """Gain in Poisson log-likelihood over a constant rate, in bits per spike.

    (LL(predicted) - LL(mean response)) / (spikes · ln 2), over the same frames.

    Args:
        predicted: ([repeat,] frame, ...), expected spikes per bin; negative ones are taken as 0.
        response: ([repeat,] frame, ...), spikes per bin.

    Returns:
        (...), NaN without spikes; -inf if a rate is 0 or less in a bin with a spike.

    Example:
        >>> counts = xr.DataArray([0.0, 4.0], dims="frame")
        >>> [float(bits_per_spike(p, counts)) for p in (counts, counts * 0 + 2, 4 - counts)]
        [1.0, 0.0, -inf]
    """
    bits, spikes, _ = _bits_gained(predicted, response)
    return bits / spikes.where(spikes > 0)


def bits_per_second(
    predicted: xr.DataArray, response: xr.DataArray, frame_interval: float
) -> xr.DataArray:
    """Gain in Poisson log-likelihood over a constant rate, in bits per second.

    (LL(predicted) - LL(mean response)) / (bins · frame_interval · ln 2), over the same frames. It
    is `bits_per_spike` times the firing rate, and it is defined without spikes too.

    Args:
        predicted: ([repeat,] frame, ...), expected spikes per bin; negative ones are taken as 0.
        response: ([repeat,] frame, ...), spikes per bin.
        frame_interval: the duration of a bin in seconds.

    Returns:
        (...), -inf if a rate is 0 or less in a bin with a spike.

    Example:
        >>> counts = xr.DataArray([0.0, 4.0], dims="frame")  # 4 spikes of 1 bit each in 0.5 s
        >>> float(bits_per_second(counts, counts, frame_interval=0.25))
        8.0
    """
    bits, _, bins = _bits_gained(predicted, response)
    return bits / (bins.where(bins > 0) * frame_interval)


def _bits_gained(
    predicted: xr.DataArray, response: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """The gain over the mean response in bits, the number of spikes, and the number of bins."""
    terms, response = _poisson_terms(predicted, response)
    over = _bins(terms)
    spikes, bins = response.sum(over, min_count=1), response.notnull().sum(over)
    constant = spikes / bins.where(bins > 0)
    null = xr.apply_ufunc(xlogy, spikes, constant, dask="allowed") - spikes
    return (terms.sum(over, min_count=1) - null) / np.log(2), spikes, bins


def _poisson_terms(
    predicted: xr.DataArray, response: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray]:
    """y log p - p of each scored bin, with negative rates taken as 0, and the responses y there."""
    predicted, response = _pair(predicted.astype(float), response.astype(float))
    rate = predicted.clip(0)
    return xr.apply_ufunc(xlogy, response, rate, dask="allowed") - rate, response


def _bins(terms: xr.DataArray) -> list[str]:
    return [dim for dim in ("repeat", "frame") if dim in terms.dims]


def is_task(response: xr.DataArray) -> bool:
    """Whether responses are decisions: one class of several in each frame that is known.

    Args:
        response: (frame, cell), 1 for the chosen class and 0 for the others in the frames of
            decisions, NaN in all others (see `retinakit.contracts.recording`).

    Example:
        >>> dims = ("frame", "cell")
        >>> is_task(xr.DataArray([[np.nan, np.nan], [0.0, 1.0]], dims=dims))
        True
        >>> is_task(xr.DataArray([[0.0, 2.0], [0.0, 1.0]], dims=dims))
        False
    """
    if response.dims != ("frame", "cell") or response.sizes["cell"] < 2:
        return False
    values = response.values
    known = values[~np.isnan(values).all(1)] if values.dtype.kind == "f" else values
    return bool(len(known) and np.isin(known, (0, 1)).all() and (known.sum(1) == 1).all())


def prediction_units(response: xr.DataArray) -> str:
    """The units of the predictions of responses: their own, or "probability" for decisions.

    Args:
        response: (frame, cell), with the attribute `units`.

    Example:
        >>> rate = xr.DataArray([[0.0, 2.0]], dims=("frame", "cell"), attrs={"units": "Hz"})
        >>> prediction_units(rate), prediction_units(rate / 2)
        ('Hz', 'probability')
    """
    return "probability" if is_task(response) else str(response.attrs.get("units", ""))


def correct(predicted: xr.DataArray, response: xr.DataArray) -> xr.DataArray:
    """Whether the class with the largest prediction is the chosen one, for each decision.

    Args:
        predicted: (frame, cell, ...), larger for a more likely class, such as log odds.
        response: (frame, cell), 1 for the chosen class and 0 for the others; NaN in frames without
            a decision.

    Returns:
        (frame, ...), 1 if it is and 0 if it is not; 1 / n if n classes with the largest prediction
        include the chosen one. NaN in frames without a decision or without a full history, and
        throughout if a prediction is missing.

    Example:
        >>> dims = ("frame", "cell")
        >>> chosen = xr.DataArray([[np.nan, np.nan], [0.0, 1.0], [1.0, 0.0]], dims=dims)
        >>> correct(xr.DataArray([[0.0, 0.0], [0.3, 0.7], [0.4, 0.4]], dims=dims), chosen).values
        array([nan, 1. , 0.5])
    """
    predicted, response = _pair(predicted, response)
    largest = predicted == predicted.max("cell")
    credit = (largest & (response == 1)).sum("cell") / largest.sum("cell").clip(1)
    return credit.where((predicted.notnull() & response.notnull()).all("cell"))


def accuracy(predicted: xr.DataArray, response: xr.DataArray) -> xr.DataArray:
    """Fraction of decisions in which the class with the largest prediction is the chosen one.

    Args:
        predicted, response: as for `correct`.

    Returns:
        (...), NaN without a decision or if a prediction is missing.

    Example:
        >>> dims = ("frame", "cell")
        >>> chosen = xr.DataArray([[0.0, 1.0], [1.0, 0.0]], dims=dims)
        >>> float(accuracy(xr.DataArray([[0.3, 0.7], [0.4, 0.6]], dims=dims), chosen))
        0.5
    """
    return correct(predicted, response).mean("frame")


def binomial_interval(
    fraction: ArrayLike, trials: ArrayLike, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The confidence interval of a fraction of independent trials (Wilson 1927).

    (p + z² / 2n ± z sqrt(p (1 - p) / n + z² / 4n²)) / (1 + z² / n), where z is the quantile of the
    normal distribution at (1 + level) / 2.

    Args:
        fraction: p, such as an accuracy.
        trials: n, of the same shape or one that broadcasts.
        level: the probability that the interval contains the true fraction.

    Returns:
        The lower and the upper bound, NaN without trials.

    Example:
        >>> low, high = binomial_interval(0.9, 100)
        >>> round(float(low), 3), round(float(high), 3)
        (0.826, 0.945)
    """
    p, n = np.asarray(fraction, float), np.asarray(trials, float)
    n = np.where(n > 0, n, np.nan)
    z = ndtri((1 + level) / 2)
    middle = p + z**2 / (2 * n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
