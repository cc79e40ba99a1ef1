"""Output nonlinearities of models of few parameters, with their derivatives."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.optimize import minimize, nnls
from scipy.special import expit, xlogy

Array = NDArray[np.float64]


class Nonlinearity(ABC):
    """A function from the drive to the expected response, with parameters of its own.

    Example:
        >>> class Squared(Nonlinearity):
        ...     number = 0
        ...
        ...     def __call__(self, drive, parameters):
        ...         return drive**2, 2 * drive, np.empty((len(drive), 0))
        ...
        ...     def start(self, mean):
        ...         return mean**0.5, np.zeros(0)
        >>> Squared()(np.array([3.0]), np.zeros(0))[0].tolist()
        [9.0]
    """

    number: int
    """The number of its parameters."""

    positive: bool = True
    """Whether its values are positive."""

    @abstractmethod
    def __call__(self, drive: Array, parameters: Array) -> tuple[Array, Array, Array]:
        """Evaluates the function.

        Args:
            drive: (frame,).
            parameters: (number,).

        Returns:
            The expected responses (frame,), their derivatives by the drive (frame,), and by the
            parameters (frame, number).
        """

    @abstractmethod
    def start(self, mean: float) -> tuple[float, Array]:
        """The initial offset of the drive and the parameters.

        Args:
            mean: of the response; above 0 if the values are positive.
        """


class Exponential(Nonlinearity):
    """exp(drive).

    Example:
        >>> rate, slope, _ = Exponential()(np.zeros(1), np.zeros(0))
        >>> float(rate[0]), float(slope[0])
        (1.0, 1.0)
    """

    number = 0

    def __call__(self, drive: Array, parameters: Array) -> tuple[Array, Array, Array]:
        with np.errstate(over="ignore"):
            rate = np.exp(drive)
        return rate, rate, np.empty((len(drive), 0))

    def start(self, mean: float) -> tuple[float, Array]:
        return float(np.log(mean)), np.zeros(0)


class Softplus(Nonlinearity):
    """gain · log(1 + exp(drive)), with the logarithm of the gain as parameter.

    Example:
        >>> rate, slope, _ = Softplus()(np.zeros(1), np.log([2.0]))
        >>> round(float(rate[0]), 4), round(float(slope[0]), 4)
        (1.3863, 1.0)
    """

    number = 1

    def __call__(self, drive: Array, parameters: Array) -> tuple[Array, Array, Array]:
        gain = np.exp(parameters[0])
        rate = gain * np.logaddexp(0, drive)
        return rate, gain * expit(drive), rate[:, None]

    def start(self, mean: float) -> tuple[float, Array]:
        offset = -1.0
        return offset, np.array([np.log(mean / np.logaddexp(0, offset))])


class Identity(Nonlinearity):
    """The drive itself, for responses of any sign.

    Example:
        >>> float(Identity()(np.array([-2.0]), np.zeros(0))[0][0])
        -2.0
    """

    number = 0
    positive = False

    def __call__(self, drive: Array, parameters: Array) -> tuple[Array, Array, Array]:
        return drive, np.ones_like(drive), np.empty((len(drive), 0))

    def start(self, mean: float) -> tuple[float, Array]:
        return mean, np.zeros(0)


class MonotoneSpline(Nonlinearity):
    """A nonnegative, nondecreasing spline (I-splines; Ramsay 1988).

    exp(parameters[0]) + Σ_j exp(parameters[j]) I_j(drive), with integrated cubic splines I_j that
    increase from 0 to 1. Below the first knot the function is constant, above the last it is
    linear.

    Args:
        knots: (knot,) increasing.

    Example:
        >>> spline = MonotoneSpline(np.linspace(-2, 2, 5))
        >>> rate, slope, _ = spline(np.array([-3.0, 0.0, 3.0]), np.zeros(spline.number))
        >>> bool((np.diff(rate) > 0).all()), float(slope[0])
        (True, 0.0)
    """

    def __init__(self, knots: Array):
        self.knots = knots
        self._all = np.r_[[knots[0]] * 3, knots, [knots[-1]] * 3]
        self.number = len(knots) + 2

    def _basis(self, drive: Array) -> tuple[Array, Array]:
        """The functions 1, I_1, ... (frame, number), and their derivatives."""
        inside = np.clip(drive, self.knots[0], self.knots[-1])
        splines = BSpline(self._all, np.eye(self.number), 3)
        # The sum of the last cubic splines, from the j-th one, increases from 0 to 1.
        values = np.cumsum(splines(inside)[:, ::-1], 1)[:, ::-1]
        slopes = np.cumsum(splines.derivative()(inside)[:, ::-1], 1)[:, ::-1]
        slopes[drive < self.knots[0]] = 0
        return values + slopes * (drive - inside)[:, None], slopes

    def __call__(self, drive: Array, parameters: Array) -> tuple[Array, Array, Array]:
        values, slopes = self._basis(drive)
        weights = np.exp(parameters)
        terms = values * weights
        return terms.sum(1), slopes @ weights, terms

    def start(self, mean: float) -> tuple[float, Array]:
        parameters = np.log(np.full(self.number, mean / self.number))
        return float(self.knots.mean()), parameters

    @classmethod
    def fitted(
        cls, drive: Array, response: Array, knots: int, likelihood: str
    ) -> "tuple[MonotoneSpline, Array]":
        """The spline of largest likelihood for given drives, and its parameters.

        The problem is convex in the weights exp(parameters). Drives are averaged in bins.

        Args:
            drive: (frame,).
            response: (frame,).
            knots: the number of knots, equidistant over the drives.
            likelihood: "poisson" or "gaussian".
        """
        low, high = np.quantile(drive, [0.001, 0.999])
        spline = cls(np.linspace(low, max(high, low + 1e-6), knots))
        edges = np.quantile(drive, np.linspace(0, 1, min(1000, len(drive)) + 1))[1:-1]
        place = np.searchsorted(edges, drive)
        number = np.bincount(place, minlength=len(edges) + 1)
        shown = number > 0
        centre, mean = (
            np.bincount(place, of, minlength=len(number))[shown] / number[shown]
            for of in (drive, response)
        )
        number = number[shown]
        basis = spline._basis(centre)[0]
        scale = max(float(np.abs(response).mean()), 1e-12)

        def loss(weights: Array) -> tuple[float, Array]:
            rate = basis @ weights
            if likelihood == "poisson":
                rate = rate + 1e-9 * scale
                value, slope = rate - xlogy(mean, rate), 1 - mean / rate
            else:
                value, slope = (rate - mean) ** 2 / scale**2, 2 * (rate - mean) / scale**2
            return float(number @ value), basis.T @ (number * slope)

        start, _ = nnls(basis * np.sqrt(number)[:, None], mean * np.sqrt(number))
        least = 1e-6 * scale
        found = minimize(
            loss,
            np.maximum(start, least),
            jac=True,
            method="L-BFGS-B",
            bounds=[(least, None)] * spline.number,
        )
        return spline, np.log(found.x)


class Fixed(Nonlinearity):
    """A nonlinearity whose parameters are not fitted.

    Args:
        of: the nonlinearity.
        parameters: of it.

    Example:
        >>> float(Fixed(Softplus(), np.log([2.0]))(np.zeros(1), np.zeros(0))[0][0].round(4))
        1.3863
    """

    number = 0

    def __init__(self, of: Nonlinearity, parameters: Array):
        self.of, self.parameters = of, parameters

    def __call__(self, drive: Array, parameters: Array) -> tuple[Array, Array, Array]:
        rate, slope, _ = self.of(drive, self.parameters)
        return rate, slope, np.empty((len(drive), 0))

    def start(self, mean: float) -> tuple[float, Array]:
        return self.of.start(mean)[0], np.zeros(0)
