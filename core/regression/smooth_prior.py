"""Gaussian priors of smooth filters, with strength and lengths chosen by evidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]

SHORTEST = 0.05
"""Smallest length of a smooth prior, in frames or checks, which is a prior without smoothness."""


STARTS: list[tuple[float, float]] = [(1.0, 1.0), (3.0, 3.0), (1.0, 4.0)]
"""Lengths in time and space from which the search for the largest evidence begins."""


@dataclass(frozen=True)
class SmoothPrior:
    """Independent Gaussian priors of the coefficients of a filter in the cosine basis.

    The coefficient of the frequencies (w_t, w_y, w_x), in radians per frame and per check, has the
    variance variance · exp(-(time² w_t² + space² (w_y² + w_x²)) / 2). This is the prior of
    automatic smoothness determination (Sahani & Linden 2003), whose covariance of two filter
    values decreases as a Gaussian with their distance in time and space, with reflecting borders.

    Attributes:
        variance: of the coefficient of frequency 0, in squared units of the filter.
        time: the length in frames over which the filter is smooth.
        space: the length in checks over which the filter is smooth.

    Example:
        >>> prior = SmoothPrior(variance=2.0, time=3.0, space=1.0)
        >>> prior.over_time(5).round(3).tolist()
        [1.0, 0.169, 0.001, 0.0, 0.0]
    """

    variance: float
    time: float
    space: float

    def over_time(self, lags: int) -> Array:
        """The relative variances (lag frequency,) of the temporal coefficients."""
        return _spectrum(self.time, frequencies(lags) ** 2)

    def over_space(self, shape: tuple[int, ...]) -> Array:
        """The relative variances ([channel,] y, x) of the spatial coefficients."""
        return _spectrum(self.space, squared_frequencies(shape))

    def shrinkage(self, power: Array, noise: float) -> Array:
        """The posterior means of the coefficients, relative to their estimates without prior.

        Args:
            power: (lag, [channel,] y, x), of the stimulus in the cosine basis.
            noise: as for `most_probable_prior`.
        """
        signal = self.variance * power * self.relative(power.shape)
        return signal / (signal + noise)

    def relative(self, shape: tuple[int, ...]) -> Array:
        """The relative variances of all coefficients (lag, [channel,] y, x)."""
        time = self.over_time(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        return time * self.over_space(shape[1:])


def frequencies(size: int) -> Array:
    """The frequencies (size,) of the cosine basis, in radians per sample.

    Example:
        >>> frequencies(2).round(3).tolist()
        [0.0, 1.571]
    """
    return np.pi * np.arange(size) / size


def squared_frequencies(shape: tuple[int, ...]) -> Array:
    """The squared spatial frequencies of the cosine basis of images ([channel,] y, x).

    Example:
        >>> squared_frequencies((2, 2)).round(2).tolist()
        [[0.0, 2.47], [2.47, 4.93]]
    """
    y, x = (frequencies(size) ** 2 for size in shape[-2:])
    return np.broadcast_to(y[:, None] + x, shape)


def _spectrum(length: float, squared: Array) -> Array:
    return np.exp(-0.5 * length**2 * squared)


def most_probable_prior(
    coefficients: Array,
    power: Array,
    noise: float,
    lengths: tuple[float, float] | None = None,
    starts: Sequence[tuple[float, float]] = STARTS,
) -> SmoothPrior:
    """The prior that maximises the evidence of a response-weighted average of the stimulus.

    The coefficients of the average are a = S k + e with the filter k, the power S of the stimulus
    and noise e of variance S · noise. They are independent in the cosine basis, for white and
    approximately for other stationary stimuli, so that the evidence is a product of Gaussians
    N(a; 0, S (S V + noise)) with the variances V of the prior.

    Args:
        coefficients: a (lag, [channel,] y, x), the covariance of response and stimulus over the
            mean response, in the cosine basis.
        power: S, of the same shape.
        noise: the variance of the mean-subtracted response over its squared mean and the number of
            frames.
        lengths: of the prior in time and space; by default, those of the largest evidence.
        starts: the lengths from which the search begins.

    Example:
        >>> from scipy.fft import dctn
        >>> field = np.zeros((6, 12, 12))
        >>> field[2, 4:8, 4:8] = 1.0
        >>> noisy = field + 0.3 * np.random.default_rng(0).normal(size=field.shape)
        >>> prior = most_probable_prior(dctn(noisy, norm="ortho"), np.ones(field.shape), 0.09)
        >>> 0.5 < prior.space < 3
        True
    """
    shape = coefficients.shape
    time = (frequencies(shape[0]) ** 2).reshape(-1, *[1] * (len(shape) - 1))
    space = squared_frequencies(shape[1:])
    floor = power * noise

    def surprise(log: Array) -> tuple[float, Array]:
        variance, of_time, of_space = np.exp(log)
        signal = variance * power**2 * np.exp(-0.5 * (of_time**2 * time + of_space**2 * space))
        total = signal + floor
        ratio = coefficients**2 / total
        slope = signal * (1 - ratio) / total
        gradient = [
            slope.sum(),
            -(of_time**2) * (slope * time).sum(),
            -(of_space**2) * (slope * space).sum(),
        ]
        return 0.5 * float((np.log(total) + ratio).sum()), 0.5 * np.array(gradient)

    longest = [max(2.0, shape[0]), max(2.0, *shape[-2:])]
    best = None
    for start in starts if lengths is None else [lengths]:
        initial = SmoothPrior(1.0, *start)
        relative = initial.relative(shape)
        excess = float((relative * (coefficients**2 - floor)).sum())
        smallest = 1e-6 * noise / float(power.mean())
        variance = max(excess / float((relative**2 * power**2).sum()), smallest)
        bounds = [(np.log(smallest), np.log(1e4 * variance))] + [
            (np.log(SHORTEST), np.log(most)) if lengths is None else (np.log(length),) * 2
            for most, length in zip(longest, start, strict=True)
        ]
        guess = np.clip(np.log([variance, *start]), *np.transpose(bounds))
        found = minimize(surprise, guess, jac=True, method="L-BFGS-B", bounds=bounds)
        if best is None or found.fun < best.fun:
            best = found
    assert best is not None
    return SmoothPrior(*(float(value) for value in np.exp(best.x)))
