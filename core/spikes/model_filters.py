"""Spatial and temporal filters of a fitted model."""

import xarray as xr

from retinakit.contracts.errors import UserError
from retinakit.contracts.model import Model
from retinakit.spikes.receptive_fields import separate


def space_and_time(model: Model, *, subtract_mean: bool = False) -> xr.Dataset:
    """Separates a model's parameter `kernel` into spatial and temporal filters.

    Spatiotemporal filters are separated by singular value decomposition, as in
    `retinakit.spikes.separate`. With a single lag there is no temporal filter, and the spatial
    filter keeps its sign.

    Args:
        model: a fitted model.
        subtract_mean: whether to subtract the mean of each filter of several lags first, as for
            `separate`.

    Returns:
        `spatial ([cell,] filter, y, x)`, with indices as y and x for a convolved filter, and, with
        several lags, `temporal ([cell,] filter, lag)`. `filter` has the size 1 if each cell has a
        filter of its own.

    Raises:
        UserError: if the model has no parameter `kernel`, or its filters have channels.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.ln import LN
        >>> model = LN.with_options(lags=3)
        >>> _ = model.fit(small_recording())
        >>> sorted(map(str, space_and_time(model).data_vars))
        ['spatial', 'temporal']
    """
    parameters = model.parameters()
    if "kernel" not in parameters:
        raise UserError(
            f"the {type(model).__name__} has no parameter 'kernel' and so no filters; choose a "
            "model with filters, such as ln or cnn"
        )
    kernel = parameters["kernel"]
    if "channel" in kernel.dims:
        raise UserError(
            "the model's filters have channels (dimension 'channel'), which is not supported; fit "
            "a stimulus without channels"
        )
    if "filter" not in kernel.dims:  # one filter for each cell, as in an LN model
        kernel = kernel.expand_dims({"filter": [0]}, axis=1)
    if "kernel_y" in kernel.dims:
        kernel = kernel.rename(kernel_y="y", kernel_x="x")
    if "lag" not in kernel.dims:
        return xr.Dataset({"spatial": kernel})
    several = kernel.sizes["lag"] > 1
    parts = separate(kernel, subtract_mean=subtract_mean and several)
    if several:
        return parts[["spatial", "temporal"]]
    return xr.Dataset({"spatial": parts["spatial"] * parts["temporal"].isel(lag=0, drop=True)})
