"""Spikes and rates of cells and models in the test frames (Yan et al. 2020, Fig 4c)."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field

from retinakit.contracts import Analysis, Config, Model, groups, mean_response, sweep_dims
from retinakit.scores import correlation, reason

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
    """Recorded trials, Poisson trials drawn from the model's rate, and both rates.

    The result has `data (trial, frame, cell)`, the recorded spikes; `model (model_trial, frame,
    cell)`, Poisson spikes drawn from the prediction with the step's seed; `rate_data (frame,
    cell)`, the mean over all repeats, `rate_model (frame, cell)` and, where it is known,
    `rate_true (frame, cell)`, in spikes per bin; `correlation (cell)` of the prediction with the
    mean response in the frames shown; and `reason (cell)` where there is no correlation.

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
        predicted = model.predict(test)
        known = np.flatnonzero(predicted.notnull().all("cell"))
        shown = known[min(c.start, len(known) - 1) :][: c.frames]
        test, predicted = test.isel(frame=shown), predicted.isel(frame=shown)
        response = test["response"]
        if "repeat" not in response.dims:
            response = response.expand_dims("repeat")
        random = np.random.default_rng(self.seed)
        trials = min(c.trials, max(response.sizes["repeat"], 2))
        rate = np.maximum(predicted.values, 0)  # of a linear model, it may be negative
        drawn = random.poisson(rate, (trials, *predicted.shape))
        result = xr.Dataset(
            {
                "data": response.isel(repeat=slice(0, trials)).rename(repeat="trial"),
                "rate_data": mean_response(test).astype(float),
                "rate_model": predicted,
                "correlation": correlation(predicted, mean_response(test).astype(float)),
            }
        )
        why = reason(predicted, mean_response(test).astype(float))
        if (why != "").any():
            result["reason"] = why
        result["model"] = (("model_trial", "frame", "cell"), drawn.astype(np.uint16))
        if "rate" in test:
            result["rate_true"] = test["rate"]
        result.attrs["frame_interval"] = test.attrs["frame_interval"]
        return result.drop_vars("segment").assign_coords(
            frame=shown, model_trial=np.arange(trials), trial=np.arange(result.sizes["trial"])
        )

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        cells = list(_cells(result).items())[:CELLS_SHOWN]
        heights = [h for _, models in cells for h in [1.0] * (1 + len(models)) + [1.4]]
        figure = Figure(figsize=(8.5, 0.75 * sum(heights) + 0.4), layout="constrained")
        axes = iter(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
        for label, models in cells:
            first = next(iter(models.values()))
            bins, time = 1 / first.attrs["frame_interval"], first["time"].values
            axis = next(axes)
            axis.set_title(f"cell {label}", loc="left")
            _spikes(axis, time, first["data"], "0.15", "cell")
            for index, (name, panel) in enumerate(models.items()):
                _spikes(next(axes), panel["time"].values, panel["model"], f"C{index}", name)
            rates = next(axes)
            if "rate_true" in first:
                rates.plot(time, first["rate_true"] * bins, color="0.75", lw=4, label="true")
            rates.plot(time, first["rate_data"] * bins, color="0.15", lw=0.9, label="cell")
            for index, (name, panel) in enumerate(models.items()):
                rate = panel["rate_model"] * bins
                rates.plot(panel["time"], rate, color=f"C{index}", lw=1.2, label=name)
            rates.set_ylabel("Hz")
            rates.legend(frameon=False, ncols=5, loc="upper right", fontsize=8)
        rates.set_xlabel("time in the test (s)")
        return figure

    def caption(self, result: xr.DataTree) -> str:
        cells = len(_cells(result))
        some = f" (the first {CELLS_SHOWN} of {cells} cells)" if cells > CELLS_SHOWN else ""
        return (
            "For each cell, recorded trials, Poisson trials drawn from the prediction of each "
            f"model, and the rates{some}. For a model that was swept, the last point of the sweep "
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
