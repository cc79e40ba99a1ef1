"""The model contract: fit a recording, predict expected spikes, give labelled parameters, save."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from retinakit.contracts.errors import RecordingError, UserError, nearest
from retinakit.contracts.netcdf import read_netcdf, write_netcdf
from retinakit.contracts.plugin import Plugin
from retinakit.contracts.progress import Progress, silent
from retinakit.contracts.recording import (
    RESPONSE_DIMS,
    SPIKES_PER_BIN,
    STIMULUS_DIMS,
    full_history,
    lag_coordinate,
    same_interval,
)

Shown = xr.Dataset | xr.DataTree | xr.DataArray | ArrayLike


class Model(Plugin, ABC):
    """Predicts the expected response of each cell from the stimulus.

    A subclass says `fit`, `respond`, `parameters`, and `state` and `restore` for saving. `lags` is
    the number of frames it looks back over, the present one included. `fit` and `restore` set
    `field`.

    A model with parts that one can look into, such as a network, also says `layers`, `activity` and
    `without`. The analyses of filters, lesions and optimal stimuli are written against these.
    """

    field: xr.Dataset
    """What `coordinates_of` gave at the fit: lags, channels, pixels and cells."""

    extends: ClassVar[str] = ""
    """The option, such as `steps`, with a larger value of which a finished fit is continued."""

    several: ClassVar[bool] = False
    """Whether `fit` may be given several recordings, as a mapping from their names."""

    def begins_anew(self) -> str:
        """Why a fit with a larger value of `extends` begins anew; "" if a finished one goes on."""
        return ""

    @property
    def recordings(self) -> tuple[str, ...]:
        """The names of the recordings that the model was fitted to; () if it was one."""
        return ()

    def of(self, name: str) -> "Model":
        """The fitted model of one of several recordings.

        Raises:
            UserError: if there is no recording of this name.
        """
        raise UserError(
            f"the {type(self).__name__} was not fitted to a recording named '{name}'; "
            f"{nearest(name, self.recordings)}"
        )

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

        Frames in which a cell has no response (NaN) are left out for that cell. In `validation` a
        cell may have none.

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
    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        """The expected responses to a split, as numbers; `predict` checks and labels.

        Args:
            split: `stimulus (frame, [channel,] y, x)` of the size that was fitted and the
                coordinate `segment`, with at least one frame that has a full history. Covariates
                and responses are there if `predict` was given them.

        Returns:
            ([repeat,] frame, cell). Values in frames without a full history are not used.
        """

    def predict(self, split: Shown) -> xr.DataArray:
        """Expected responses, in spikes per bin or the units of the response that was fitted.

        Args:
            split: a split of a recording, its stimulus alone, or an array (frame, [channel,] y, x),
                which is one segment.

        Returns:
            ([repeat,] frame, cell) with the cells that were fitted and the frames' coordinates
            (`time`, `segment`, and those of trials); NaN in frames without a full history.

        Raises:
            RecordingError: if the stimulus is not of the form that the model was fitted to.
            UserError: if the model is not fitted, or is of several recordings.
        """
        split = self.prepare(split)
        frames, cells = split.sizes["frame"], self.field.sizes["cell"]
        rate = np.full((frames, cells), np.nan)
        if full_history(split["segment"], self.lags).any():
            rate = np.asarray(self.respond(split))
        if rate.ndim not in (2, 3) or rate.shape[-2:] != (frames, cells):
            raise UserError(
                f"respond of the {type(self).__name__} gave an array of shape {rate.shape}; it "
                f"must be ([repeat,] frame, cell), here ({frames}, {cells})"
            )
        prediction = self.label(rate, split, RESPONSE_DIMS[rate.ndim - 2], name="prediction")
        prediction.attrs["units"] = self.field.attrs.get("response_units", SPIKES_PER_BIN)
        return prediction.assign_coords(cell=self.field["cell"].variable)

    def layers(self) -> dict[str, str]:
        """The names of the layers one can look into, with the dimension of their units."""
        return {}

    def activity(self, split: Shown, layer: str) -> xr.DataArray:
        """The output of the units of a layer, after its nonlinearity.

        Args:
            split: as for `predict`.
            layer: one of `layers()`.

        Returns:
            (frame, unit dimension, ...), NaN in frames without a full history.

        Raises:
            UserError: if there is no such layer.
        """
        raise self._no_layer(layer)

    def without(self, layer: str, units: Sequence[int]) -> Self:
        """A copy of the fitted model in which some units of a layer are silent: their output is 0.

        Args:
            layer: one of `layers()`.
            units: positions along the layer's dimension of units.

        Raises:
            UserError: if there is no such layer or unit.
        """
        raise self._no_layer(layer)

    def check_layer(self, layer: str) -> None:
        """Raises UserError unless the model is fitted and has the layer."""
        self.check_fitted()
        if layer not in self.layers():
            raise self._no_layer(layer)

    def check_units(self, layer: str, units: Sequence[int], size: int) -> None:
        """Raises UserError unless the layer, of `size` units, has these units."""
        self.check_layer(layer)
        unknown = [unit for unit in units if not 0 <= unit < size]
        if unknown:
            raise UserError(
                f"'{layer}' of the {type(self).__name__} has {size} units and there is no unit "
                f"{unknown[0]}; count them from 0"
            )

    def _no_layer(self, layer: str) -> UserError:
        name, layers = type(self).__name__, self.layers()
        if not layers:
            return UserError(
                f"the {name} has no layers that one can look into; name a model that has, such as "
                "a convolutional network"
            )
        return UserError(f"the {name} has no layer '{layer}'; {nearest(layer, layers)}")

    def check_fitted(self) -> None:
        """Raises UserError unless the model was fitted or loaded."""
        if not hasattr(self, "field"):
            raise UserError(f"the {type(self).__name__} is not fitted; call fit or load first")

    def prepare(self, split: Shown) -> xr.Dataset:
        """What `predict` was given as a split that suits the fitted model.

        Raises:
            RecordingError: naming the dimension that differs.
            UserError: if the model is not fitted, or is of several recordings.
        """
        self.check_fitted()
        if self.recordings:
            raise UserError(
                f"the {type(self).__name__} was fitted to several recordings "
                f"({', '.join(self.recordings)}); choose one with of(name)"
            )
        split = _as_split(split, self.field)
        _check_split(split, self.field)
        return split

    def label(
        self, values: NDArray[Any], split: xr.Dataset, dims: Sequence[str], name: str | None = None
    ) -> xr.DataArray:
        """Values of a split's frames with the frames' coordinates.

        Args:
            values: with `frame` among the dimensions `dims`.
            split: what `prepare` gave.

        Returns:
            The same, NaN in frames without a full history.
        """
        known = full_history(split["segment"], self.lags)
        shape = [-1 if dim == "frame" else 1 for dim in dims]
        coords = {
            str(key): coordinate.variable
            for key, coordinate in split.coords.items()
            if coordinate.dims == ("frame",) or (key == "repeat" and "repeat" in dims)
        }
        return xr.DataArray(
            np.where(known.reshape(shape), values, np.nan), dims=dims, coords=coords, name=name
        )

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
        write_netcdf(tree, path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads a model of this class that `save` wrote.

        Raises:
            UserError: if the file holds something else, or is damaged.
        """
        with reading_model(path):
            tree = read_netcdf(path, load=True)
            if tree.attrs.get("retinakit_class") != cls.__name__:
                raise UserError(
                    f"{path} holds a {tree.attrs.get('retinakit_class', 'file without a model')}, "
                    f"not a {cls.__name__}"
                )
            model = cls(
                json.loads(tree.attrs["retinakit_config"]), seed=int(tree.attrs["retinakit_seed"])
            )
            model.restore(tree["state"].to_dataset())
            written, restored = tree["parameters"].to_dataset(), model.parameters()
            for name in written.variables:
                if written[name].shape != restored[name].shape:
                    raise UserError(f"{path}: '{name}' and the state of the model do not agree")
        return model


