"""Properties of spatiotemporal receptive fields: separation, significance, outline."""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import least_squares

from retinakit.contracts.errors import UserError


def separate(field: xr.DataArray) -> xr.Dataset:
    """The best rank-1 approximation of a receptive field, by singular value decomposition.

    The temporal filter has unit norm. The sign is such that the spatial map is positive at its
    largest absolute value, so that an OFF cell has a negative temporal filter at short lags.

    Args:
        field: (..., lag, y, x).

    Returns:
        `temporal (..., lag)` and `spatial (..., y, x)`, in the units of the field, whose product
        approximates the field, and `separability (...)`, the fraction of the field's power in the
        product.

    Example:
        >>> import numpy as np
        >>> import xarray as xr
        >>> field = np.multiply.outer([0.6, -0.8], [[1.0, 2.0], [3.0, 4.0]])
        >>> parts = separate(xr.DataArray(field, dims=("lag", "y", "x")))
        >>> parts["temporal"].values.round(3).tolist(), float(parts["separability"].round(6))
        ([0.6, -0.8], 1.0)
    """

    def decompose(matrix: NDArray[Any]) -> tuple[Any, ...]:
        flat = np.nan_to_num(matrix.reshape(*matrix.shape[:-2], -1))
        u, s, v = np.linalg.svd(flat, full_matrices=False)
        temporal, spatial = u[..., 0], s[..., :1] * v[..., 0, :]
        peak = np.take_along_axis(spatial, np.abs(spatial).argmax(-1)[..., None], -1)
        sign = np.where(peak < 0, -1.0, 1.0)
        power = (s**2).sum(-1)
        part = np.divide(s[..., 0] ** 2, power, out=np.full(power.shape, np.nan), where=power > 0)
        return (
            temporal * sign,
            (spatial * sign).reshape(*matrix.shape[:-3], *matrix.shape[-2:]),
            part,
        )

    temporal, spatial, separability = xr.apply_ufunc(
        decompose,
        field.transpose(..., "lag", "y", "x"),
        input_core_dims=[["lag", "y", "x"]],
        output_core_dims=[["lag"], ["y", "x"], []],
    )
    result: xr.Dataset = xr.Dataset(
        {"temporal": temporal, "spatial": spatial, "separability": separability}
    )
    return result


def z_score(field: xr.DataArray) -> xr.DataArray:
    """Deviation of each value from the median, in robust standard deviations (1.4826 MAD).

    The receptive field covers few of the values, so median and MAD describe the background.

    Args:
        field: (..., [lag,] y, x).

    Returns:
        Of the same shape, NaN if the MAD is 0.

    Example:
        >>> import xarray as xr
        >>> field = xr.DataArray([[0.0, 1.0, -1.0, 20.0]], dims=("y", "x"))
        >>> z_score(field).round(2).values.tolist()
        [[-0.34, 0.34, -1.01, 13.15]]
    """
    dims = ("lag", "y", "x") if "lag" in field.dims else ("y", "x")
    centre = field.median(dims)
    spread = 1.4826 * abs(field - centre).median(dims)
    result: xr.DataArray = (field - centre) / spread.where(spread > 0)
    return result


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


ELLIPSE = ("amplitude", "centre_y", "centre_x", "sd_major", "sd_minor", "angle")
"""The variables of the result of `fit_ellipse`, in the order of the parameters of `gaussian`."""


