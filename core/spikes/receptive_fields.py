"""Properties of spatiotemporal receptive fields: separation, significance, outline."""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import ndtri

from retinakit.spikes.outline import ELLIPSE, Outline, fit_gaussian
from retinakit.spikes.smoothing import pyramid

FALSE_POSITIVE = 0.01
"""Probability with which noise is taken for a receptive field."""

LARGE_SCREEN = 10_000
"""Number of checks from which the median of a field describes its background best."""

VARIABLES: dict[str, tuple[str, ...]] = {
    "temporal": ("lag",),
    "spatial": ("y", "x"),
    **dict.fromkeys(("separability", "deviation", "peak_z", "threshold", "found"), ()),
    **dict.fromkeys(("peak_lag", "peak_y", "peak_x", "peak_width"), ()),
    **dict.fromkeys(ELLIPSE, ()),
    "reason": (),
}
"""The variables of a receptive field, with their dimensions."""


def separate(field: xr.DataArray, *, subtract_mean: bool = False) -> xr.Dataset:
    """The best rank-1 approximation of a filter, by singular value decomposition.

    All lags and checks count. For a spike-triggered average on a screen that is much larger than
    the receptive field, use `receptive_field`, which separates it in a window.

    The temporal filter has unit norm. The sign is such that the spatial map is positive at its
    largest absolute value, so that an OFF cell has a negative temporal filter at short lags.

    Args:
        field: (..., lag, y, x).
        subtract_mean: whether to subtract the mean over all lags and checks first. A learned filter
            may have an offset, which is the first singular vector if it is large (the cosine with
            the true filter is then 0.07, and 1.00 after the subtraction).

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
        if subtract_mean:
            flat = flat - flat.mean((-2, -1), keepdims=True)
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


def receptive_field(
    field: xr.DataArray,
    noise: xr.Dataset | None = None,
    false_positive: float = FALSE_POSITIVE,
) -> xr.Dataset:
    """The place, significance, separation and outline of receptive fields on a screen of any size.

    The field is smoothed over space with several widths, and its peak is the value with the largest
    |z| among all widths, lags and checks, where z is the value over its standard deviation in the
    absence of a receptive field. It is significant if |z| exceeds the value u that normal noise
    exceeds anywhere with the probability `false_positive`: p = false_positive / n for each of the n
    values (Bonferroni; at such |z|, neighbouring values exceed it almost independently, even if
    they are correlated). If the noise has the excess kurtosis b² > 0, as in the average of few
    spikes over a sparse stimulus, the value is z with h(b z) / b² = u² / 2, where
    h(v) = (1 + v) log(1 + v) - v (Bennett 1962).

    The temporal filter is the first singular vector of the smoothed field in a window around the
    peak, and the map is the projection of the field on this filter, so that the noise on the rest
    of the screen has no influence. A Gaussian is fitted to the map around the peak, as by
    `fit_ellipse`.

    Args:
        field: (..., lag, y, x), such as a spike-triggered average.
        noise: `mean (...)`, or `mean (..., y, x)` if it differs between checks, and `deviation` and
            `kurtosis (..., width)` of the field in the absence of a receptive field, from
            `analytic_noise` or `shuffled_noise`. By default, mean and deviation are estimated from
            the field by the median and the median absolute deviation, which describe the background
            if the receptive field covers a small part of the field. On screens of 10,000 checks or
            more, the mean over checks is always the median, which is more precise.
        false_positive: the probability with which noise is taken for a receptive field. With 1,
            every field is separated and fitted.

    Returns:
        For each field: `temporal (..., lag)` with unit norm and `spatial (..., y, x)` in the units
        of the field, which is positive at the peak; `separability (...)`, the fraction of the
        field's power in the window that is in their product; `deviation (...)`, the standard
        deviation of the noise; `peak_z (...)` with `peak_lag`, `peak_y` and `peak_x (...)`, its lag
        and place, and `peak_width (...)`, the width of the smoothing in checks; the
        `threshold (...)` of |z|; `found (...)`, whether |z| is above it; the variables of
        `fit_ellipse`, NaN if no receptive field was found or no Gaussian could be fitted; and
        `reason (...)`, why there is no outline, empty if there is one.

    Example:
        >>> import numpy as np
        >>> import xarray as xr
        >>> from retinakit.spikes import gaussian
        >>> noise = np.random.default_rng(0).standard_normal((5, 60, 80))
        >>> image = gaussian(np.arange(60.0), np.arange(80.0), [6, 20, 50, 3, 3, 0])
        >>> movie = noise + np.multiply.outer([0, 0.4, 1, 0.4, -0.2], image)
        >>> found = receptive_field(xr.DataArray(movie, dims=("lag", "y", "x")))
        >>> bool(found["found"]), bool(found["peak_z"] > found["threshold"])
        (True, True)
        >>> [round(float(found[name])) for name in ("centre_y", "centre_x", "sd_major")]
        [20, 50, 3]
    """
    field = field.transpose(..., "lag", "y", "x")
    leading = field.dims[:-3]
    y, x, lag = (np.asarray(field[dim]) for dim in ("y", "x", "lag"))
    shape = field.shape[:-3]
    flat = np.asarray(field).reshape(-1, *field.shape[-3:])
    expected: Any = [None] * len(flat)
    deviation, kurtosis = expected, expected
    if noise is not None:
        each = field.isel(lag=0, y=0, x=0, drop=True)
        mean = noise["mean"]
        if len(y) * len(x) < LARGE_SCREEN:
            expected = mean.broadcast_like(each).transpose(*leading, ...).values
            expected = expected.reshape(len(flat), *expected.shape[len(leading) :])
        elif "y" in mean.dims:
            of_checks = np.asarray(mean.transpose(*leading, "y", "x"), flat.dtype)
            flat = flat - of_checks.reshape(len(flat), 1, len(y), len(x))
        deviation, kurtosis = (
            noise[name]
            .broadcast_like(each)
            .transpose(*leading, "width")
            .values.reshape(len(flat), -1)
            for name in ("deviation", "kurtosis")
        )
    found = [
        _receptive_field(*one, false_positive, y, x)
        for one in zip(flat, expected, deviation, kurtosis, strict=True)
    ]
    result = xr.Dataset(coords={name: field.coords[name] for name in field.coords})
    for name, dims in VARIABLES.items():
        values = np.array([one[name] for one in found])
        values = values.reshape((*shape, *values.shape[1:]))
        result[name] = ((*leading, *dims), values)
    for name, place in (("lag", lag), ("y", y), ("x", x)):
        at = result[f"peak_{name}"]
        result[f"peak_{name}"] = at.copy(data=place[at.values])
    return result


def _receptive_field(
    field: NDArray[Any],
    expected: Any,
    deviation: NDArray[Any] | None,
    kurtosis: NDArray[Any] | None,
    false_positive: float,
    y: NDArray[Any],
    x: NDArray[Any],
) -> dict[str, Any]:
    """One receptive field: (lag, y, x)."""
    known = np.isfinite(field)
    lost = not known.any()
    if expected is None and not lost:
        expected = np.nanmedian(_some(field))
    field = field - expected if not lost else field
    if not known.all():
        field = np.where(known, field, 0)
    peak = _peak(field.astype(np.float32), deviation, kurtosis, false_positive)
    window = (
        slice(None),
        *(
            slice(max(0, at - reach), at + reach + 1)
            for at, reach in ((peak.y, peak.reach), (peak.x, peak.reach))
        ),
    )
    part = field[window]
    blurred = gaussian_filter(part, peak.width, axes=(1, 2)) if peak.width else part
    temporal = np.linalg.svd(blurred.reshape(len(part), -1), full_matrices=False)[0][:, 0]
    if temporal @ blurred[:, peak.y - window[1].start, peak.x - window[2].start] < 0:
        temporal = -temporal
    spatial = np.tensordot(temporal, field, 1)
    inside = spatial[window[1:]]
    power = (part**2).sum()
    threshold = peak.threshold if false_positive < 1 else 0.0
    found = bool(peak.z > threshold)
    if found:
        outline = fit_gaussian(spatial, peak.y, peak.x, peak.width, y, x)
    else:
        reason = f"the peak |z| is below {threshold:.2f}"
        if not peak.z > 0:
            reason = "the field has no values" if lost else "the field is constant"
        outline = Outline(np.full(len(ELLIPSE), np.nan), reason)
    unknown = np.nan if lost else 1
    return {
        "temporal": temporal * unknown,
        "spatial": spatial * unknown,
        "separability": (inside**2).sum() / power if power else np.nan,
        "deviation": peak.deviation * unknown,
        "peak_z": peak.z * unknown,
        "peak_width": peak.width,
        "peak_lag": peak.lag,
        "peak_y": peak.y,
        "peak_x": peak.x,
        "threshold": threshold,
        "found": found,
        **dict(zip(ELLIPSE, outline.ellipse, strict=True)),
        "reason": outline.reason,
    }


class _Peak(NamedTuple):
    """The largest |z| of a field relative to its threshold, and the noise before smoothing."""

    z: float
    threshold: float
    lag: int
    y: int
    x: int
    width: float
    deviation: float

    @property
    def reach(self) -> int:
        """Half the side of the window in which the field is separated, in checks."""
        return int(np.ceil(3 * max(self.width, 1))) + 2


def _peak(
    field: NDArray[np.float32],
    deviation: NDArray[Any] | None,
    kurtosis: NDArray[Any] | None,
    false_positive: float,
) -> _Peak:
    levels = list(pyramid(field))
    normal = -ndtri(false_positive / sum(level.values.size for level in levels) / 2)
    best = _Peak(np.nan, normal, 0, 0, 0, 0.0, np.nan)
    background, largest = 0.0, -1.0
    for index, level in enumerate(levels):
        values = level.values
        if deviation is None:
            # The noise of wide smoothing is estimated from few values, and if the noise is
            # correlated over space, it does not decrease.
            background = noise = max(background, _spread(values))
        else:
            noise = float(deviation[index])
        if not index:
            best = best._replace(deviation=noise)
        if not noise > 0:
            continue
        extreme = max(values.argmax(), values.argmin(), key=lambda at: abs(values.flat[at]))
        z = abs(float(values.flat[extreme])) / noise
        threshold = normal if kurtosis is None else _bennett(normal, float(kurtosis[index]))
        if z / threshold > largest:
            largest = z / threshold
            lag, row, column = np.unravel_index(extreme, values.shape)
            at = int(lag), int(level.rows[row]), int(level.columns[column])
            best = _Peak(z, threshold, *at, level.width, best.deviation)
    return best


def _bennett(normal: float, kurtosis: float) -> float:
    """The z of noise with an excess kurtosis that is as probable as `normal` in normal noise."""
    from scipy.optimize import brentq

    if not kurtosis > 1e-4:  # below, the equation loses its digits
        return normal
    b, exponent = kurtosis**0.5, normal**2 / 2
    # Bernstein's inequality is the weaker one, so its solution is an upper limit.
    upper = b * exponent / 3 + ((b * exponent / 3) ** 2 + 2 * exponent) ** 0.5

    def excess(z: float) -> float:
        return float((1 + b * z) * np.log1p(b * z) - b * z) / kurtosis - exponent

    return float(brentq(excess, normal, 1.01 * upper))


def _some(values: NDArray[Any]) -> NDArray[Any]:
    """Values that are enough for a median: about 20,000, evenly spaced."""
    flat = values.reshape(-1)
    # An even step would meet the same columns only, in a screen of even width.
    return flat[:: max(1, flat.size // 20_000) | 1]


def _spread(values: NDArray[Any]) -> float:
    """A robust standard deviation: 1.4826 times the median absolute deviation from the median."""
    some = _some(values)
    spread = 1.4826 * float(np.median(np.abs(some - np.median(some))))
    # The median of few discrete values, as those from a few spikes, may be 0.
    return spread or float(some.std())


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
        (...), NaN for fewer than 3 checks in a row.

    Example:
        >>> import numpy as np
        >>> import xarray as xr
        >>> ramp = xr.DataArray(np.add.outer(np.arange(8.0), np.arange(8.0)), dims=("y", "x"))
        >>> bool(morans_i_z(ramp) > 5)
        True
    """
    sides = [np.arange(image.sizes[dim]) for dim in ("y", "x")]
    neighbours = np.add.outer(*((n > 0).astype(int) + (n < n[-1]) for n in sides))
    size, s0, s2 = neighbours.size, float(neighbours.sum()), 4 * float((neighbours**2).sum())
    if size < 3:  # the autocorrelation of one check is not defined, and that of two is always -1
        return xr.full_like(morans_i(image), np.nan)
    expected = -1 / (size - 1)
    squared = (2 * size**2 * s0 - size * s2 + 3 * s0**2) / ((size**2 - 1) * s0**2)
    result: xr.DataArray = (morans_i(image) - expected) / (squared - expected**2) ** 0.5
    return result
