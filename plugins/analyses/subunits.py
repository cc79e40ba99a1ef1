"""The filters of a fitted model, compared with the true subunits where they are known."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from retinakit.contracts import Analysis, Config, Model, UserError, cases, groups, points
from retinakit.report import draw_field, in_time
from retinakit.spikes import morans_i, space_and_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SubunitsConfig(Config):
    """Options of the separation of the filters."""

    subtract_mean: bool = Field(
        False,
        description="Whether to subtract the mean of each filter of several lags before it is "
        "separated into space and time. A learned filter may have an offset, as in the networks "
        "of Zheng et al. (2021), which would be its largest part.",
    )


class Subunits(Analysis):
    """A model's filters at their place in the stimulus, matched to the true subunits.

    A convolution filter is placed, for each cell, at the position of the largest absolute output
    weight, and multiplied by the sign of that weight. For filters in space and time the spatial
    part of the singular value decomposition is used.

    The result has `filter_image (cell, filter, y, x)` of unit norm; `temporal (filter, lag)` for
    filters of several lags; `strength (cell, filter)`, the norm of the filter times the norm of its
    output weights, relative to the cell's strongest filter; and `morans_i (filter)`. If the group
    `truth` has subunits, it has `match (cell, subunit)`, the cosine of each true subunit with the
    filter assigned to it by the Hungarian method, or with the closest filter if none is assigned;
    `matched_filter (cell, subunit)`, -1 if none is assigned; `best_match (cell, filter)`, the
    cosine of each filter with the closest true subunit; and `receptive_field_match (cell,
    filter)`, the cosine with the sum of the true subunits.

    Raises:
        UserError: if the model has no filters, its filters have channels, or they are shared by all
            cells without output weights that place them.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.cnn import CNN
        >>> model = CNN.with_options(lags=5, filters=2, kernel=5, steps=10)
        >>> recording = small_recording()
        >>> _ = model.fit(recording)
        >>> result = Subunits().run(model, recording)
        >>> dict(result["filter_image"].sizes), dict(result["match"].sizes)
        ({'cell': 2, 'filter': 2, 'y': 8, 'x': 8}, {'cell': 2, 'subunit': 4})
    """

    Config = SubunitsConfig

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        parts = space_and_time(model, subtract_mean=self.config.subtract_mean)
        parameters = model.parameters()
        filters = parts["spatial"]
        result = xr.Dataset()
        if "temporal" in parts:
            result["temporal"] = parts["temporal"]
        field = data["test"].to_dataset()["stimulus"].isel(frame=0, drop=True)
        if "output_weight" in parameters:
            acting, strength = _in_field(filters, parameters["output_weight"], field)
        elif "cell" not in filters.dims:
            raise UserError(
                f"the filters of a {type(model).__name__} are shared by all cells and have no "
                "place in the stimulus (there is no parameter 'output_weight'); use the analysis "
                "features or masks"
            )
        else:
            acting, strength = filters, (filters**2).sum(("y", "x")) ** 0.5
        norm = (acting**2).sum(("y", "x")) ** 0.5
        acting = acting / norm.where(norm > 0)
        strongest = strength.max("filter")
        result["filter_image"] = acting.transpose("cell", "filter", "y", "x")
        result["strength"] = strength / strongest.where(strongest > 0)
        result["morans_i"] = morans_i(filters)
        if "truth" in data.children and "subunit_weight" in data["truth"].to_dataset():
            result = result.merge(
                _match(result["filter_image"], data["truth"].to_dataset()["subunit_weight"])
            )
        return result

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        rows = list(_rows(result))[:12]
        columns = max(row["filter_image"].sizes["filter"] for _, row in rows)
        columns = min(columns, 16)
        truth = next(
            (
                g["truth_image"].isel(
                    {d: 0 for d in g["truth_image"].dims if d not in ("subunit", "y", "x")}
                )
                for g in groups(result).values()
                if "truth_image" in g
            ),
            None,
        )
        extra = 0 if truth is None else 1
        if truth is not None:
            columns = max(columns, min(truth.sizes["subunit"], 16))
        figure = Figure(
            figsize=(max(1.15 * columns + 1.3, 4), 1.3 * (len(rows) + extra)), layout="constrained"
        )
        axes = figure.subplots(len(rows) + extra, columns, squeeze=False)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[], frame_on=False)
        if truth is not None:
            for axis, image in zip(axes[0], truth, strict=False):
                draw_field(axis, image)
            axes[0, 0].set_ylabel("true", rotation=0, ha="right", va="center")
        for row_axes, (label, row) in zip(axes[extra:], rows, strict=True):
            weighted = row["filter_image"] * row["strength"]  # weak filters are drawn pale
            drawn = in_time(weighted, row.get("temporal"))
            limit = float(abs(drawn).max())
            for axis, index in zip(row_axes, _order(row), strict=False):
                draw_field(axis, drawn.isel(filter=index), limit=limit)
                if "best_match" in row:
                    axis.set_title(f"{float(row['best_match'][index]):.2f}", fontsize=8, pad=2)
                elif np.isfinite(row["morans_i"][index]):
                    axis.set_title(f"I = {float(row['morans_i'][index]):.2f}", fontsize=8, pad=2)
            row_axes[0].set_ylabel(label, rotation=0, ha="right", va="center")
        return figure

    def caption(self, result: xr.DataTree) -> str:
        known = any("match" in group for group in groups(result).values())
        number = (
            "Numbers are cosines with the closest true subunit."
            if known
            else "Numbers are Moran's I, the spatial autocorrelation."
        )
        order = "in the order of the true subunits" if known else "the strongest first"
        return (
            "Filters at their place in the stimulus, for the (first) cell, with contrast in "
            f"proportion to their strength, {order}. {number}"
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame | None:
        lines = []
        for name, group in groups(result).items():
            if "match" not in group:
                continue
            frame = group["match"].to_dataframe()["match"].unstack("subunit")
            frame.columns = [f"subunit {column}" for column in frame.columns]
            frame["found (≥ 0.85)"] = (frame >= 0.85).sum(axis=1)
            best = group["receptive_field_match"].max("filter")
            frame["receptive field"] = best.to_dataframe()["receptive_field_match"]
            frame = frame.reset_index()
            frame.insert(0, "model", name)
            lines.append(frame)
        if not lines:
            return None
        table = pd.concat(lines, ignore_index=True)
        first = points(result)
        return table[[*first, *[column for column in table if column not in first]]]


def _in_field(
    kernels: xr.DataArray, weights: xr.DataArray, field: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray]:
    """Convolution kernels placed at their largest absolute output weight, times its sign.

    Returns:
        The images (cell, filter, y, x), and the strength (cell, filter).
    """
    kernel = kernels.transpose("filter", "y", "x").values
    weight = weights.transpose("cell", "filter", "map_y", "map_x").values
    images = np.zeros((*weight.shape[:2], field.sizes["y"], field.sizes["x"]))
    strength = np.zeros(weight.shape[:2])
    height, width = kernel.shape[1:]
    for cell, filters in enumerate(weight):
        for index, positions in enumerate(filters):
            row, column = np.unravel_index(np.abs(positions).argmax(), positions.shape)
            peak = positions[row, column]
            top, left = int(weights["map_y"][row]), int(weights["map_x"][column])
            images[cell, index, top : top + height, left : left + width] = (
                np.sign(peak) * kernel[index]
            )
            strength[cell, index] = np.linalg.norm(kernel[index]) * np.linalg.norm(positions)
    coords = {"cell": weights["cell"], "filter": kernels["filter"]}
    space = {dim: field[dim] for dim in ("y", "x") if dim in field.coords}
    return (
        xr.DataArray(images, coords | space, ("cell", "filter", "y", "x")),
        xr.DataArray(strength, coords, ("cell", "filter")),
    )


def _match(images: xr.DataArray, truth: xr.DataArray) -> xr.Dataset:
    """Cosines of the filters with the true subunits, and their one-to-one assignment.

    Args:
        images: (cell, filter, y, x), of unit norm.
        truth: (cell, subunit, y, x).
    """
    shown = images.transpose("cell", "filter", "y", "x").fillna(0).values
    known = truth.transpose("cell", "subunit", "y", "x").values
    cosines = np.einsum("cfyx,csyx->csf", shown, _unit(known))
    match = np.full(cosines.shape[:2], np.nan)
    chosen = np.full(cosines.shape[:2], -1)
    for cell, table in enumerate(cosines):
        subunits, filters = linear_sum_assignment(-table)
        match[cell, subunits] = table[subunits, filters]
        chosen[cell, subunits] = filters
    # With fewer filters than subunits, the other subunits are compared with the closest filter.
    match = np.where(chosen < 0, cosines.max(-1), match)
    field = np.einsum("cfyx,cyx->cf", shown, _unit(known.sum(1)))
    coords: dict[str, Any] = {
        **{name: images[name] for name in ("cell", "filter", "y", "x") if name in images.coords},
        "subunit": truth["subunit"],
    }
    return xr.Dataset(
        {
            "match": (("cell", "subunit"), match),
            "matched_filter": (("cell", "subunit"), chosen),
            "best_match": (("cell", "filter"), cosines.max(1)),
            "receptive_field_match": (("cell", "filter"), field),
            "truth_image": (("cell", "subunit", "y", "x"), known),
        },
        coords=coords,
    )


def _unit(images: NDArray[Any]) -> NDArray[Any]:
    norm = np.linalg.norm(images, axis=(-2, -1), keepdims=True)
    return np.divide(images, norm, out=np.zeros(images.shape), where=norm > 0)


def _rows(result: xr.DataTree) -> Iterator[tuple[str, xr.Dataset]]:
    """The (first) cell of each model and point of its sweep, with a label."""
    for label, case in cases(result):
        one = case.isel(cell=0) if "cell" in case.dims else case
        yield label, one.isel(filter=one["filter_image"].notnull().any(("y", "x")).values)


def _order(row: xr.Dataset) -> NDArray[Any]:
    """Filters in the order of the subunits that they match, then by strength."""
    strength = row["strength"].values
    order = np.argsort(-np.nan_to_num(strength))
    if "matched_filter" not in row:
        return order
    labels = row["filter"].values.tolist()
    first = [labels.index(f) for f in row["matched_filter"].values if f >= 0 and f in labels]
    return np.array([*first, *[i for i in order if i not in first]])
