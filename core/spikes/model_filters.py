"""The filters of a fitted model, in space and in time."""

import xarray as xr

from retinakit.contracts.errors import UserError
from retinakit.contracts.model import Model
from retinakit.spikes.receptive_field import separate


def space_and_time(model: Model) -> xr.Dataset:
    """The filters of a model's parameter `kernel`, in space and in time.

    Filters in space and time are taken apart by singular value decomposition, as in
    `retinakit.spikes.separate`. A single lag has no course; its sign stays in the map.

    Returns:
        `spatial ([cell,] filter, y, x)`, where y and x count the checks of a convolved filter, and
        `temporal ([cell,] filter, lag)` where there are several lags. A model with one filter for
        each cell has one `filter`.

    Raises:
        UserError: if the model has no filters, or its filters have channels.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.ln import LN
        >>> model = LN.with_options(lags=3, steps=10)
        >>> _ = model.fit(small_recording())
        >>> sorted(map(str, space_and_time(model).data_vars))
        ['spatial', 'temporal']
    """
    parameters = model.parameters()
    if "kernel" not in parameters:
        raise UserError(
            f"a {type(model).__name__} has no parameter 'kernel', so it has no filters to show"
        )
    kernel = parameters["kernel"]
    if "channel" in kernel.dims:
        raise UserError("the model's filters have channels; filters without are needed")
    if "filter" not in kernel.dims:  # one filter for each cell, as in an LN model
        kernel = kernel.expand_dims({"filter": [0]}, axis=1)
    if "kernel_y" in kernel.dims:
        kernel = kernel.rename(kernel_y="y", kernel_x="x")
    if "lag" not in kernel.dims:
        return xr.Dataset({"spatial": kernel})
    parts = separate(kernel)
    if kernel.sizes["lag"] > 1:
        return parts[["spatial", "temporal"]]
    return xr.Dataset({"spatial": parts["spatial"] * parts["temporal"].isel(lag=0, drop=True)})
