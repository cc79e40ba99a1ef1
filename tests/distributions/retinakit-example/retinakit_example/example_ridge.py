"""A model that is not a torch module: ridge regression in closed form."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from scipy.linalg import solve

from retinakit import Config, Model
from retinakit.contracts import (
    Progress,
    coordinates_of,
    full_history,
    mean_response,
    silent,
)


class ExampleRidgeConfig(Config):
    """Options of the regression."""

    lags: int = Field(4, ge=1, description="Frames of history, the present one included.")
    penalty: float = Field(10.0, gt=0, description="Weight of the squared filter.")


class ExampleRidge(Model):
    """rate = offset + filter · stimulus, with the filter that minimises |error|² + penalty |f|²."""

    Config = ExampleRidgeConfig
    # The checks of retinakit.testing run with these options: small ones, to take seconds.
    quick: ClassVar[dict[str, Any]] = {"lags": 2}

    weights: xr.Dataset

    @property
    def lags(self) -> int:
        lags: int = self.config.lags
        return lags

    def fit(
        self,
        recording: xr.DataTree,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> xr.Dataset:
        split = recording["train"].to_dataset()
        # The coordinates go along with the weights, so that a saved model knows its field.
        field = coordinates_of(split, self.lags)
        windows, counted = self._windows(split["stimulus"])
        response = np.asarray(mean_response(split), dtype=float)[counted]
        pixels = field.sizes["y"] * field.sizes["x"]
        filters = np.empty((field.sizes["cell"], self.lags * pixels))
        offset = np.empty(len(filters))
        for cell in range(len(filters)):
            known = np.isfinite(response[:, cell])  # NaN: not recorded
            x, y = windows[known], response[known, cell]
            centred = x - x.mean(0)
            gram = centred.T @ centred + self.config.penalty * np.eye(x.shape[1])
            filters[cell] = solve(gram, centred.T @ (y - y.mean()), assume_a="pos")
            offset[cell] = y.mean() - x.mean(0) @ filters[cell]
            progress(cell + 1, len(filters), "ridge")
        shape = (len(filters), self.lags, field.sizes["y"], field.sizes["x"])
        self.weights = self.field = field.assign(
            filter=(("cell", "lag", "y", "x"), filters.reshape(shape)), offset=("cell", offset)
        )
        validation = recording["validation"].to_dataset()
        error = self.predict(validation) - mean_response(validation)
        loss = float((error**2).mean())
        return xr.Dataset({"validation_loss": ("check", [loss])}, coords={"check": [0]})

    def _windows(self, stimulus: xr.DataArray) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The histories (window, lag · y · x) of the frames that have one, and which those are."""
        counted = full_history(stimulus["segment"], self.lags)
        pixels = stimulus.sizes["y"] * stimulus.sizes["x"]
        values = stimulus.values.reshape(len(counted), pixels).astype(float)
        frames = np.flatnonzero(counted)[:, None] - np.arange(self.lags)
        return values[frames].reshape(len(frames), self.lags * pixels), counted

    def respond(self, split: xr.Dataset) -> NDArray[np.float64]:
        windows, counted = self._windows(split["stimulus"])
        filters = self.weights["filter"].values.reshape(self.weights.sizes["cell"], -1)
        rate = np.full((len(counted), len(filters)), np.nan)
        rate[counted] = windows @ filters.T + self.weights["offset"].values
        return rate

    def parameters(self) -> xr.Dataset:
        return self.weights

    def state(self) -> xr.Dataset:
        return self.weights

    def restore(self, state: xr.Dataset) -> None:
        self.weights = self.field = state
