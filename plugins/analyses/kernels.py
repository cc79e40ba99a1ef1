"""Spatial kernels of a model as images, with their asymmetry (Murray et al., Fig 3H)."""

from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field

from retinakit.contracts import Analysis, Config, Model, UserError, cases, groups, nearest
from retinakit.report import draw_field

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASES, MOST, COLUMNS = 2, 64, 8
"""Largest numbers of models, of kernels of each, and of kernels in a row that are drawn."""


class KernelsConfig(Config):
    """Options of the kernels."""

    variable: str = Field(
        "kernel",
        description="Variable of the model's parameters with two dimensions of space at its end, "
        "such as kernel, mask, amacrine_space or decoder.",
    )


class Kernels(Analysis):
    """Spatial kernels of a model, and how asymmetric they are along x and y.

    The asymmetry along x of a kernel w is Σ |w| x / Σ |w|, where x is -1 in the first column and 1
    in the last one: positive if its weights increase to the right, as those of an amacrine cell
    type of Murray et al. Kernels with a dimension `lag` are shown at the lag of most power.

    The result has the variable as `kernel (..., y, x)`, in its own dimensions, `column_sum` and
    `row_sum`, and `asymmetry_x` and `asymmetry_y (...)`, NaN for a kernel of zeros.

    Raises:
        UserError: if the model has no such parameters, or they have no two dimensions of space.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.cnn import CNN
        >>> model = CNN.with_options(lags=5, filters=2, kernel=5, steps=10)
        >>> _ = model.fit(small_recording())
        >>> Kernels.with_options(variable="output_weight").run(model)["asymmetry_x"].dims
        ('cell', 'filter')
    """

    Config = KernelsConfig
    quick: ClassVar[dict[str, Any]] = {}

    def run(self, model: Model) -> xr.Dataset:
        name, parameters = self.config.variable, model.parameters()
        if name not in parameters:
            raise UserError(
                f"the {type(model).__name__} has no parameter '{name}'; "
                f"{nearest(name, [str(key) for key in parameters])}"
            )
        kernel = parameters[name].astype(float)
        y, x = _space(kernel)
        if "lag" in kernel.dims:
            power = (kernel**2).sum([y, x])
            kernel = kernel.isel(lag=power.argmax("lag"))
            kernel = kernel.drop_vars(["lag", "lag_time"], errors="ignore")
        weight = abs(kernel)
        total = weight.sum([y, x]).where(lambda sum: sum > 0)
        result = {"kernel": kernel, "column_sum": kernel.sum(y), "row_sum": kernel.sum(x)}
        for axis, dim in (("x", x), ("y", y)):
            place = xr.DataArray(np.linspace(-1, 1, kernel.sizes[dim]), dims=dim)
            if len(place) == 1:
                place = place * 0
            result[f"asymmetry_{axis}"] = (weight * place).sum([y, x]) / total
        numbered = {
            dim: np.arange(size) for dim, size in kernel.sizes.items() if dim not in kernel.coords
        }
        return xr.Dataset(result, numbered, {"variable": name})

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        drawn = [(label, *_listed(case["kernel"])) for label, case in islice(cases(result), CASES)]
        width = min(COLUMNS, max(columns for *_, columns in drawn))
        heights = [max(1, -(-len(kernels) // width)) for _, kernels, _ in drawn]
        figure = Figure(figsize=(1 + width, 0.5 + 1.1 * sum(heights)), layout="constrained")
        parts = figure.subfigures(len(drawn), height_ratios=heights, squeeze=False)[:, 0]
        for part, height, (label, kernels, _) in zip(parts, heights, drawn, strict=True):
            limit = max([1e-30, *(float(np.nanmax(np.abs(kernel))) for _, kernel in kernels)])
            axes = part.subplots(height, width, squeeze=False).ravel()
            for axis in axes[len(kernels) :]:
                axis.set_axis_off()
            for axis, (title, kernel) in zip(axes, kernels, strict=False):
                draw_field(axis, kernel, limit=limit)
                axis.set_title(title, fontsize=7)
            if len(drawn) > 1:
                part.suptitle(label, fontsize=8)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        return (
            f"Kernels `{self.config.variable}`; red is positive, and all have one scale of colour. "
            "The asymmetry in the table is positive for weights that increase to the right (x) or "
            "downwards (y)."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        frames = []
        for model, group in groups(result).items():
            # Other points of a sweep may have more kernels.
            there = group["kernel"].notnull().any(group["kernel"].dims[-2:])
            asymmetry = group[["asymmetry_x", "asymmetry_y"]].assign(there=there)
            frame = asymmetry.expand_dims("row").to_dataframe().reset_index()
            frame = frame[frame["there"]].drop(columns=["row", "there"])
            frame.insert(0, "model", model)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)


def _space(kernel: xr.DataArray) -> tuple[str, str]:
    """The last two dimensions, which are of space."""
    y, x = (str(dim) for dim in kernel.dims[-2:]) if kernel.ndim > 1 else ("", "")
    if not (y.endswith("y") and x.endswith("x")):
        raise UserError(
            f"'{kernel.name}' has the dimensions {', '.join(map(str, kernel.dims))} and not two of "
            "space at its end; choose a variable with (..., y, x)"
        )
    return y, x


def _listed(kernel: xr.DataArray) -> tuple[list[tuple[str, xr.DataArray]], int]:
    """The first kernels with their titles, and the number of them that suits one row.

    Kernels that only other points of a sweep have are left out.
    """
    *outer, y, x = kernel.dims
    kernel = kernel.rename({y: "kernel_y", x: "kernel_x"})
    sizes = [kernel.sizes[dim] for dim in outer]
    listed: list[tuple[str, xr.DataArray]] = []
    for index in np.ndindex(*sizes):
        one = kernel.isel(dict(zip(outer, index, strict=True)))
        if len(listed) < MOST and one.notnull().any():
            listed.append(("\n".join(f"{dim} {one[dim].item()}" for dim in outer), one))
    return listed, sizes[-1] if len(outer) > 1 and sizes[-1] > 1 else COLUMNS
