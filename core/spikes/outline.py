"""The outline of a receptive field: a two-dimensional Gaussian."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import least_squares

from retinakit.spikes.smoothing import pyramid

ELLIPSE = ("amplitude", "centre_y", "centre_x", "sd_major", "sd_minor", "angle")
"""The variables of the result of `fit_ellipse`, in the order of the parameters of `gaussian`."""

NARROWEST = 0.3
"""Smallest standard deviation in checks; a narrower Gaussian fits a single check equally well."""

LARGEST_AMPLITUDE = 3.0
"""Largest amplitude relative to the peak. The centre of a Gaussian of few checks may lie between
the checks, and without a limit, a block of 2 x 2 equal checks is fitted best by a point."""


def gaussian(
    y: NDArray[Any], x: NDArray[Any], parameters: NDArray[Any] | list[float]
) -> NDArray[Any]:
    """A two-dimensional Gaussian.

    Args:
        y, x: (y,) and (x,), the coordinates of a grid.
        parameters: amplitude, y0, x0, sd1, sd2 and angle (radians, of sd1, from x towards y).

    Returns:
        (y, x).

    Example:
        >>> import numpy as np
        >>> gaussian(np.arange(3), np.arange(3), [2, 1, 1, 1, 1, 0])[1].round(3).tolist()
        [1.213, 2.0, 1.213]
    """
    amplitude, y0, x0, sd1, sd2, angle = parameters
    dy, dx = np.meshgrid(y - y0, x - x0, indexing="ij")
    along = np.cos(angle) * dx + np.sin(angle) * dy
    across = -np.sin(angle) * dx + np.cos(angle) * dy
    result: NDArray[Any] = amplitude * np.exp(-0.5 * ((along / sd1) ** 2 + (across / sd2) ** 2))
    return result


def fit_ellipse(spatial: xr.DataArray) -> xr.Dataset:
    """Fits a two-dimensional Gaussian to the largest positive peak of a spatial map.

    The fit is by least squares, in a window around the peak that grows until it holds three
    standard deviations of the Gaussian. It starts at the peak of the map smoothed over several
    widths. A Gaussian at the limits of what the map can show is refused: one with a standard
    deviation below 0.3 checks or above half the longer side of the map, or a centre more than one
    check outside the map. A map of fewer than 3 rows (or columns) is averaged over them, and
    `sd_minor` is NaN.

    Args:
        spatial: (..., y, x), with evenly spaced coordinates y and x. NaN counts as 0.

    Returns:
        `amplitude` (as a fraction of the peak), `centre_y`, `centre_x`, `sd_major`, `sd_minor` (in
        the units of y and x) and `angle` (of the major axis, in radians from x towards y), each
        (...), NaN where no Gaussian was fitted; and `reason (...)`, which is empty where one was.

    Example:
        >>> import numpy as np
        >>> import xarray as xr
        >>> place = np.arange(20.0)
        >>> image = gaussian(place, place, [1, 9, 11, 3, 2, 0.5])
        >>> image = xr.DataArray(image, {"y": place, "x": place}, ("y", "x"))
        >>> ellipse = fit_ellipse(image)
        >>> [round(float(ellipse[name]), 2) for name in ELLIPSE]
        [1.0, 9.0, 11.0, 3.0, 2.0, 0.5]
    """
    y, x = (np.asarray(spatial[dim], float) for dim in ("y", "x"))

    def fit(images: NDArray[Any]) -> tuple[Any, ...]:
        flat = np.nan_to_num(images.reshape(-1, *images.shape[-2:]))
        found = [fit_gaussian(image, *_peak(image), y, x) for image in flat]
        shape = images.shape[:-2]
        columns = np.array([one.ellipse for one in found]).reshape(-1, len(ELLIPSE)).T
        reasons = np.array([one.reason for one in found], dtype=object)
        return (*(column.reshape(shape) for column in columns), reasons.reshape(shape))

    *ellipse, reason = xr.apply_ufunc(
        fit,
        spatial,
        input_core_dims=[["y", "x"]],
        output_core_dims=[[]] * (len(ELLIPSE) + 1),
    )
    return xr.Dataset({**dict(zip(ELLIPSE, ellipse, strict=True)), "reason": reason.astype(str)})


class Outline(NamedTuple):
    """The parameters of a Gaussian in the order of `ELLIPSE`, or NaN and the reason why."""

    ellipse: NDArray[np.float64]
    reason: str


def fit_gaussian(
    image: NDArray[Any],
    row: int,
    column: int,
    width: float,
    y: NDArray[Any],
    x: NDArray[Any],
) -> Outline:
    """Fits a Gaussian to one map around a peak; see `fit_ellipse`.

    Args:
        image: (y, x), finite.
        row, column, width: of the peak: its check, and the smoothing at which it was found.
        y, x: coordinates of the checks.

    Example:
        >>> image = gaussian(np.arange(20.0), np.arange(30.0), [5, 8, 12, 3, 3, 0])
        >>> fitted = fit_gaussian(image, 9, 12, 2.0, np.arange(20.0), np.arange(30.0))
        >>> fitted.ellipse[:4].round(2).tolist(), fitted.reason
        ([1.0, 8.0, 12.0, 3.0], '')
    """
    nothing = np.full(len(ELLIPSE), np.nan)
    wide = [size > 2 for size in image.shape]
    if not any(wide):
        height, length = image.shape
        return Outline(nothing, f"{height} x {length} checks are too few for an outline")
    centre = np.array([row, column], float)
    if not wide[0]:
        image, centre[0] = image.mean(0, keepdims=True), 0
    elif not wide[1]:
        image, centre[1] = image.mean(1, keepdims=True), 0
    longest = max(image.shape)
    start = max(width, 0.7)
    # The factor of the inverse covariance matrix: the exponent is -|factor (dy, dx)|² / 2.
    shape = np.array([wide[0] / start, 0.0, wide[1] / start])
    half = int(np.ceil(3 * start)) + 2
    while True:
        window = tuple(slice(max(0, round(c) - half), round(c) + half + 1) for c in centre)
        fitted = _least_squares(image[window], centre - [w.start for w in window], shape, wide)
        if fitted is None:
            return Outline(nothing, "no Gaussian fits the map around the peak")
        amplitude, centre, shape = fitted
        centre = centre + [w.start for w in window]
        covariance = _covariance_of(shape, wide)
        largest = float(np.sqrt(np.linalg.eigvalsh(covariance)[-1]))
        if not np.isfinite(largest) or largest > longest / 2:
            return Outline(nothing, "the Gaussian is wider than half the screen")
        if np.any(centre < -1) or np.any(centre > image.shape):
            return Outline(nothing, "the centre of the Gaussian is outside the screen")
        if 3 * largest <= half or half >= longest:
            break
        half = min(int(np.ceil(3.5 * largest)), 3 * half)
    if np.hypot(*(centre - [row * wide[0], column * wide[1]])) > 3 * max(largest, start) + 1:
        return Outline(nothing, "the Gaussian is not at the peak")
    step = np.array([_step(places_) for places_ in (y, x)])
    narrowest = np.linalg.eigvalsh(covariance)[0 if all(wide) else 1] ** 0.5
    if narrowest < NARROWEST:
        return Outline(nothing, "the field is as narrow as one check")
    variances, axes = np.linalg.eigh(covariance * np.outer(step, step))
    minor, major = np.sqrt(np.maximum(variances, 0))
    peak = float(image[window].max())
    angle = np.arctan2(axes[0, 1], axes[1, 1]) % np.pi
    at = [
        place[0] + step[i] * centre[i] if wide[i] else place.mean()
        for i, place in enumerate((y, x))
    ]
    small = minor if all(wide) else np.nan
    return Outline(np.array([amplitude / peak, *at, major, small, angle]), "")


def _least_squares(
    image: NDArray[Any], centre: NDArray[Any], shape: NDArray[Any], wide: list[bool]
) -> tuple[float, NDArray[Any], NDArray[Any]] | None:
    """Amplitude, centre and shape of the Gaussian that fits a map best, or None."""
    rows, columns = np.meshgrid(*(np.arange(float(n)) for n in image.shape), indexing="ij")
    rows, columns, values = rows.ravel(), columns.ravel(), image.ravel().astype(float)
    scale = float(np.abs(values).max())
    if not scale > 0:
        return None
    values = values / scale
    first = np.concatenate([[0.0], centre, shape])
    free = np.array([True, wide[0], wide[1], wide[0], all(wide), wide[1]])

    def parts(free_values: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        p = first.copy()
        p[free] = free_values
        dy, dx = rows - p[1], columns - p[2]
        along, across = p[3] * dy + p[4] * dx, p[5] * dx
        return p, dy, dx, along, across, np.exp(-0.5 * (along**2 + across**2))

    def misfit(free_values: NDArray[Any]) -> NDArray[Any]:
        p, *_, bell = parts(free_values)
        difference: NDArray[Any] = p[0] * bell - values
        return difference

    def jacobian(free_values: NDArray[Any]) -> NDArray[Any]:
        p, dy, dx, along, across, bell = parts(free_values)
        falling = -p[0] * bell
        columns_ = (
            bell,
            -falling * along * p[3],
            -falling * (along * p[4] + across * p[5]),
            falling * along * dy,
            falling * along * dx,
            falling * across * dx,
        )
        return np.stack([c for c, used in zip(columns_, free, strict=True) if used], 1)

    bell = parts(first[free])[-1]
    first[0] = max((bell @ values) / (bell @ bell), 0.1)
    if len(values) < free.sum():
        return None

    def solve() -> NDArray[Any]:
        solved = least_squares(
            misfit, first[free], jacobian, method="lm", xtol=1e-6, ftol=1e-8, max_nfev=200
        )
        return parts(solved.x)[0]

    p = solve()
    if p[0] > LARGEST_AMPLITUDE:
        free[0], first[0] = False, LARGEST_AMPLITUDE
        p = solve()
    if not (np.isfinite(p).all() and p[0] > 1e-3):
        return None
    return float(p[0] * scale), p[1:3], p[3:]


def _covariance_of(shape: NDArray[Any], wide: list[bool]) -> NDArray[np.float64]:
    """The covariance matrix (y and x) of a Gaussian; 0 along a side that it does not have."""
    a, b, c = shape
    covariance = np.zeros((2, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        if all(wide):
            root = np.array([[1 / a, -b / (a * c)], [0, 1 / c]])
            covariance = root @ root.T
        else:
            side = wide.index(True)
            covariance[side, side] = 1 / shape[2 * side] ** 2
    return np.where(np.isfinite(covariance), covariance, 1e300)


def _peak(image: NDArray[Any]) -> tuple[int, int, float]:
    """Row, column and width of the largest value of a map over all smoothing widths."""
    best, found = -np.inf, (0, 0, 0.0)
    for level in pyramid(image.astype(float)):
        row, column = np.unravel_index(level.values.argmax(), level.values.shape)
        if level.values[row, column] > best:
            best = level.values[row, column]
            found = int(level.rows[row]), int(level.columns[column]), level.width
    return found


def _step(place: NDArray[Any]) -> float:
    """The distance of two checks; negative where the coordinate decreases."""
    return float(place[-1] - place[0]) / (len(place) - 1) if len(place) > 1 else 1.0


def field_distance(first: xr.Dataset, second: xr.Dataset) -> xr.DataArray:
    """Cosine distance of the Gaussians fitted to two receptive fields (Zheng et al. 2021).

    1 - ⟨G1, G2⟩ / (|G1| |G2|), integrated over the plane in closed form.

    Args:
        first, second: results of `fit_ellipse`, with the same units and matching dimensions.

    Returns:
        (...), 0 for equal Gaussians up to amplitude, 1 for fields that do not overlap, and NaN
        where a fit failed.

    Example:
        >>> import xarray as xr
        >>> here = xr.Dataset(dict(zip(ELLIPSE, (1, 0, 0, 2, 2, 0))))
        >>> there = here.assign(centre_x=100)
        >>> [round(float(field_distance(here, other)), 6) for other in (here, there)]
        [0.0, 1.0]
    """
    a, b = _covariance(first), _covariance(second)
    total = {name: a[name] + b[name] for name in a}
    dy = first["centre_y"] - second["centre_y"]
    dx = first["centre_x"] - second["centre_x"]
    determinant = _determinant(total)
    distance = (total["xx"] * dy**2 - 2 * total["xy"] * dx * dy + total["yy"] * dx**2) / determinant
    # ⟨G1, G2⟩ ∝ √(|A||B| / |A+B|) exp(-d/2), and |G|² is the same with A = B.
    overlap = 2 * (_determinant(a) * _determinant(b)) ** 0.25 / determinant**0.5
    result: xr.DataArray = 1 - overlap * xr.ufuncs.exp(-0.5 * distance)
    return result


def _covariance(ellipse: xr.Dataset) -> dict[str, xr.DataArray]:
    """The covariance matrix of a Gaussian, from its axes and angle."""
    major, minor = ellipse["sd_major"] ** 2, ellipse["sd_minor"] ** 2
    angle = ellipse["angle"]
    cos, sin = xr.ufuncs.cos(angle), xr.ufuncs.sin(angle)
    return {
        "xx": major * cos**2 + minor * sin**2,
        "yy": major * sin**2 + minor * cos**2,
        "xy": (major - minor) * cos * sin,
    }


def _determinant(covariance: dict[str, xr.DataArray]) -> xr.DataArray:
    return covariance["xx"] * covariance["yy"] - covariance["xy"] ** 2
