"""The space of smooth filters of each cell: region, bases, and prior, from a weighted average."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.fft import dctn, idct
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter

from retinakit.contracts.frame_blocks import Reader, blocks
from retinakit.contracts.recording import full_history, mean_response
from retinakit.regression.projection import Images, Region, cosine_images, order_of_frequencies
from retinakit.regression.smooth_prior import (
    SHORTEST,
    STARTS,
    SmoothPrior,
    most_probable_prior,
)
from retinakit.spikes import sta

Array = NDArray[np.float64]

NEGLIGIBLE = 0.01
"""Coefficients whose posterior mean is below this fraction of their estimate are left out."""

MARGIN = 4 / 3
"""The region is larger than that of the largest evidence by this factor: a stationary prior
underestimates the extent of weak surrounds."""

HALVES = (0, 1, 2, 3, 4, 5, 6, 8, 11, 15, 20, 27, 36, 48, 64)
"""Half sides, in checks, of the regions that are compared."""

KNOTS = 2.5
"""Distance of the knots of splines, in frames or checks."""

WINDOWS = 500
"""Largest number of stimulus histories from which the power of the stimulus is estimated."""

WINDOW_BYTES = 2**28
"""Largest size in bytes of these histories."""


@dataclass(frozen=True)
class FilterSpace:
    """The filters that are possible for a cell, with their prior.

    A filter is courses @ W @ images.T in the region and 0 outside. The prior variance of W_ij is
    variance / (temporal_i · spatial_j).

    Attributes:
        region: rows and columns of the stimulus.
        courses: (lag, i), the orthonormal temporal basis.
        images: the orthonormal spatial basis in the region.
        temporal, spatial: relative precisions (i,), (j,).
        variance: of a coefficient with precision 1.
        start: (i, j), the posterior mean of W for the linear model of the response over `scale`.
        scale: the mean of the response, or its standard deviation if it is signed.

    Example:
        >>> from retinakit.testing import small_recording
        >>> of = averages(small_recording()["train"].to_dataset(), lags=3)
        >>> (space,) = filter_spaces(of, 0, side=8, basis="pixel")
        >>> space.courses.shape, space.images.number
        ((3, 3), 49)
    """

    region: Region
    courses: Array
    images: Images
    temporal: Array
    spatial: Array
    variance: float
    start: Array
    scale: float

    def kernel(self, weights: Array, shape: tuple[int, ...]) -> Array:
        """The filter (lag, [channel,] y, x) with the weights W (i, j).

        Args:
            weights: W.
            shape: of a frame of the stimulus, ([channel,] y, x).
        """
        kernel = np.zeros((len(self.courses), *shape))
        inside = kernel[..., *self.region]
        inside[:] = (self.courses @ weights @ self.images.matrix().T).reshape(inside.shape)
        return kernel


@dataclass(frozen=True)
class Averages:
    """The covariance of each cell's response with the stimulus, over the response's scale.

    Attributes:
        field: (cell, lag, [channel,] y, x), NaN-free.
        scale: (cell,) the mean response, or the mean absolute deviation of a signed response.
        noise: (cell,) the variance of the response over its squared scale and number of frames.
        centre: ([channel,] y, x) the mean frame.
        histories: (window, lag, [channel,] y, x) stimulus histories from all parts of the
            recording, minus the mean frame.
        variance: of the stimulus.

    Example:
        >>> from retinakit.testing import small_recording
        >>> of = averages(small_recording()["train"].to_dataset(), lags=3)
        >>> bool((of.noise > 0).all()), of.centre.shape
        (True, (8, 8))
    """

    field: Array
    scale: Array
    noise: Array
    centre: Array
    histories: NDArray[np.float32]
    variance: float


def averages(split: xr.Dataset, lags: int) -> Averages:
    """The averages of which `filter_spaces` finds the region and prior of each cell.

    Args:
        split: of a recording, with `response`.
        lags: the number of lags.

    Example:
        >>> from retinakit.testing import small_recording
        >>> averages(small_recording()["train"].to_dataset(), lags=3).field.shape
        (2, 3, 8, 8)
    """
    full = full_history(split["segment"], lags)
    response = np.asarray(mean_response(split), float)
    known = np.isfinite(response) & full[:, None]
    number = np.maximum(known.sum(0), 1)
    mean = np.where(known, response, 0).sum(0) / number
    deviation = np.where(known, response - mean, 0)
    signed = np.where(known, response < 0, False).any(0)
    scale = np.where(signed, np.abs(deviation).sum(0) / number, mean)
    scale = np.where(scale > 0, scale, 1.0)
    # A silent cell has the noise of a cell of one spike in each frame.
    variance = np.maximum((deviation**2).sum(0) / number, scale**2 / number)
    average = np.asarray(sta(split, lags)["sta"], float)
    centre, histories = _frames(split["stimulus"], full, lags)
    # The average of a signed response is a covariance, from which no mean is to be subtracted.
    average[~signed] -= centre
    return Averages(
        field=np.nan_to_num(average),
        scale=scale,
        noise=variance / (number * scale**2),
        centre=centre,
        histories=histories,
        variance=max(float((histories**2).mean(dtype=float)), 1e-30),
    )


def _frames(
    stimulus: xr.DataArray, full: NDArray[np.bool_], lags: int
) -> tuple[Array, NDArray[np.float32]]:
    """The mean frame, and evenly spaced stimulus histories minus the mean frame, in one pass."""
    shape = stimulus.shape[1:]
    number = min(WINDOWS, max(1, WINDOW_BYTES // (4 * lags * int(np.prod(shape)))))
    ends = np.flatnonzero(full)
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, number).astype(int))]
    histories = np.empty((len(ends), lags, *shape), np.float32)
    total, done = np.zeros(shape), 0
    reader = Reader(stimulus, lags - 1)
    for part in blocks(stimulus, lags - 1):
        frames = reader[part]
        total += frames[done - part.start :].sum(0, dtype=float)
        first, last = np.searchsorted(ends, (done, part.stop))
        for window, end in enumerate(ends[first:last] - part.start, first):
            histories[window] = frames[end - lags + 1 : end + 1][::-1]
        done = part.stop
    centre = total / len(stimulus)
    histories -= centre.astype(np.float32)
    return centre, histories


def filter_spaces(
    of: Averages, cell: int, *, side: int, basis: str, factors: Sequence[float] = (1.0,)
) -> list[FilterSpace]:
    """The spaces of the filters of a cell, one for each factor of the length of smoothness.

    The region is a square about the peak of the smoothed average, as large as it is most probable
    in the white-noise model of `most_probable_prior`, with a margin.

    Args:
        of: of the recording.
        cell: the index of the cell.
        side: the largest side of the region, in checks.
        basis: "cosine" with the prior of automatic smoothness determination, "spline" for cubic
            splines, or "pixel" for independent values.
        factors: of the lengths that maximise the evidence (of the knots' distance for splines).

    Returns:
        The spaces, with the same region. Except for splines, each has the first of the same images.

    Example:
        >>> from retinakit.testing import small_recording
        >>> of = averages(small_recording()["train"].to_dataset(), lags=3)
        >>> space, = filter_spaces(of, 0, side=40, basis="cosine")
        >>> space.start.shape == (space.courses.shape[1], space.images.number)
        True
    """
    field, noise = of.field[cell], float(of.noise[cell])
    region = _region(field, noise, of.variance, side)
    inside, histories = field[..., *region], of.histories[..., *region]
    if basis == "spline":
        found = [_spline_space(inside, histories, noise, KNOTS * factor) for factor in factors]
    else:
        coefficients, power = _cosine(inside, lag=0), _power(_cosine(histories, lag=1))
        fixed = None if basis == "cosine" else (SHORTEST, SHORTEST)
        smooth = most_probable_prior(coefficients, power, noise, fixed)
        priors = []
        for factor in factors:
            time, space = (max(factor * n, SHORTEST) for n in (smooth.time, smooth.space))
            priors.append(most_probable_prior(coefficients, power, noise, (time, space)))
        found = _cosine_spaces(coefficients, power, noise, priors)
    return [FilterSpace(region, *one, float(of.scale[cell])) for one in found]


def _cosine(fields: NDArray[Any], lag: int) -> NDArray[Any]:
    """The coefficients in the cosine basis, of fields whose dimension `lag` has this number."""
    coefficients: NDArray[Any] = dctn(
        fields, axes=(lag, fields.ndim - 2, fields.ndim - 1), norm="ortho"
    )
    return coefficients


def _power(coefficients: NDArray[Any]) -> Array:
    """The power of the stimulus from the coefficients of its histories (window, ...)."""
    power: Array = (coefficients**2).mean(0, dtype=float)
    return np.maximum(power, 1e-6 * max(float(power.mean()), 1e-30))


def _region(field: Array, noise: float, variance: float, side: int) -> Region:
    rows, columns = field.shape[-2:]
    smooth = gaussian_filter(field, [1.0, *[0.0] * (field.ndim - 3), 1.0, 1.0])
    energy = (smooth**2).sum(tuple(range(field.ndim - 2)))
    y, x = (int(i) for i in np.unravel_index(energy.argmax(), energy.shape))
    floor = variance * noise
    values = int(np.prod(field.shape[:-2]))
    outside = 0.5 * (values * np.log(floor) + (field**2).sum(tuple(range(field.ndim - 2))) / floor)

    def square(half: int) -> Region:
        def part(centre: int, size: int) -> slice:
            # A region at a border keeps its side.
            length = min(2 * half + 1, side, size)
            begin = min(max(centre - length // 2, 0), size - length)
            return slice(begin, begin + length)

        return part(y, rows), part(x, columns)

    best: tuple[float, int] | None = None
    starts = STARTS
    sides = [half for half in HALVES if half <= max(rows, columns, 1)]
    for half in sides:
        region = square(half)
        inside = _cosine(field[..., *region], lag=0)
        power = np.full(inside.shape, variance)
        prior = most_probable_prior(inside, power, noise, starts=starts)
        starts = [(prior.time, prior.space)]
        total = power * (prior.variance * power * prior.relative(inside.shape) + noise)
        surprise = 0.5 * float((np.log(total) + inside**2 / total).sum())
        surprise += float(outside.sum() - outside[region].sum())
        if best is None or surprise < best[0]:
            best = surprise, half
        if all(
            r.stop - r.start == min(n, side) for r, n in zip(region, (rows, columns), strict=True)
        ):
            break
    assert best is not None
    return square(int(np.ceil(MARGIN * best[1])))


Found = tuple[Array, Images, Array, Array, float, Array]


def _cosine_spaces(
    coefficients: Array, power: Array, noise: float, priors: Sequence[SmoothPrior]
) -> list[Found]:
    lags, shape = len(coefficients), coefficients.shape[1:]
    order = order_of_frequencies(shape)
    over = tuple(range(1, coefficients.ndim))
    shrinkages = [prior.shrinkage(power, noise) for prior in priors]
    numbers = [_needed(shrinkage.max(0).ravel()[order]) for shrinkage in shrinkages]
    images = cosine_images(shape, max(numbers))
    found = []
    for prior, shrinkage, number in zip(priors, shrinkages, numbers, strict=True):
        times, first = _needed(shrinkage.max(over)), order[:number]
        posterior = (coefficients / power * shrinkage).reshape(lags, -1)
        found.append(
            (
                idct(np.eye(lags)[:, :times], axis=0, norm="ortho"),
                images.first(number),
                1 / prior.over_time(lags)[:times],
                1 / prior.over_space(shape).ravel()[first],
                prior.variance,
                posterior[:times, first],
            )
        )
    return found


def _needed(shrinkage: Array) -> int:
    """The number of first coefficients that are not negligible, at least 1."""
    above = np.flatnonzero(shrinkage > NEGLIGIBLE)
    return int(above[-1]) + 1 if len(above) else 1


def _spline_space(
    inside: Array, histories: NDArray[np.float32], noise: float, distance: float
) -> Found:
    lags, shape = len(inside), inside.shape[1:]
    courses = spline_basis(lags, distance)
    y, x = (spline_basis(size, distance) for size in shape[-2:])
    number = int(np.prod(shape[:-2])) * y.shape[1] * x.shape[1]
    images = Images(y, x, np.arange(number), shape)
    matrix = images.matrix()

    def projected(fields: NDArray[Any]) -> NDArray[Any]:
        flat = fields.reshape(*fields.shape[: -len(shape)], -1)
        return np.einsum("li,...lp->...ip", courses, flat) @ matrix

    coefficients, power = projected(inside), _power(projected(histories))
    # A prior without smoothness, for which the coefficients are in no particular order.
    prior = most_probable_prior(coefficients[:, None], power[:, None], noise, (SHORTEST, SHORTEST))
    shrinkage = prior.shrinkage(power[:, None], noise)[:, 0]
    return (
        courses,
        images,
        np.ones(courses.shape[1]),
        np.ones(number),
        prior.variance,
        coefficients / power * shrinkage,
    )


def spline_basis(size: int, distance: float) -> Array:
    """An orthonormal basis of cubic splines with equidistant knots.

    Args:
        size: the number of samples.
        distance: of the knots, in samples.

    Returns:
        (size, function).

    Example:
        >>> basis = spline_basis(20, distance=4)
        >>> basis.shape, bool(np.allclose(basis.T @ basis, np.eye(basis.shape[1])))
        ((20, 8), True)
    """
    inner = max(1, round((size - 1) / distance))
    if inner + 3 >= size:
        return np.eye(size)
    places = np.linspace(0, size - 1, inner + 1)
    knots = np.r_[[0] * 3, places, [size - 1] * 3]
    design: Any = BSpline.design_matrix(np.arange(size, dtype=float), knots, 3).toarray()
    return np.linalg.qr(design)[0]
