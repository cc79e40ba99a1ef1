"""Distribution of spike counts in a generalized linear model."""

from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]

LOWEST = 1e-12
"""Rates are at least this, in spikes per bin."""

HIGHEST = 1e6
"""Rates are at most this, in spikes per bin."""

njit = numba.njit(cache=True, nogil=True)


@njit
def _limits(rate: float, largest: int) -> tuple[float, float, float]:
    """The probabilities of less than `largest` spikes, of one less, and of as many or more."""
    one, below = np.exp(-rate), 0.0
    for number in range(1, largest + 1):
        below += one
        if number < largest:
            one *= rate / number
    if rate >= largest:
        return below, one, 1.0 - below
    term = one * rate / largest  # the tail is added up, because 1 - below loses its digits
    tail, number = 0.0, largest
    while term > 1e-17 * tail and term > 0:
        tail += term
        number += 1
        term *= rate / number
    return below, one, tail


@njit
def _mean(rate: NDArray[np.float64], largest: int, mean: NDArray[np.float64]) -> None:
    for i in range(len(rate)):
        below, one, tail = _limits(rate[i], largest)
        mean[i] = rate[i] * (below - one) + largest * tail


@njit
def _below(rate: NDArray[np.float64], largest: int, below: NDArray[np.float64]) -> None:
    for i in range(len(rate)):
        below[i] = _limits(rate[i], largest)[0]


@njit
def _loss(rate: NDArray[np.float64], count: NDArray[np.float64], largest: int) -> float:
    total = 0.0
    for i in range(len(rate)):
        if count[i] < largest:
            total += rate[i] - count[i] * np.log(rate[i])
        else:
            total -= np.log(max(_limits(rate[i], largest)[2], 1e-300))
    return total


@njit
def _slopes(
    rate: NDArray[np.float64],
    count: NDArray[np.float64],
    largest: int,
    first: NDArray[np.float64],
    second: NDArray[np.float64],
) -> None:
    """The derivative of the loss by the rate, and its expected second derivative."""
    for i in range(len(rate)):
        r = rate[i]
        below, one, tail = _limits(r, largest)
        above = one / max(tail, 1e-300)  # the derivative of log(tail)
        first[i] = 1 - count[i] / r if count[i] < largest else -above
        # The sum over the counts below the largest one of p (1 - count / r)².
        one_less = below - one
        two_less = one_less - one * (largest - 1) / r
        inside = two_less + one_less / r - 2 * one_less + below
        second[i] = max(inside + one * above, 0.0)


@dataclass(frozen=True)
class CountModel:
    """The distribution of a spike count given the drive u of its bin.

    The count is Poisson distributed with the rate r = f(u), and limited to `largest`: a count of
    this size stands for this many spikes or more. With `largest` = 1 this is the Bernoulli
    distribution with the probability 1 - exp(-r) of a spike.

    Attributes:
        nonlinearity: f, "exponential" or "softplus", log(1 + exp(u)).
        largest: the largest count of a bin, an integer; None for a Poisson distribution without
            limit.

    Example:
        >>> drive = np.log([0.1, 1.0, 100.0])
        >>> CountModel(largest=5).mean(drive).round(3).tolist()
        [0.1, 0.999, 5.0]
    """

    nonlinearity: Literal["exponential", "softplus"] = "exponential"
    largest: int | None = None

    def rate(self, drive: Array) -> Array:
        """The rate (frame,) in spikes per bin."""
        if self.nonlinearity == "exponential":
            return np.exp(np.clip(drive, np.log(LOWEST), np.log(HIGHEST)))
        return np.clip(np.logaddexp(0, drive), LOWEST, HIGHEST)

    def drive(self, rate: float) -> float:
        """The drive of a rate."""
        rate = float(np.clip(rate, LOWEST, HIGHEST))
        if self.nonlinearity == "exponential":
            return float(np.log(rate))
        return float(np.log(np.expm1(rate))) if rate < 30 else rate

    def mean(self, drive: Array) -> Array:
        """The expected count (...)."""
        rate = self.rate(drive)
        if self.largest is None:
            return rate
        mean = np.empty(rate.size)
        _mean(rate.ravel(), self.largest, mean)
        return mean.reshape(rate.shape)

    def slope_of_mean(self, drive: Array) -> Array:
        """The derivative (...) of the expected count by the drive."""
        rate = self.rate(drive)
        by_drive = rate if self.nonlinearity == "exponential" else expit(drive)
        if self.largest is None:
            return by_drive
        below = np.empty(rate.size)  # the probability of a count below the largest one
        _below(rate.ravel(), self.largest, below)
        return by_drive * below.reshape(rate.shape)

    def rate_of(self, mean: Array) -> Array:
        """The rates (...) that have given expected counts, up to 1000 times the largest count."""
        if self.largest is None:
            return mean
        rates = np.geomspace(1e-9, 1e3 * self.largest, 20_000)
        logarithm = CountModel("exponential", self.largest)
        found: Array = np.interp(mean, logarithm.mean(np.log(rates)), rates)
        return np.where(np.isnan(mean), np.nan, np.where(mean < rates[0], mean, found))

    def loss(self, drive: Array, count: Array) -> float:
        """The negative log-likelihood in nats, without the terms that do not depend on the rate.

        Args:
            drive: (frame,).
            count: (frame,).
        """
        rate = self.rate(drive)
        if self.largest is None:
            return float((rate - count * np.log(rate)).sum())
        return float(_loss(rate, count, self.largest))

    def slopes(self, drive: Array, count: Array) -> tuple[Array, Array]:
        """The derivative of the loss by the drive (frame,) and its expected second derivative."""
        rate = self.rate(drive)
        by_drive = rate if self.nonlinearity == "exponential" else expit(drive)
        if self.largest is None:
            first, second = 1 - count / rate, 1 / rate
        else:
            first, second = np.empty(len(rate)), np.empty(len(rate))
            _slopes(rate, count, self.largest, first, second)
        return by_drive * first, by_drive**2 * second
