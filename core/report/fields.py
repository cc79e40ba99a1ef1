"""Drawing filters and maps of stimuli with two, one or no spatial dimensions."""

from typing import Any

import numpy as np
import xarray as xr

from retinakit.report.axes import pixel_edges

SPACE = ("y", "x", "kernel_y", "kernel_x", "map_y", "map_x")
TIME_LABEL = "time before response (ms)"


def extended(field: xr.DataArray) -> list[str]:
    """The spatial dimensions of a filter or map that have more than one element.

    There are two for a movie, one for bars and none for a full-field stimulus.

    Args:
        field: with dimensions such as y and x, kernel_y and kernel_x, or map_y and map_x.

    Example:
        >>> extended(xr.DataArray(np.zeros((5, 1, 24)), dims=("lag", "y", "x")))
        ['x']
    """
    return [str(dim) for dim in SPACE if field.sizes.get(dim, 1) > 1]


def in_time(spatial: xr.DataArray, temporal: xr.DataArray | None) -> xr.DataArray:
    """The product of the parts of a filter, to be drawn if its space has fewer than two dimensions.

    Args:
        spatial: (..., y, x).
        temporal: (..., lag), or None.

    Returns:
        (..., lag, y, x), or for a space with two dimensions and without several lags, `spatial`.

    Example:
        >>> import xarray as xr
        >>> temporal = xr.DataArray([1.0, 2.0], dims="lag")
        >>> spatial = xr.DataArray(np.ones((1, 3)), dims=("y", "x"))
        >>> dict(in_time(spatial, temporal).sizes), dict(in_time(spatial, None).sizes)
        ({'lag': 2, 'y': 1, 'x': 3}, {'y': 1, 'x': 3})
    """
    if temporal is None or temporal.sizes["lag"] == 1 or len(extended(spatial)) == 2:
        return spatial
    return temporal * spatial


def draw_field(
    axis: Any, field: xr.DataArray, *, limit: float | None = None, labelled: bool = False
) -> None:
    """Draws a filter or map in a form that suits its space.

    With two spatial dimensions it is an image, at the lag of most power. With one, as for bars, it
    is an image of time and position. Without any, as for a full field, it is a course in time. A
    map without lags is an image, a curve over the position, or a point.

    Args:
        axis: of matplotlib.
        field: ([lag,] [channel,] y, x), also with kernel_y and kernel_x, or map_y and map_x. The
            strongest channel is drawn.
        limit: the absolute value of the strongest colour, or of the ends of the axis of a curve; by
            default the largest one of the field.
        labelled: whether to label the axes of time and position.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axis = Figure().subplots()
        >>> draw_field(axis, xr.DataArray(np.ones((5, 1, 1)), dims=("lag", "y", "x")))
        >>> axis.lines[-1].get_xdata().tolist()
        [-4, -3, -2, -1, 0]
    """
    place = extended(field)
    field = _strongest(field, [str(dim) for dim in field.dims if dim not in ("lag", *SPACE)])
    timed = field.sizes.get("lag", 1) > 1
    if "lag" in field.dims and (len(place) == 2 or not timed):
        field = _strongest(field, ["lag"])
    field = field.squeeze([dim for dim in field.dims if dim in SPACE and dim not in place])
    largest = float(np.nanmax(np.abs(field.values), initial=0)) if limit is None else limit
    largest = largest if largest > 0 else 1.0
    colours = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
    if len(place) == 2:
        rows, columns = place
        y, x = pixel_edges(_at(field, rows), _at(field, columns))
        axis.pcolormesh(x, y, field.transpose(rows, columns).values, **colours)
        axis.set_aspect("equal")
        axis.invert_yaxis()
    elif timed:
        field = field.assign_coords(lag=_at(field, "lag")).isel(lag=slice(None, None, -1))
        time = (
            -1000 * field["lag_time"].values if "lag_time" in field.coords else -_at(field, "lag")
        )
        if place:
            y, x = pixel_edges(_at(field, place[0]), time)
            axis.pcolormesh(x, y, field.transpose(place[0], "lag").values, **colours)
            axis.invert_yaxis()
        else:
            _curve(axis, time, field.values, largest)
        if labelled:
            axis.set(xlabel=TIME_LABEL, ylabel="position" if place else "")
    else:
        _curve(axis, _at(field, place[0]) if place else [0], np.atleast_1d(field.values), largest)
        if labelled:
            axis.set(xlabel="position" if place else "")


def _strongest(field: xr.DataArray, dims: list[str]) -> xr.DataArray:
    """The element of most power along each of some dimensions."""
    for dim in dims:
        power = (field**2).sum([other for other in field.dims if other != dim])
        field = field.isel({dim: int(power.values.argmax())})
    return field


def _at(field: xr.DataArray, dim: str) -> Any:
    return field[dim].values if dim in field.coords else np.arange(field.sizes[dim])


def _curve(axis: Any, places: Any, values: Any, limit: float) -> None:
    style = "-" if len(values) > 1 else "o"
    axis.axhline(0, color="0.8", lw=0.6, zorder=0)
    axis.plot(places, values, style, color="0.2", lw=1, ms=4)
    axis.set(ylim=(-1.15 * limit, 1.15 * limit), yticks=[])
