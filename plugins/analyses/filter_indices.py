"""Spatial and temporal indices of a model's filters (Zheng et al. 2021, Figs 2E, 2G and 5A)."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from retinakit.contracts import Analysis, Config, Model, UserError, cases, groups, points
from retinakit.spikes import SHAPE_INDICES, shape_indices, space_and_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FilterIndicesConfig(Config):
    """There are no options."""


class FilterIndices(Analysis):
    """The spatial autocorrelation of a model's filters against their temporal regularity.

    The filters of the first layer, minus their mean, are separated into space and time by singular
    value decomposition. The spatial index is Moran's I of the spatial part. The temporal indices
    are the temporal regularity (Zheng et al. 2021, Eq 8), which is high for a single peak, and the
    temporal autocorrelation, which is normalised and separates smooth filters from noise
    (`retinakit.spikes.temporal_autocorrelation`).

    The result has `morans_i`, `temporal_regularity` and `temporal_autocorrelation ([cell,]
    filter)`. If the group `truth` of the recording has subunits, with `subunit_weight` or
    `bipolar_field` and `temporal`, it also has their indices with the prefix `true_`, in which the
    true temporal filters have as many lags as the model's.

    Raises:
        UserError: if the model has no filters, or they have channels or a single lag.

    Example:
        >>> from retinakit.testing import small_recording
        >>> from retinakit_plugins.models.cnn import CNN
        >>> model = CNN.with_options(lags=5, filters=2, kernel=5, steps=10)
        >>> recording = small_recording()
        >>> _ = model.fit(recording)
        >>> result = FilterIndices().run(model, recording)
        >>> dict(result["morans_i"].sizes), dict(result["true_morans_i"].sizes)
        ({'filter': 2}, {'cell': 2, 'subunit': 4})
    """

    Config = FilterIndicesConfig
    quick: ClassVar[dict[str, Any]] = {}

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        parts = space_and_time(model, subtract_mean=True)
        if "temporal" not in parts:
            raise UserError(
                "filters of one lag have no temporal regularity; fit a model of several lags"
            )
        result = shape_indices(parts["spatial"], parts["temporal"])
        if "filter" not in result.coords:
            result = result.assign_coords(filter=np.arange(result.sizes["filter"]))
        truth = data["truth"].to_dataset() if "truth" in data.children else xr.Dataset()
        names = [name for name in ("subunit_weight", "bipolar_field") if name in truth]
        if names and "temporal" in truth:
            lag = parts["temporal"]["lag"]
            temporal = truth["temporal"].drop_vars("lag_time", errors="ignore")
            temporal = temporal.reindex(lag=lag.values, fill_value=0)
            true = shape_indices(truth[names[0]], temporal)
            result = result.merge(true.rename({name: f"true_{name}" for name in SHAPE_INDICES}))
        return result

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        shown = list(cases(result))
        figure = Figure(figsize=(9.5, 3.8), layout="constrained")
        axes = figure.subplots(1, 2)
        for axis, index in zip(axes, list(SHAPE_INDICES)[1:], strict=True):
            true = next((case for _, case in shown if "true_morans_i" in case), None)
            if true is not None:
                _scatter(axis, true, f"true_{index}", "true_morans_i", "true subunits", "k", "x")
            for number, (label, case) in enumerate(shown):
                text = label.replace("\n", ", ")
                _scatter(axis, case, index, "morans_i", text, f"C{number}", "o")
            axis.set(xlabel=SHAPE_INDICES["morans_i"], ylabel=SHAPE_INDICES[index])
        if axes[0].get_legend_handles_labels()[0]:
            axes[0].legend(frameon=False, fontsize=8)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        known = any("true_morans_i" in group for group in groups(result).values())
        return (
            "Spatial autocorrelation of the filters of the first layer against their temporal "
            "regularity (left) and temporal autocorrelation (right). Bars are mean ± sd"
            + (", and black crosses are the true subunits" * known)
            + ". Noise has a Moran's I and a temporal autocorrelation of about 0."
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        frames = []
        for name, group in groups(result).items():
            columns = {"filters": group["morans_i"].count(_units(group["morans_i"]))}
            for prefix, what in (("", ""), ("true_", "true ")):
                for index, label in SHAPE_INDICES.items():
                    if f"{prefix}{index}" in group:
                        values = group[f"{prefix}{index}"]
                        over = _units(values)
                        columns[f"mean {what}{label}"] = values.mean(over)
                        columns[f"sd of {what}{label}"] = values.std(over)
            frame = xr.Dataset(columns).expand_dims("line").to_dataframe().reset_index()
            frame.insert(0, "model", name)
            frames.append(frame.drop(columns="line"))
        table = pd.concat(frames, ignore_index=True)
        first = [column for column in points(result) if column in table]
        return table[[*first, *[column for column in table if column not in first]]]


UNITS = ("filter", "subunit", "bipolar", "type")


def _units(values: xr.DataArray) -> list[str]:
    """The dimensions of filters, and of the cells of a population, not of a sweep over cells."""
    return [str(dim) for dim in values.dims if dim in UNITS or dim == "cell"]


def _scatter(
    axis: Any, case: xr.Dataset, temporal: str, spatial: str, label: str, color: str, marker: str
) -> None:
    """One dot for each filter, and their mean and standard deviation."""
    x, y = case[spatial], case[temporal]
    if set(x.dims) <= set(y.dims) or set(y.dims) <= set(x.dims):
        x, y = xr.broadcast(x, y)
        axis.plot(x.values.ravel(), y.values.ravel(), marker, ms=4, color=color, alpha=0.5)
    known = [one.values[np.isfinite(one.values)] for one in (x, y)]
    if all(map(len, known)):
        (mean_x, mean_y), (sd_x, sd_y) = ([getattr(k, w)() for k in known] for w in ("mean", "std"))
        axis.errorbar(mean_x, mean_y, sd_y, sd_x, color=color, capsize=2, label=label, zorder=3)
