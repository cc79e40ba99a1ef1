"""Spikes and rates of cells and models in the test frames (Yan et al. 2020, Fig 4c)."""

from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field

from retinakit.contracts import (
    SPIKES_PER_BIN,
    Analysis,
    Config,
    Model,
    full_history,
    groups,
    mean_over_repeats,
    mean_response,
    sweep_dims,
)
from retinakit.report import to_hertz
from retinakit.scores import checked, correlation, reason
from retinakit.simulation import poisson_spikes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RasterConfig(Config):
    """Options of the part of the test that is shown."""

    start: int = Field(
        0, ge=0, description="First frame, counted among the test frames with a full history."
    )
    frames: int = Field(300, ge=1, description="Number of frames.")
    trials: int = Field(
        30, ge=1, description="Largest number of trials shown of the data and of the model."
    )


class Raster(Analysis):
    """Recorded trials, trials drawn from the model, and both rates.

    The result has `data (trial, frame, cell)`, the recorded spikes; `model (model_trial, frame,
    cell)`, if the responses are spikes per bin: Poisson spikes drawn from the prediction with the
    step's seed, or those simulated by a model with spike history; `rate_data (frame, cell)`, the
    mean over all repeats, `rate_model (frame, cell)` and, where it is known, `rate_true (frame,
    cell)`, in the units of the response; `correlation (cell)` of the prediction with the mean
    response in the frames shown; and `reason (cell)` where there is no correlation. Other responses
    than spike counts, such as dF/F, are drawn as traces only.

    Example:
        >>> from retinakit.testing import SmallModel, small_recording
        >>> model, recording = SmallModel(), small_recording()
        >>> _ = model.fit(recording)
        >>> result = Raster.with_options(frames=40).run(model, recording)
        >>> dict(result["data"].sizes)
        {'trial': 5, 'frame': 40, 'cell': 2}
    """

    Config = RasterConfig
    quick: ClassVar[dict[str, Any]] = {"frames": 40, "trials": 4}

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        c, test = self.config, data["test"].to_dataset()
        predicted = mean_over_repeats(model.predict(test))
        known = np.flatnonzero(full_history(test["segment"], model.lags))
        shown = known[min(c.start, len(known) - 1) :][: c.frames]
        test, predicted = test.isel(frame=shown), predicted.isel(frame=shown)
        # All these frames have a full history, so that no prediction may be missing.
        compared = (checked(predicted, lags=1), mean_response(test).astype(float))
        response = test["response"]
        if "repeat" not in response.dims:
            response = response.expand_dims("repeat")
        trials = min(c.trials, max(response.sizes["repeat"], 2))
        result = xr.Dataset(
            {
                "data": response.isel(repeat=slice(0, trials)).rename(repeat="trial"),
                "rate_data": mean_response(test).astype(float),
                "rate_model": predicted,
                "correlation": correlation(*compared),
            }
        )
        why = reason(*compared)
        if (why != "").any():
            result["reason"] = why
        if response.attrs["units"] == SPIKES_PER_BIN and not (response < 0).any():
            if "response" in getattr(model, "inputs", ()):  # spikes depend on those before
                simulated = model.simulate(data["test"], trials, self.seed)  # type: ignore[attr-defined]
                drawn = simulated.values[:, shown]
            else:
                drawn = poisson_spikes(predicted.values, trials, self.seed)
            result["model"] = (("model_trial", "frame", "cell"), drawn)
            result = result.assign_coords(model_trial=np.arange(trials))
        if "rate" in test:
            result["rate_true"] = test["rate"]
        result.attrs["frame_interval"] = test.attrs["frame_interval"]
        return result.drop_vars("segment").assign_coords(
            frame=shown, trial=np.arange(result.sizes["trial"])
        )

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        cells = list(_cells(result).items())[:CELLS_SHOWN]
        counted = all("model" in panel for _, models in cells for panel in models.values())
        heights = [h for _, models in cells for h in [1.0] * (1 + len(models)) * counted + [1.4]]
        figure = Figure(figsize=(8.5, 0.75 * sum(heights) + 0.4), layout="constrained")
        grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
        axes = iter(grid[:, 0])
        for label, models in cells:
            first = next(iter(models.values()))
            time = first["time"].values
            bins, unit = to_hertz(first["rate_data"], first.attrs["frame_interval"])
            *rasters, rates = islice(axes, (1 + len(models)) * counted + 1)
            (rasters or [rates])[0].set_title(f"cell {label}", loc="left")
            if counted:
                _spikes(rasters[0], time, first["data"], "0.15", "cell")
                for index, (name, panel) in enumerate(models.items()):
                    times = panel["time"].values
                    _spikes(rasters[1 + index], times, panel["model"], f"C{index}", name)
            if "rate_true" in first:
                rates.plot(time, first["rate_true"] * bins, color="0.75", lw=4, label="true")
            rates.plot(time, first["rate_data"] * bins, color="0.15", lw=0.9, label="cell")
            for index, (name, panel) in enumerate(models.items()):
                rate = panel["rate_model"] * bins
                rates.plot(panel["time"], rate, color=f"C{index}", lw=1.2, label=name)
            rates.set_ylabel(unit)
            rates.legend(frameon=False, ncols=5, loc="upper right", fontsize=8)
        rates.set_xlabel("time in the test (s)")
        return figure

    def caption(self, result: xr.DataTree) -> str:
        cells = len(_cells(result))
        some = f" (the first {CELLS_SHOWN} of {cells} cells)" if cells > CELLS_SHOWN else ""
        counted = all("model" in group for group in groups(result).values())
        trials = "recorded trials, trials drawn from the prediction of each model, and "
        return (
            f"For each cell, {trials if counted else ''}the mean response and the predictions"
            f"{some}. For a model that was swept, the last point of the sweep "
            "is shown."
        )


CELLS_SHOWN = 3


def _cells(result: xr.DataTree) -> dict[str, dict[str, xr.Dataset]]:
    """The data to draw by cell, then by model, at the last point of all other sweeps."""
    found: dict[str, dict[str, xr.Dataset]] = {}
    for name, group in groups(result).items():
        swept = [dim for dim in sweep_dims(group) if dim != "cell"]
        point = group.isel(dict.fromkeys(swept, -1))
        label = ", ".join([name, *(f"{dim} {point[dim].item()}" for dim in swept)])
        for index, cell in enumerate(point["cell"].values):
            found.setdefault(str(cell), {})[label] = point.isel(cell=index)
    return found


def _spikes(axis: Any, time: Any, trials: xr.DataArray, color: str, label: str) -> None:
    """Draws a stroke for each bin with spikes, with one row per trial."""
    values = np.nan_to_num(trials.transpose(..., "frame").values)
    row, frame = np.nonzero(values > 0)
    axis.plot(time[frame], row, "|", ms=4, mew=0.7, color=color)
    if np.isnan(trials).all():
        axis.text(0.5, 0.5, "not recorded", transform=axis.transAxes, ha="center", va="center")
    axis.set(yticks=[], ylim=(len(values) - 0.5, -0.5))
    axis.set_ylabel(label, rotation=0, ha="right", va="center")
