"""Spikes of the cell and spikes drawn from the model, and their rates (Yan et al. 2020, Fig 4c)."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from pydantic import Field

from retinakit.analysis import Analysis, groups, sweep_dims
from retinakit.config import Config
from retinakit.metrics import correlation
from retinakit.model import Model
from retinakit.recording import mean_response

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RasterConfig(Config):
    """Which part of the test is shown."""

    start: int = Field(0, ge=0, description="The first test frame with a full history to show.")
    frames: int = Field(300, ge=1, description="How many frames.")
    trials: int = Field(30, ge=1, description="Trials at most, of the data and of the model.")


class Raster(Analysis):
    """Trials of the cell, trials drawn from the model's Poisson rate, and both rates.

    The result has `data (trial, frame, cell)`, `model (model_trial, frame, cell)` drawn
    with the step's seed, `rate_data` (mean over all repeats) and `rate_model (frame, cell)` in
    spikes per bin, `rate_true` where it is known, and `correlation` in the window shown.
    """

    Config = RasterConfig

    def run(self, model: Model, data: xr.DataTree) -> xr.Dataset:
        c, test = self.config, data["test"].to_dataset()
        predicted = model.predict(test["stimulus"])
        known = np.flatnonzero(predicted.notnull().all("cell"))
        shown = known[min(c.start, len(known) - 1) :][: c.frames]
        test, predicted = test.isel(frame=shown), predicted.isel(frame=shown)
        response = test["response"]
        if "repeat" not in response.dims:
            response = response.expand_dims("repeat")
        random = np.random.default_rng(self.seed)
        trials = min(c.trials, max(response.sizes["repeat"], 2))
        drawn = random.poisson(predicted.values, (trials, *predicted.shape))
        result = xr.Dataset(
            {
                "data": response.isel(repeat=slice(0, trials)).rename(repeat="trial"),
                "rate_data": mean_response(test).astype(float),
                "rate_model": predicted,
                "correlation": correlation(predicted, mean_response(test).astype(float)),
            }
        )
        result["model"] = (("model_trial", "frame", "cell"), drawn.astype(np.uint16))
        if "rate" in test:
            result["rate_true"] = test["rate"]
        result.attrs["frame_interval"] = test.attrs["frame_interval"]
        return result.drop_vars("segment").assign_coords(
            frame=shown, model_trial=np.arange(trials), trial=np.arange(result.sizes["trial"])
        )

    def plot(self, result: xr.DataTree) -> "Figure":
        from matplotlib.figure import Figure

        shown = list(_panels(result))[:4]
        figure = Figure(figsize=(8.5, 2.9 * len(shown)), layout="constrained")
        axes = figure.subplots(
            3 * len(shown), 1, sharex=True, squeeze=False, height_ratios=[1, 1, 1.2] * len(shown)
        )[:, 0]
        for index, (label, panel) in enumerate(shown):
            data, model, rates = axes[3 * index : 3 * index + 3]
            bins = 1 / panel.attrs["frame_interval"]
            time = panel["time"].values
            _spikes(data, time, panel["data"].transpose(..., "frame").values, "0.15")
            _spikes(model, time, panel["model"].transpose(..., "frame").values, "C1")
            data.set_ylabel("cell")
            model.set_ylabel("model")
            data.set_title(label, loc="left")
            if "rate_true" in panel:
                rates.plot(
                    time, panel["rate_true"] * bins, color="C2", lw=3, alpha=0.4, label="true"
                )
            rates.plot(time, panel["rate_data"] * bins, color="0.15", lw=0.9, label="cell")
            rates.plot(time, panel["rate_model"] * bins, color="C1", lw=1.2, label="model")
            rates.set_ylabel("rate (Hz)")
            rates.legend(frameon=False, ncols=3, loc="upper right", fontsize=8)
        axes[-1].set_xlabel("time in the test (s)")
        return figure

    def caption(self, result: xr.DataTree) -> str:
        return (
            "Trials of the cell, trials drawn from the model's Poisson rate, and the rates. Of a "
            "sweep, the last point; of several cells, the first; four panels at most."
        )


def _panels(result: xr.DataTree) -> Any:
    for name, group in groups(result).items():
        dims = sweep_dims(group)
        point = group.isel({dim: -1 for dim in dims if dim != "cell"})
        values = [f"{dim} {point[dim].item()}" for dim in dims if dim != "cell"]
        cells = point.sizes["cell"] if "cell" in dims else 1
        for cell in range(cells):
            panel = point.isel(cell=cell)
            yield ", ".join([name, *values, f"cell {panel['cell'].item()}"]), panel


def _spikes(axis: Any, time: Any, trials: Any, color: str) -> None:
    """Dots for bins with spikes, a row a trial."""
    row, frame = np.nonzero(np.nan_to_num(trials) > 0)
    axis.plot(time[frame], row, "|", ms=4, mew=0.7, color=color)
    axis.set(yticks=[], ylim=(len(trials) - 0.5, -0.5))
