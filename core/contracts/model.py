"""The model contract: fit a recording, predict expected spikes, give labelled parameters, save."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import xarray as xr

from retinakit.contracts.errors import RecordingError, UserError
from retinakit.contracts.plugin import Plugin
from retinakit.contracts.progress import Progress, silent
from retinakit.contracts.recording import STIMULUS_DIMS, lag_coordinate

ENGINE: Final = "h5netcdf"


class Model(Plugin, ABC):
    """Predicts the expected response of each cell from the stimulus.

    A subclass says `fit`, `predict`, `parameters`, and `state` and `restore` for saving. `lags` is
    the number of frames it looks back over, the present one included.
    """

    @property
    @abstractmethod
    def lags(self) -> int:
        """Frames of history that a prediction needs, its own frame included."""

    @abstractmethod
    def fit(
        self,
        recording: xr.DataTree,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> xr.Dataset:
        """Fits on `train`, chooses on `validation`, does not look at `test`.

        Args:
            recording: see `retinakit.contracts.recording`.
            checkpoint: a file to write the state of an unfinished fit to now and then, and to go
                on from if it exists; the result is the same as that of an uninterrupted fit.
            progress: is told how far the fit is.

        Returns:
            The training curves, along the dimension `check`.

        Raises:
            UserError: if the recording does not suit the model.
        """

    @abstractmethod
    def predict(self, stimulus: xr.DataArray) -> xr.DataArray:
        """Expected spikes per bin.

        Args:
            stimulus: (frame, [channel,] y, x) with the coordinate `segment`, as in a recording.

        Returns:
            (frame, cell); NaN in frames without a full history.

        Raises:
            RecordingError: if the stimulus is not of the form that the model was fitted to.
        """

    @abstractmethod
    def parameters(self) -> xr.Dataset:
        """What was learned, as arrays with dimensions and coordinates that say what they are.

        Filters on the stimulus are called `kernel`: `(cell, lag, y, x)` where each cell has one,
        `(filter, lag, kernel_y, kernel_x)` where they are convolved, with `output_weight (cell,
        filter, map_y, map_x)`.
        """

    @abstractmethod
    def state(self) -> xr.Dataset:
        """Everything that `restore` needs to make a fitted model again."""

    @abstractmethod
    def restore(self, state: xr.Dataset) -> None:
        """Takes back what `state` gave."""

    def save(self, path: Path | str, curves: xr.Dataset | None = None) -> None:
        """Writes the fitted model as NetCDF-4: groups `parameters`, `state` and `curves`."""
        groups = {"parameters": self.parameters(), "state": self.state()}
        if curves is not None:
            groups["curves"] = curves
        tree = xr.DataTree.from_dict(groups)
        tree.attrs = {
            "retinakit_class": type(self).__name__,
            "retinakit_config": self.config.model_dump_json(),
            "retinakit_seed": self.seed,
        }
        tree.to_netcdf(Path(path), engine=ENGINE)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads a model of this class that `save` wrote.

        Raises:
            UserError: if the file holds something else.
        """
        with xr.open_datatree(Path(path), engine=ENGINE) as tree:
            if tree.attrs.get("retinakit_class") != cls.__name__:
                raise UserError(
                    f"{path} holds a {tree.attrs.get('retinakit_class', 'file without a model')}, "
                    f"not a {cls.__name__}"
                )
            model = cls(
                json.loads(tree.attrs["retinakit_config"]), seed=int(tree.attrs["retinakit_seed"])
            )
            model.restore(tree["state"].to_dataset().load())
        return model


def coordinates_of(split: xr.Dataset, lags: int) -> xr.Dataset:
    """The coordinates that label the parameters of a model of this recording.

    Kept in a model's `state`, so that a model read from disk knows its field and its cells.
    """
    stimulus = split["stimulus"]
    coords: dict[str, Any] = dict(lag_coordinate(np.arange(lags), split.attrs["frame_interval"]))
    for dim in ("channel", "y", "x"):
        if dim in stimulus.dims:
            has_coordinate = dim in split.coords
            coords[dim] = (
                split[dim].variable if has_coordinate else (dim, np.arange(split.sizes[dim]))
            )
    coords["cell"] = split["cell"].variable
    return xr.Dataset(coords=coords, attrs={"frame_interval": split.attrs["frame_interval"]})


def check_stimulus(stimulus: xr.DataArray, fitted: xr.Dataset) -> None:
    """Checks that a stimulus is of the form a model was fitted to.

    Args:
        stimulus: what `predict` was given.
        fitted: what `coordinates_of` gave at the fit.

    Raises:
        RecordingError: naming the dimension that differs.
    """
    if tuple(stimulus.dims) not in STIMULUS_DIMS:
        raise RecordingError(
            f"the stimulus has dimensions ({', '.join(map(str, stimulus.dims))}); "
            "give (frame, [channel,] y, x)"
        )
    for dim in ("channel", "y", "x"):
        size, expected = stimulus.sizes.get(dim), fitted.sizes.get(dim)
        if size != expected:
            raise RecordingError(
                f"the stimulus has {size or 'no'} '{dim}' and the model was fitted with "
                f"{expected or 'none'}; crop it to the same field"
            )
