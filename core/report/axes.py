"""Units and coordinates of the panels that several analyses draw."""

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from retinakit.contracts.recording import SPIKES_PER_BIN


def to_hertz(rate: xr.DataArray, frame_interval: float) -> tuple[float, str]:
    """The factor from the units of a rate to those of its axis, and the axis label.

    Spikes per bin are drawn in Hz. Other responses, such as dF/F, are drawn in their own units.

    Args:
        rate: with the attribute `units`; without it, in spikes per bin.
        frame_interval: the width of a bin in seconds.

    Returns:
        The factor and the label.

    Example:
        >>> import xarray as xr
        >>> to_hertz(xr.DataArray([2.0], attrs={"units": "spikes per bin"}), 0.02)
        (50.0, 'Hz')
        >>> to_hertz(xr.DataArray([2.0], attrs={"units": "dF/F"}), 0.02)
        (1.0, 'dF/F')
    """
    units = str(rate.attrs.get("units", SPIKES_PER_BIN))
    return (1 / frame_interval, "Hz") if units.startswith(SPIKES_PER_BIN) else (1.0, units)


def pixel_edges(y: ArrayLike, x: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The edges of pixels from the coordinates of their centres, for `pcolormesh`.

    A dimension of one pixel is as wide as the pixels of the other one, or 1.

    Args:
        y, x: (y,) and (x,), increasing or decreasing.

    Returns:
        (y + 1,) and (x + 1,).

    Example:
        >>> [edges.tolist() for edges in pixel_edges([30.0], [0.0, 50.0, 100.0])]
        [[5.0, 55.0], [-25.0, 25.0, 75.0, 125.0]]
    """
    places = [np.asarray(values, float) for values in (y, x)]
    widths = [abs(float(values[1] - values[0])) for values in places if len(values) > 1]
    width = widths[0] if widths else 1.0

    def edges(centres: NDArray[np.float64]) -> NDArray[np.float64]:
        if len(centres) == 1:
            return centres[0] + np.array([-0.5, 0.5]) * width
        middle = (centres[1:] + centres[:-1]) / 2
        first, last = 1.5 * centres[0] - 0.5 * centres[1], 1.5 * centres[-1] - 0.5 * centres[-2]
        return np.concatenate([[first], middle, [last]])

    return edges(places[0]), edges(places[1])
