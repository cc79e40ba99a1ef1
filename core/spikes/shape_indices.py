"""Indices of the shape of filters in space and in time."""

import xarray as xr

from retinakit.spikes.receptive_fields import morans_i

SHAPE_INDICES = {
    "morans_i": "Moran's I",
    "temporal_regularity": "temporal regularity",
    "temporal_autocorrelation": "temporal autocorrelation",
}
"""The variables of `shape_indices`, with their names in pictures and tables."""

EPSILON = 5e-4
"""ε of Eq 8 of Zheng et al. (2021)."""


def temporal_regularity(temporal: xr.DataArray) -> xr.DataArray:
    """The temporal regularity of a filter (Zheng et al. 2021, Eq 8).

    I = (1/T) Σ_i (max_j |w_j| - |w_i|) - ε / (‖w - mean(w)‖ + ε) with ε = 5e-4, where w is the
    filter of T lags with unit norm. The printed equation lacks bars and has the terms of the sum in
    the other order; this is its form in the authors' code.

    The index is large if the filter has a single high peak. For 20 lags it is 0.95 for a filter of
    one lag, 0.36 for a biphasic filter, 0.31 ± 0.08 for white noise, and -1 for a constant. It does
    not separate noise from a biphasic filter; `temporal_autocorrelation` does.

    Args:
        temporal: (..., lag), of any norm.

    Returns:
        (...), from -1 to 1, NaN for a filter of zeros.

    Example:
        >>> import numpy as np
        >>> one_lag, constant = np.eye(20)[3], np.ones(20)
        >>> filters = xr.DataArray([one_lag, constant], dims=("filter", "lag"))
        >>> temporal_regularity(filters).values.round(6).tolist()
        [0.949487, -1.0]
    """
    norm = (temporal**2).sum("lag", skipna=False) ** 0.5
    w = temporal / norm.where(norm > 0)
    size = abs(w)
    peaked = (size.max("lag") - size).mean("lag", skipna=False)
    deviation = ((w - w.mean("lag")) ** 2).sum("lag", skipna=False) ** 0.5
    result: xr.DataArray = peaked - EPSILON / (deviation + EPSILON)
    return result


def temporal_autocorrelation(temporal: xr.DataArray) -> xr.DataArray:
    """Moran's I of a temporal filter: its autocorrelation between adjacent lags.

    I = T / (T - 1) · Σ_i b_i b_{i+1} / Σ_i b_i², where b is the filter of T lags minus its mean.
    This is the index of `morans_i` in one dimension. It is normalised, so that filters of different
    lengths can be compared, and it separates smooth filters from noise, which
    `temporal_regularity` does not.

    Args:
        temporal: (..., lag), of any norm.

    Returns:
        (...), about -1/(T-1) for noise, near 1 for a smooth filter, NaN for a constant one and for
        a single lag.

    Example:
        >>> import numpy as np
        >>> sine = xr.DataArray(np.sin(2 * np.pi * np.arange(20) / 20), dims="lag")
        >>> float(temporal_autocorrelation(sine).round(2))
        1.0
    """
    b = temporal - temporal.mean("lag", skipna=False)
    lags = b.sizes["lag"]
    power = (b**2).sum("lag", skipna=False)
    # Rounding leaves a power of about 1e-32 in a constant filter.
    some = power > 1e-12 * (temporal**2).sum("lag")
    later, earlier = (
        b.isel(lag=part).drop_vars(["lag", "lag_time"], errors="ignore")
        for part in (slice(1, None), slice(None, -1))
    )
    adjacent = (later * earlier).sum("lag")
    result: xr.DataArray = (lags / max(lags - 1, 1)) * adjacent / power.where(some)
    return result


def shape_indices(spatial: xr.DataArray, temporal: xr.DataArray) -> xr.Dataset:
    """The spatial and temporal indices of filters that are products of space and time.

    Args:
        spatial: (..., y, x).
        temporal: (..., lag). With a single lag there are no temporal indices.

    Returns:
        `morans_i (...)`, and `temporal_regularity` and `temporal_autocorrelation (...)`.

    Example:
        >>> import numpy as np
        >>> image = xr.DataArray(np.eye(4), dims=("y", "x"))
        >>> course = xr.DataArray(np.sin(np.arange(10)), dims="lag")
        >>> list(shape_indices(image, course)) == list(SHAPE_INDICES)
        True
    """
    found = {"morans_i": morans_i(spatial)}
    if temporal.sizes["lag"] > 1:
        found["temporal_regularity"] = temporal_regularity(temporal)
        found["temporal_autocorrelation"] = temporal_autocorrelation(temporal)
    return xr.Dataset(found)