def fit_ellipse(spatial: xr.DataArray) -> xr.Dataset:
    """Fits a two-dimensional Gaussian to a spatial map by least squares.

    The map is divided by its peak, and negative values are set to 0, as in Zheng et al. (2021). The
    fit starts at the peak of the smoothed map, so that broad and weak fields are found.

    Args:
        spatial: (..., y, x), with coordinates y and x.

    Returns:
        `amplitude` (as a fraction of the peak), `centre_y`, `centre_x`, `sd_major`, `sd_minor` (in
        the units of y and x) and `angle` (of the major axis, in radians from x towards y), each
        (...), NaN where no Gaussian could be fitted.

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

    def fit(image: NDArray[Any]) -> tuple[Any, ...]:
        flat = image.reshape(-1, *image.shape[-2:])
        fitted = np.array([_fit_gaussian(one, y, x) for one in flat])
        return tuple(fitted[:, i].reshape(image.shape[:-2]) for i in range(len(ELLIPSE)))

    fitted = xr.apply_ufunc(
        fit, spatial, input_core_dims=[["y", "x"]], output_core_dims=[[] for _ in ELLIPSE]
    )
    return xr.Dataset(dict(zip(ELLIPSE, fitted, strict=True)))


def _fit_gaussian(image: NDArray[Any], y: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    from scipy.ndimage import gaussian_filter

    nothing = np.full(len(ELLIPSE), np.nan)
    image = np.nan_to_num(image)
    if image.max() <= 0 or min(image.shape) < 3:
        return nothing
    image = np.clip(image / image.max(), 0, None)
    row, column = np.unravel_index(gaussian_filter(image, 1.0).argmax(), image.shape)
    step = float(np.abs(np.diff(x)).mean())
    span = max(np.ptp(y), np.ptp(x))
    lower = [0, y.min(), x.min(), 0.3 * step, 0.3 * step, -np.inf]
    upper = [3, y.max(), x.max(), span, span, np.inf]

    def misfit(parameters: NDArray[Any]) -> NDArray[Any]:
        return (gaussian(y, x, parameters) - image).ravel()

    best = None
    for width in (1.0, 3.0):
        start = [
            0.8,
            y[row],
            x[column],
            min(width * step, 0.9 * span),
            min(width * step, 0.9 * span),
            0.1,
        ]
        start[1] = np.clip(start[1], y.min() + 1e-6 * step, y.max() - 1e-6 * step)
        start[2] = np.clip(start[2], x.min() + 1e-6 * step, x.max() - 1e-6 * step)
        solution = least_squares(misfit, start, bounds=(lower, upper))
        if best is None or solution.cost < best.cost:
            best = solution
    assert best is not None
    amplitude, y0, x0, sd1, sd2, angle = best.x
    if not best.success or amplitude < 1e-3:
        return nothing
    if sd1 < sd2:
        sd1, sd2, angle = sd2, sd1, angle + np.pi / 2
    return np.array([amplitude, y0, x0, sd1, sd2, angle % np.pi])


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


def morans_i(image: xr.DataArray) -> xr.DataArray:
    """Moran's I, the spatial autocorrelation of a map between adjacent checks.

    I = (N / n) · Σ_ij b_i b_j / Σ_i b_i² over the n ordered pairs of 4-neighbours, where b is the
    map minus its mean and N the number of checks (Yan et al. 2020, section II-C).

    Args:
        image: (..., y, x).

    Returns:
        (...), about -1/(N-1) for noise, near 1 for a smooth map, NaN for a constant one.

    Example:
        >>> import xarray as xr
        >>> checks = xr.DataArray([[1, -1], [-1, 1]], dims=("y", "x"))
        >>> float(morans_i(checks))
        -1.0
    """
    b = image - image.mean(("y", "x"))
    height, width = image.sizes["y"], image.sizes["x"]
    pairs = 2 * (height * (width - 1) + width * (height - 1)) or np.nan
    power = (b**2).sum(("y", "x"))
    vertical = (
        b.isel(y=slice(1, None)).drop_vars("y", errors="ignore")
        * b.isel(y=slice(None, -1)).drop_vars("y", errors="ignore")
    ).sum(("y", "x"))
    horizontal = (
        b.isel(x=slice(1, None)).drop_vars("x", errors="ignore")
        * b.isel(x=slice(None, -1)).drop_vars("x", errors="ignore")
    ).sum(("y", "x"))
    result: xr.DataArray = (
        height * width / pairs * 2 * (vertical + horizontal) / power.where(power > 0)
    )
    return result


def morans_i_z(image: xr.DataArray) -> xr.DataArray:
    """The z-score of Moran's I under the null hypothesis of independent normal values.

    z = (I - E) / √V with E = -1/(N-1) and V = (N² S1 - N S2 + 3 S0²) / ((N²-1) S0²) - E² (Cliff &
    Ord 1981). For 4-neighbours, S0 = n, S1 = 2n and S2 = 4 Σ_i k_i², where check i has k_i
    neighbours.

    Args:
        image: (..., y, x).

    Returns:
        (...).

    Raises:
        UserError: if the map has fewer than 2 checks along y or x.

    Example:
        >>> import numpy as np
        >>> import xarray as xr
        >>> ramp = xr.DataArray(np.add.outer(np.arange(8.0), np.arange(8.0)), dims=("y", "x"))
        >>> bool(morans_i_z(ramp) > 5)
        True
    """
    sides = [np.arange(image.sizes[dim]) for dim in ("y", "x")]
    if min(map(len, sides)) < 2:
        raise UserError(
            f"Moran's I requires maps of at least 2 x 2 checks, and this one has {len(sides[0])} x "
            f"{len(sides[1])}; use a larger field"
        )
    neighbours = np.add.outer(*((n > 0).astype(int) + (n < n[-1]) for n in sides))
    size, s0, s2 = neighbours.size, float(neighbours.sum()), 4 * float((neighbours**2).sum())
    expected = -1 / (size - 1)
    squared = (2 * size**2 * s0 - size * s2 + 3 * s0**2) / ((size**2 - 1) * s0**2)
    result: xr.DataArray = (morans_i(image) - expected) / (squared - expected**2) ** 0.5
    return result