def cells_of_recording(labelled: xr.Dataset, recording: str) -> xr.Dataset:
    """Arrays of one recording of several, with its cells named RECORDING/CELL.

    Args:
        labelled: with the dimension `cell`.
        recording: its name, which becomes the coordinate `recording` along `cell`.

    Example:
        >>> import xarray as xr
        >>> of_one = xr.Dataset({"rate": ("cell", [1.5, 0.5])}, {"cell": [3, 4]})
        >>> cells_of_recording(of_one, "left")["cell"].values.tolist()
        ['left/3', 'left/4']
    """
    cells = [f"{recording}/{cell}" for cell in labelled["cell"].values]
    return labelled.assign_coords(
        cell=("cell", np.array(cells)), recording=("cell", np.array([recording] * len(cells)))
    )


@contextmanager
def reading_model(path: Path | str) -> Iterator[None]:
    """Turns whatever is raised while a fitted model is read into a sentence.

    Raises:
        UserError: saying that the file is not there or is damaged.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the path") from None
    except Exception as error:  # what a damaged file leads to, in HDF5 or in the model
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{path} cannot be read as a fitted model ({reason}); it may be damaged: fit it again"
        ) from error


def coordinates_of(split: xr.Dataset, lags: int) -> xr.Dataset:
    """The coordinates that label the parameters of a model of this recording.

    A model keeps them as its `field` and in its `state`, so that one read from disk knows its
    pixels and its cells. The attributes are `frame_interval` (s) and `response_units`.
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
    if "covariates" in split:
        coords["covariate"] = split["covariate"].variable
    attrs = {"frame_interval": split.attrs["frame_interval"]}
    if "response" in split:
        attrs["response_units"] = split["response"].attrs.get("units", SPIKES_PER_BIN)
    return xr.Dataset(coords=coords, attrs=attrs)


