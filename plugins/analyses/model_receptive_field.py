"""Receptive fields of a cell and of its model (Yan et al. 2020, Figs 2, 4a and 9a)."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr
from pydantic import Field

from retinakit.contracts import (
    Analysis,
    Config,
    Model,
    UserError,
    cases,
    groups,
    mean_over_repeats,
    points,
)
from retinakit.report import draw_field, extended
from retinakit.simulation import poisson_spikes
from retinakit.spikes import separate, sta

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ModelReceptiveFieldConfig(Config):
    """Options of the averages."""

    lags: int | None = Field(
        None, ge=1, description="Number of lags of the averages; by default that of the model."
    )
    trials: int = Field(
        1, ge=1, description="Number of spike trains drawn from the model for its average."
    )


class ModelReceptiveField(Analysis):
    """Spike-triggered averages of a cell's spikes and of Poisson spikes drawn from its model.

    The model predicts the rates for the training stimulus, and Poisson spikes are drawn from them
    with the step's seed. The result has `sta (source, cell, lag, y, x)` for the sources "data" and
    "model", in the units of the stimulus; `spatial (source, cell, y, x)` and `temporal (source,
    cell, lag)` from its singular value decomposition; `spikes (source, cell)`; and the cosines of
    the two sources `cosine`, `cosine_spatial` and `cosine_temporal (cell)`. With one lag, as in
    Version I of Yan et al., `spatial` is the average itself and there is no `temporal`.

    Raises:
        UserError: if the stimulus has channels.

    Example:
        >>> from retinakit.testing import SmallModel, small_recording
        >>> model, recording = SmallModel(), small_recording()
        >>> _ = model.fit(recording)
        >>> result = ModelReceptiveField.with_options(trials=5).run(model, recording)
        >>> dict(result["sta"].sizes)
        {'source': 2, 'cell': 2, 'lag': 5, 'y': 8, 'x': 8}
        >>> bool((result["cosine"] > 0.9).all())
        True
    """

    Config = ModelReceptiveFieldConfig

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        train = data["train"].to_dataset()
        if "channel" in train["stimulus"].dims:
            raise UserError("the stimulus has channels; model_receptive_field takes one without")
        # Frames without a prediction get no spikes, so the average excludes them.
        predicted = mean_over_repeats(model.predict(train))
        rate = predicted.transpose("frame", "cell").values
        drawn = poisson_spikes(rate, self.config.trials, self.seed)
        modelled = train.assign(response=(("repeat", "frame", "cell"), drawn))
        lags = self.config.lags or model.lags
        averages = [sta(split, lags) for split in (train, modelled)]
        result: xr.Dataset = xr.concat(averages, "source", combine_attrs="drop")
        parts = separate(result["sta"])
        if lags == 1:
            result["spatial"] = parts["spatial"] * parts["temporal"].isel(lag=0, drop=True)
        else:
            result = result.merge(parts[["spatial", "temporal"]])
            result["cosine_temporal"] = _cosine(result["temporal"], "lag")
        result["cosine"] = _cosine(result["sta"], "lag", "y", "x")
        result["cosine_spatial"] = _cosine(result["spatial"], "y", "x")
        return result.assign_coords(source=["data", "model"])

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        shown = list(islice(_cells(result), 12))
        timed = any("temporal" in one for _, one in shown)
        panels, beside = (3, 2) if timed else (2, 3)
        beside = min(beside, len(shown))
        rows = -(-len(shown) // beside)
        figure = Figure(
            figsize=((1.6 * panels + 1.1) * beside, 1.8 * rows + 0.3), layout="constrained"
        )
        grid = figure.subplots(rows, panels * beside, squeeze=False)
        for axis in grid.flat:
            axis.set_axis_off()
        for (label, one), axes in zip(shown, grid.reshape(-1, panels), strict=False):
            for axis, source in zip(axes, ("data", "model"), strict=False):
                field = one["spatial"] if len(extended(one["spatial"])) == 2 else one["sta"]
                draw_field(axis, field.sel(source=source))
                axis.set_axis_on()
                axis.set(xticks=[], yticks=[])
            axes[0].set_ylabel(label, rotation=0, ha="right", va="center")
            axes[0].set_title("cell", fontsize=9)
            axes[1].set_title(f"model ({float(one['cosine_spatial']):.2f})", fontsize=9)
            if "temporal" in one:
                _draw_course(axes[2], one)
        return figure

    def caption(self, result: xr.DataTree) -> str:
        cells = len(list(_cells(result)))
        timed = any("temporal" in group for group in groups(result).values())
        return (
            "Receptive fields from the cell's spikes and from spikes drawn from the model: the "
            "spatial map of the spike-triggered average of the training stimulus (for bars, the "
            "average in time and space, and for a full field in time)"
            + (" and its time course (black: cell, orange: model)" * timed)
            + ". In brackets is the cosine between cell and model."
            + (f" The first 12 of {cells} panels are shown." if cells > 12 else "")
        )

    def table(self, result: xr.DataTree) -> pd.DataFrame:
        cosines = ["cosine", "cosine_spatial", "cosine_temporal"]
        frames = []
        for name, group in groups(result).items():
            numbers = group[[cosine for cosine in cosines if cosine in group]]
            for source in ("data", "model"):
                numbers[f"spikes, {source}"] = group["spikes"].sel(source=source, drop=True)
            frame = numbers.to_dataframe().reset_index()
            frame.insert(0, "model", name)
            frames.append(frame)
        table = pd.concat(frames, ignore_index=True)
        first = points(result)
        return table[[*first, *[c for c in table if c not in first]]]


def _cosine(values: xr.DataArray, *dims: str) -> xr.DataArray:
    """The cosine of the two sources over some dimensions."""
    first, second = values.isel(source=0), values.isel(source=1)
    power = (first**2).sum(dims) * (second**2).sum(dims)
    result: xr.DataArray = (first * second).sum(dims) / power.where(power > 0) ** 0.5
    return result


def _cells(result: xr.DataTree) -> Iterator[tuple[str, xr.Dataset]]:
    """Every cell of every point of the sweeps, with a label."""
    for label, case in cases(result):
        if "cell" not in case.dims:
            yield label, case
            continue
        for index, cell in enumerate(case["cell"].values):
            several = f"\ncell {cell}" if case.sizes["cell"] > 1 else ""
            yield label + several, case.isel(cell=index)


def _draw_course(axis: Any, one: xr.Dataset) -> None:
    for source, color in (("data", "0.3"), ("model", "C1")):
        axis.plot(-1000 * one["lag_time"], one["temporal"].sel(source=source), color=color)
    axis.axhline(0, color="0.8", lw=0.8, zorder=0)
    axis.set_title(f"({float(one['cosine_temporal']):.2f})", fontsize=9)
    axis.set_axis_on()
    axis.set(yticks=[])
    axis.set_xlabel("time before spike (ms)", fontsize=8)
