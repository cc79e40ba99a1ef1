"""Refinement of the filters of a quadratic model by likelihood."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from retinakit.regression.nonlinearity import Nonlinearity

Array = NDArray[np.float64]

MOST_STEPS = 100
"""Largest number of steps of L-BFGS."""

PATIENCE = 8
"""The refinement ends after this number of steps without a lower validation loss."""


def filter_history(seen: NDArray[np.float32], filters: Array) -> NDArray[np.float32]:
    """Filters a stimulus that is given as scalar products with images.

    Args:
        seen: (frame, image).
        filters: (filter, lag, image).

    Returns:
        (frame, filter), with 0 for the stimulus before the first frame.

    Example:
        >>> seen = np.array([[1.0], [0.0], [0.0]], np.float32)
        >>> filter_history(seen, np.array([[[0.5], [2.0]]])).ravel().tolist()
        [0.5, 2.0, 0.0]
    """
    filtered = np.zeros((len(seen), len(filters)), np.float32)
    for lag in range(filters.shape[1]):
        filtered[lag:] += seen[: len(seen) - lag] @ filters[:, lag].T.astype(np.float32)
    return filtered


@dataclass(frozen=True)
class Histories:
    """The stimulus in the basis of the filters, and the responses of a cell.

    Attributes:
        seen: (frame, image), the stimulus as scalar products with images.
        response: (frame,), 0 where it is not used.
        used: (frame,) whether a frame has a full history and a response.

    Example:
        >>> data = Histories(np.zeros((5, 2), np.float32), np.ones(5), np.ones(5, bool))
    """

    seen: NDArray[np.float32]
    response: Array
    used: NDArray[np.bool_]

    def filtered(self, filters: Array) -> NDArray[np.float32]:
        """The scalar products (frame, filter) of filters (filter, lag, image) with the history."""
        return filter_history(self.seen, filters)

    def correlation(self, weights: Array, lags: int) -> Array:
        """The sums (filter, lag, image) over frames of weights (frame, filter) · history."""
        narrow = weights.T.astype(np.float32)
        frames = len(self.seen)
        sums = [narrow[:, lag:] @ self.seen[: frames - lag] for lag in range(lags)]
        return np.stack(sums, 1).astype(float)


@dataclass(frozen=True)
class QuadraticForm:
    """The drive offset + weight_0 · (filter_0 · s) + Σ_j weight_j · (filter_j · s)².

    Attributes:
        filters: (1 + component, lag, image), the linear filter first.
        weights: (1 + component,).
        offset: of the drive.
        shape: the parameters of the nonlinearity.

    Example:
        >>> form = QuadraticForm(np.ones((2, 1, 1)), np.array([0.5, 2.0]), -1.0, np.zeros(0))
        >>> form.drive(np.array([[1.0, 3.0]])).tolist()
        [17.5]
    """

    filters: Array
    weights: Array
    offset: float
    shape: Array

    def drive(self, filtered: NDArray[Any]) -> Array:
        """The drive (frame,) from the filtered stimulus (frame, 1 + component)."""
        squared = np.c_[filtered[:, :1], filtered[:, 1:] ** 2]
        drive: Array = squared @ self.weights + self.offset
        return drive


def refine(
    form: QuadraticForm,
    whitening: Array,
    nonlinearity: Nonlinearity,
    train: Histories,
    held_out: Histories,
) -> tuple[QuadraticForm, list[float]]:
    """Maximises the Poisson likelihood of a quadratic model over all its parameters.

    The axes of the spike-triggered covariance are consistent but not efficient; the likelihood
    makes better use of the spikes (Park & Pillow 2011). The steps are those of L-BFGS in whitened
    coordinates, in which the filters of the covariance are the start. Early stopping is the
    regularisation: the result has the lowest validation loss of all steps, the start included.

    Args:
        form: the start. The signs of the weights of squared filters are kept.
        whitening: (lag · image, lag · image), symmetric; filters are whitened filters times it.
        nonlinearity: of the drive.
        train: the data of the likelihood.
        held_out: the data of the validation loss, with at least one used frame.

    Returns:
        The best parameters, and the validation loss of the start and after each step.

    Example:
        >>> from retinakit.regression import Softplus
        >>> random = np.random.default_rng(0)
        >>> seen = random.standard_normal((2000, 3)).astype(np.float32)
        >>> spikes = random.poisson(0.3 * seen[:, 0] ** 2).astype(float)
        >>> data = Histories(seen, spikes, np.ones(2000, bool))
        >>> axes = np.array([[0.0, 0, 1], [0.8, 0.6, 0]])[:, None]
        >>> offset, shape = Softplus().start(0.3)
        >>> start = QuadraticForm(axes, np.array([0.0, 0.3]), offset, shape)
        >>> best, losses = refine(start, np.eye(3), Softplus(), data, data)
        >>> bool(abs(best.filters[1, 0, 0]) > 0.95), losses[0] > min(losses)
        (True, True)
    """
    parts, lags, images = form.filters.shape
    signs = np.where(form.weights < 0, -1.0, 1.0)
    signs[0] = 1.0
    unwhitening = np.asarray(np.linalg.inv(whitening), float)

    def packed(form: QuadraticForm) -> Array:
        # The absolute weights are the norms of the filters.
        scale = np.r_[form.weights[:1], np.sqrt(np.abs(form.weights[1:]))]
        whitened = form.filters.reshape(parts, -1) @ unwhitening * scale[:, None]
        return np.concatenate([whitened.ravel(), [form.offset], form.shape])

    def unpacked(values: Array) -> QuadraticForm:
        whitened, rest = np.split(values, [parts * lags * images])
        filters = (whitened.reshape(parts, -1) @ whitening).reshape(parts, lags, images)
        return QuadraticForm(filters, signs, float(rest[0]), rest[1:])

    def loss(values: Array) -> tuple[float, Array]:
        form = unpacked(values)
        filtered = train.filtered(form.filters)
        with np.errstate(over="ignore", invalid="ignore"):
            rate, slope, by_shape = nonlinearity(form.drive(filtered)[train.used], form.shape)
            total, residual = _poisson(rate, train.response[train.used])
        if not np.isfinite(total):
            return np.inf, np.zeros_like(values)
        by_drive = np.zeros(len(filtered))
        by_drive[train.used] = residual * slope
        by_filtered = np.c_[np.ones(len(filtered)), 2 * filtered[:, 1:]] * signs
        by_filters = train.correlation(by_filtered * by_drive[:, None], lags)
        gradient = np.concatenate(
            [
                (by_filters.reshape(parts, -1) @ whitening).ravel(),
                [by_drive.sum()],
                residual @ by_shape,
            ]
        )
        number = int(train.used.sum())
        return total / number, gradient / number

    def validation(values: Array) -> float:
        form = unpacked(values)
        rate, _, _ = nonlinearity(
            form.drive(held_out.filtered(form.filters))[held_out.used], form.shape
        )
        total, _ = _poisson(rate, held_out.response[held_out.used])
        return total / int(held_out.used.sum())

    best = packed(form)
    losses = [validation(best)]

    def after_step(values: Array) -> None:
        nonlocal best
        losses.append(validation(values))
        if losses[-1] == min(losses):
            best = values.copy()
        if len(losses) > int(np.argmin(losses)) + PATIENCE:
            raise StopIteration

    minimize(
        loss,
        best,
        jac=True,
        method="L-BFGS-B",
        callback=after_step,
        options={"maxiter": MOST_STEPS},
    )
    return _normalised(unpacked(best), unwhitening), losses


def _poisson(rate: Array, response: Array) -> tuple[float, Array]:
    """The Poisson loss and its derivative by the rate (frame,)."""
    rate = np.maximum(rate, 1e-12)
    return float(rate.sum() - response @ np.log(rate)), 1 - response / rate


def _normalised(form: QuadraticForm, unwhitening: Array) -> QuadraticForm:
    """The same form with filters that are unit vectors in whitened coordinates."""
    whitened = form.filters.reshape(len(form.filters), -1) @ unwhitening
    norms = np.maximum(np.linalg.norm(whitened, axis=1), 1e-30)
    weights = form.weights * np.r_[norms[:1], norms[1:] ** 2]
    return QuadraticForm(form.filters / norms[:, None, None], weights, form.offset, form.shape)
