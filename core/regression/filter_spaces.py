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

from retinakit.contracts.frame_blocks import Reader, blocks, first_frames
from retinakit.contracts.recording import full_history, mean_response
from retinakit.regression.projection import Images, Region, cosine_images, order_of_frequencies
from retinakit.regression.smooth_prior import (
    SHORTEST,
    STARTS,
    SmoothPrior,
    most_probable_prior,
    shorter,
)
from retinakit.spikes import response_field, sta

Array = NDArray[np.float64]

NEGLIGIBLE = 0.01
"""Coefficients whose posterior mean is below this fraction of their estimate are left out."""

MARGIN = 4 / 3
"""The region is larger than that of the largest evidence by this factor: a stationary prior
underestimates the extent of weak surrounds."""

HALVES = (0, 1, 2, 3, 4, 5, 6, 8, 11, 15, 20, 27, 36, 48, 64)
"""Half sides, in checks, of the regions that are compared."""

WINDOWS = 500
"""Number of stimulus histories from which the power of the stimulus is estimated."""


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
        >>> of = averages(small_recording()["train"].to_dataset(), lags=3, signed=False)
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


@dataclass(frozen=True)
class Averages:
    """The covariance of each cell's response with the stimulus, over the response's scale.

    Attributes:
        field: (cell, lag, [channel,] y, x), NaN-free.
        scale: (cell,) the mean response, or the standard deviation of signed responses.
        noise: (cell,) the variance of the response over its squared scale and number of frames.
        centre: ([channel,] y, x) the mean frame.
        sample: (frame, [channel,] y, x) consecutive frames minus the mean frame.
        full: (frame,) whether these have a full history.

    Example:
        >>> from retinakit.testing import small_recording
        >>> of = averages(small_recording()["train"].to_dataset(), lags=3, signed=False)
        >>> bool((of.noise > 0).all()), of.centre.shape
        (True, (8, 8))
    """

    field: Array
    scale: Array
    noise: Array
    centre: Array
    sample: NDArray[np.float32]
    full: NDArray[np.bool_]


def averages(split: xr.Dataset, lags: int, signed: bool) -> Averages:
    """The averages of which `filter_spaces` finds the region and prior of each cell.

    Args:
        split: of a recording, with `response`.
        lags: the number of lags.
        signed: whether responses may be negative.

    Example:
        >>> from retinakit.testing import small_recording
        >>> averages(small_recording()["train"].to_dataset(), lags=3, signed=False).field.shape
        (2, 3, 8, 8)
    """
    stimulus = split["stimulus"]
    centre = _mean_frame(stimulus)
    full = full_history(split["segment"], lags)
    response = np.asarray(mean_response(split), float)
    response[~full] = np.nan
    known = np.isfinite(response)
    number = np.maximum(known.sum(0), 1)
    mean = np.where(known, response, 0).sum(0) / number
    variance = np.where(known, (response - mean) ** 2, 0).sum(0) / number
    scale = np.sqrt(variance) if signed else mean
    scale = np.where(scale > 0, scale, 1.0)
    variance = np.maximum(variance, scale**2 / number)  # of a silent cell, too
    if signed:
        over = scale.reshape(-1, *[1] * stimulus.ndim)
        field = np.asarray(response_field(split, lags)) / over
    else:
        field = np.asarray(sta(split, lags)["sta"], float) - centre
    first = first_frames(stimulus).astype(np.float32) - centre.astype(np.float32)
    return Averages(
        np.nan_to_num(field),
        scale,
        variance / (number * scale**2),
        centre,
        first,
        full[: len(first)],
    )