def _as_split(shown: Shown, field: xr.Dataset) -> xr.Dataset:
    """A split of what `predict` was given, with segments, times and a frame interval."""
    if isinstance(shown, xr.DataTree):
        shown = shown.to_dataset()
    if isinstance(shown, xr.Dataset):
        if "stimulus" not in shown:
            raise RecordingError("the split has no variable 'stimulus', which is what is shown")
        split = shown
    elif isinstance(shown, xr.DataArray):
        split = shown.rename("stimulus").to_dataset()
    else:
        array = np.asarray(shown)
        if array.ndim not in (3, 4) or array.dtype.kind not in "biuf":
            raise RecordingError(
                f"the stimulus is an array of {array.ndim} dimensions of type {array.dtype}; "
                "give numbers (frame, [channel,] y, x)"
            )
        split = xr.Dataset({"stimulus": (STIMULUS_DIMS[array.ndim - 3], array)})
    dims = tuple(map(str, split["stimulus"].dims))
    if dims not in STIMULUS_DIMS:
        raise RecordingError(
            f"the stimulus has dimensions ({', '.join(dims)}); give (frame, [channel,] y, x)"
        )
    frames = split.sizes["frame"]
    if "segment" not in split.coords:
        split = split.assign_coords(segment=("frame", np.zeros(frames, np.int32)))
    if "frame_interval" not in split.attrs:
        split = split.assign_attrs(frame_interval=field.attrs["frame_interval"])
    if "time" not in split.coords:
        time = np.arange(frames) * split.attrs["frame_interval"]
        split = split.assign_coords(time=("frame", time, {"units": "s"}))
    return split


def _check_split(split: xr.Dataset, field: xr.Dataset) -> None:
    """Checks that a split is of the form that a model was fitted to."""
    for dim in ("channel", "y", "x"):
        size, expected = split["stimulus"].sizes.get(dim), field.sizes.get(dim)
        if size != expected:
            raise RecordingError(
                f"the stimulus has {size or 'no'} '{dim}' and the model was fitted with "
                f"{expected or 'none'}; crop it to the same field"
            )
    interval, expected = split.attrs["frame_interval"], field.attrs["frame_interval"]
    if not same_interval(interval, expected):
        raise RecordingError(
            f"a frame lasts {interval:g} s (attribute 'frame_interval') and the model was fitted "
            f"to frames of {expected:g} s; resample the stimulus"
        )
    if "covariates" in split and "covariate" in field.coords:
        given, fitted = split["covariate"].values, field["covariate"].values
        if not np.array_equal(given, fitted):
            raise RecordingError(
                f"the covariates are {', '.join(map(str, given))} (dimension 'covariate') and the "
                f"model was fitted with {', '.join(map(str, fitted))}; give the same in this order"
            )