def _mean_frame(stimulus: xr.DataArray) -> Array:
    total = np.zeros(stimulus.shape[1:])
    reader = Reader(stimulus, 0)
    for part in blocks(stimulus):
        total += reader[part].sum(0, dtype=np.float64)
    return total / len(stimulus)


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

    Example:
        >>> from retinakit.testing import small_recording
        >>> of = averages(small_recording()["train"].to_dataset(), lags=3, signed=False)
        >>> space, = filter_spaces(of, 0, side=40, basis="cosine")
        >>> space.start.shape == (space.courses.shape[1], space.images.number)
        True
    """
    field, noise = of.field[cell], float(of.noise[cell])
    region = _region(field, noise, of, side)
    inside = field[..., *region]
    power = _power(of, region, len(field))
    fixed = (SHORTEST, SHORTEST)
    smooth = most_probable_prior(
        _cosine(inside), power, noise, None if basis == "cosine" else fixed
    )
    spaces = []
    for factor in factors:
        if basis == "spline":
            found = _spline_space(inside, power, noise, factor)
        else:
            prior = smooth
            if basis == "cosine" and factor != 1:
                one = shorter(smooth, factor)
                lengths = (max(one.time, SHORTEST), max(one.space, SHORTEST))
                prior = most_probable_prior(_cosine(inside), power, noise, lengths)
            found = _cosine_space(inside, power, noise, prior)
        spaces.append(FilterSpace(region, *found, float(of.scale[cell])))
    return spaces


def _cosine(field: Array) -> Array:
    """The coefficients of a field (lag, [channel,] y, x) in the cosine basis."""
    axes = (0, field.ndim - 2, field.ndim - 1)
    coefficients: Array = dctn(field, axes=axes, norm="ortho")
    return coefficients


def _power(of: Averages, region: Region, lags: int) -> Array:
    """The power (lag, [channel,] y, x) of the stimulus in the cosine basis of the region."""
    sample = of.sample[..., *region]
    ends = np.flatnonzero(of.full)
    ends = ends[:: max(1, len(ends) // WINDOWS)]
    if not len(ends):
        return np.ones((lags, *sample.shape[1:]))
    histories = np.stack([sample[end - lags + 1 : end + 1][::-1] for end in ends])
    axes = (1, histories.ndim - 2, histories.ndim - 1)
    power = (dctn(histories, axes=axes, norm="ortho") ** 2).mean(0, dtype=float)
    return np.maximum(power, 1e-6 * max(float(power.mean()), 1e-30))


def _region(field: Array, noise: float, of: Averages, side: int) -> Region:
    rows, columns = field.shape[-2:]
    smooth = gaussian_filter(field, [1.0, *[0.0] * (field.ndim - 3), 1.0, 1.0])
    energy = (smooth**2).sum(tuple(range(field.ndim - 2)))
    y, x = (int(i) for i in np.unravel_index(energy.argmax(), energy.shape))
    variance = float((of.sample.astype(float) ** 2).mean()) + 1e-30
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
        inside = _cosine(field[..., *region])
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


def _cosine_space(inside: Array, power: Array, noise: float, prior: SmoothPrior) -> Found:
    lags, shape = len(inside), inside.shape[1:]
    shrinkage = prior.shrinkage(power, noise).reshape(lags, -1)
    order = order_of_frequencies(shape)
    columns = _needed(shrinkage.max(0)[order])
    times = _needed(shrinkage.max(1))
    order = order[:columns]
    posterior = (_cosine(inside) / power).reshape(lags, -1) * shrinkage
    return (
        idct(np.eye(lags)[:, :times], axis=0, norm="ortho"),
        cosine_images(shape, columns),
        1 / prior.over_time(lags)[:times],
        1 / prior.over_space(shape).ravel()[order],
        prior.variance,
        posterior[:times, order],
    )


def _needed(shrinkage: Array) -> int:
    """The number of first coefficients that are not negligible, at least 1."""
    above = np.flatnonzero(shrinkage > NEGLIGIBLE)
    return int(above[-1]) + 1 if len(above) else 1


KNOTS = 2.5
"""Distance of the knots of splines, in frames or checks."""


def _spline_space(inside: Array, power: Array, noise: float, factor: float) -> Found:
    lags, shape = len(inside), inside.shape[1:]
    courses = spline_basis(lags, factor * KNOTS)
    y, x = (spline_basis(size, factor * KNOTS) for size in shape[-2:])
    number = int(np.prod(shape[:-2])) * y.shape[1] * x.shape[1]
    images = Images(y, x, np.arange(number), shape)
    level = float(power.mean())
    coefficients = courses.T @ inside.reshape(lags, -1) @ images.matrix()
    prior = most_probable_prior(
        coefficients[:, None], np.full(coefficients[:, None].shape, level), noise, (SHORTEST,) * 2
    )
    shrinkage = prior.variance * level / (prior.variance * level + noise)
    return (
        courses,
        images,
        np.ones(courses.shape[1]),
        np.ones(number),
        prior.variance,
        coefficients / level * shrinkage,
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
