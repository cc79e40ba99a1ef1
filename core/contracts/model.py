"""The model contract: fit a recording, predict responses, return labelled parameters, save."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    with_space,
)

Shown = xr.Dataset | xr.DataTree | xr.DataArray | ArrayLike


class Model(Plugin, ABC):
    """Base class of models, which predict the expected response of each cell from the stimulus.

    A subclass implements `lags`, `fit`, `respond`, `parameters`, and, for saving, `state` and
    `restore`. `fit` and `restore` set `field`.

    A model whose predictions depend on the responses before a frame, such as its spike history, has
    "response" in the attribute `inputs`. Its predictions have the repeats of the responses, and it
    also has `simulate(split, repeats, seed)`, in which its own spikes are the history.

    A model with layers, such as a network, also implements `layers`, `activity` and `without`, and
    possibly `substituted`, which the analyses of filters and lesions use. A model that predicts
    many lesions faster than one by one overrides `lesions`. A differentiable model implements
    `stimulus_gradient`, which the search for optimal stimuli uses.

    Example:
        >>> class Mean(Model):
        ...     lags = 1
        ...
        ...     def fit(self, recording, *, checkpoint=None, progress=silent):
        ...         train = recording["train"].to_dataset()
        ...         self.field = coordinates_of(train, self.lags)
        ...         self.mean = train["response"].mean("frame").values
        ...         return xr.Dataset()
        ...
        ...     def respond(self, split):
        ...         return np.tile(self.mean, (split.sizes["frame"], 1))
        ...
        ...     def parameters(self):
        ...         return self.field.assign(mean=("cell", self.mean))
        ...
        ...     def state(self):
        ...         return self.parameters()
        ...
        ...     def restore(self, state):
        ...         self.field, self.mean = state.drop_vars("mean"), state["mean"].values
        >>> from retinakit.contracts import SPLITS, make_recording, make_split
        >>> spikes = np.array([[0], [1], [2]])  # (frame, cell)
        >>> split = make_split(np.zeros((3, 2, 2)), spikes, frame_interval=0.03)
        >>> model = Mean()
        >>> _ = model.fit(make_recording(dict.fromkeys(SPLITS, split)))
        >>> model.predict(split).values.ravel()
        array([1., 1., 1.])
    """

    field: xr.Dataset
    """The coordinates of the fitted recording (lags, channels, pixels, cells); see
    `coordinates_of`."""

    extends: ClassVar[str] = ""
    """The option, such as `steps`, that can be raised to continue a finished fit; "" for none."""

    any_field: ClassVar[bool] = True
    """Whether `fit` accepts stimuli of one row, one column or one check, such as bars and full
    fields. If it does not, a pipeline refuses them."""

    several: ClassVar[bool] = False
    """Whether `fit` accepts several recordings, as a mapping from their names."""

    def begins_anew(self) -> str:
        """The reason why raising the option `extends` restarts a finished fit.

        Returns:
            One sentence, or "" if the finished fit is continued.
        """
        return ""

    @property
    def recordings(self) -> tuple[str, ...]:
        """The names of the recordings to which the model was fitted; () for a single recording."""
        return ()

    def of(self, name: str) -> "Model":
        """The fitted model of one recording, for a model fitted to several.

        Args:
            name: the name of the recording, one of `recordings`.

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
        """The number of frames on which a prediction depends, including its own frame."""

    @abstractmethod
    def fit(
        self,
        recording: xr.DataTree,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> xr.Dataset:
        """Fits the model on `train` and selects on `validation`, without using `test`.

        Frames in which a cell has no response (NaN) are excluded for that cell. In `validation`, a
        cell may have no responses at all.

        Args:
            recording: see `retinakit.contracts.recording`.
            checkpoint: a file to which the state of an unfinished fit is written regularly. If it
                exists, the fit resumes from it, with the result of an uninterrupted fit.
            progress: is called during the fit.

        Returns:
            The training curves, along the dimension `check` (one entry for each validation). A text
            variable `warning` is shown at the top of the report where it is not empty, after the
            name of the model: "has not converged", for example.

        Raises:
            UserError: if the recording does not suit the model.
        """

    @abstractmethod
    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        """Computes the expected responses to a split for `predict`, which checks and labels them.

        Args:
            split: `stimulus (frame, [channel,] y, x)` of the fitted size and the coordinate
                `segment`, with at least one frame that has a full history. It has covariates and
                responses if `predict` was given them.

        Returns:
            ([repeat,] frame, cell), in the units of the fitted response. Values in frames without
            a full history are ignored.
        """

    def predict(self, split: Shown) -> xr.DataArray:
        """Predicts expected responses, in spikes per bin or the units of the fitted response.

        Args:
            split: a split of a recording, its stimulus alone, or an array (frame, [channel,] y, x)
                that is one segment.

        Returns:
            ([repeat,] frame, cell) with the fitted cells and the coordinates of the frames (`time`,
            `segment`, and those of trials); NaN in frames without a full history.

        Raises:
            RecordingError: if the stimulus does not have the dimensions, pixels or frame interval
                of the fitted recording.
            UserError: if the model is not fitted, or was fitted to several recordings.
        """
        split = self.prepare(split)
        frames, cells = split.sizes["frame"], self.field.sizes["cell"]
        rate = np.full((frames, cells), np.nan)
        if full_history(split["segment"], self.lags).any():
            rate = np.asarray(self.respond(split))
        if rate.ndim not in (2, 3) or rate.shape[-2:] != (frames, cells):
            raise UserError(
                f"respond() of the {type(self).__name__} returned an array of shape {rate.shape}; "
                f"return ([repeat,] frame, cell), here ({frames}, {cells})"
            )
        prediction = self.label(rate, split, RESPONSE_DIMS[rate.ndim - 2], name="prediction")
        prediction.attrs["units"] = self.field.attrs.get("response_units", SPIKES_PER_BIN)
        return prediction.assign_coords(cell=self.field["cell"].variable)

    def layers(self) -> dict[str, str]:
        """The names of the layers, each with the name of the dimension of its units.

        Such as {"convolution": "filter"}; empty for a model without layers.
        """
        return {}

    def activity(self, split: Shown, layer: str) -> xr.DataArray:
        """The outputs of the units of a layer, after its nonlinearity.

        Args:
            split: as for `predict`.
            layer: one of `layers()`.

        Returns:
            (frame, unit dimension, ...), NaN in frames without a full history.

        Raises:
            RecordingError: as for `predict`.
            UserError: if there is no such layer or the model is not fitted.
        """
        raise self._no_layer(layer)

    def stimulus_gradient(
        self, split: Shown, weight: ArrayLike, layer: str | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """The gradient of a weighted sum of predictions, or of activities, by the stimulus.

        Segments are independent, so the gradients of several clips, each of them a segment, are
        computed together.

        Args:
            split: as for `predict`. A model with spike history uses the responses of the split, if
                it has any, as constants; otherwise there are no earlier spikes.
            weight: (frame, cell), or for a layer (frame, unit, ...) as its activity, or an array
                that can be broadcast to this shape. Weights of frames without a full history are
                ignored.
            layer: one of `layers()`; by default the prediction.

        Returns:
            value: (frame,), Σ weight · prediction of each frame; with repeats, their mean. 0 in
                frames without a full history.
            gradient: (frame, [channel,] y, x), of the sum of `value` over frames.

        Raises:
            RecordingError: as for `predict`.
            UserError: as for `predict`, or if the model has no gradient or no such layer.

        Example:
            >>> from retinakit.testing import small_recording
            >>> from retinakit_plugins.models.ln import LN
            >>> model = LN.with_options(lags=5)
            >>> _ = model.fit(small_recording())
            >>> weight = np.zeros((5, 2))  # (frame, cell)
            >>> weight[4, 1] = 1  # the second cell, in the last frame of a clip
            >>> value, gradient = model.stimulus_gradient(np.zeros((5, 8, 8)), weight)
            >>> value.shape, gradient.shape
            ((5,), (5, 8, 8))
            >>> kernel = model.parameters()["kernel"][1, ::-1]  # the last frame is lag 0
            >>> round(float(np.corrcoef(gradient.ravel(), kernel.values.ravel())[0, 1]), 3)
            1.0
        """
        raise UserError(
            f"the {type(self).__name__} has no gradient by the stimulus; choose a differentiable "
            "model, such as a torch model or a filter with a nonlinearity, or implement "
            "stimulus_gradient"
        )

    def without(self, layer: str, units: Sequence[int]) -> Self:
        """A copy of the fitted model in which the outputs of some units of a layer are set to 0.

        Args:
            layer: one of `layers()`.
            units: indices along the layer's dimension of units, from 0.

        Raises:
            UserError: if there is no such layer or unit, or the model is not fitted.
        """
        raise self._no_layer(layer)

    def units(self, split: Shown) -> dict[str, int]:
        """The number of units of each layer.

        Args:
            split: as for `predict`, with at least one frame that has a full history.

        Raises:
            RecordingError: as for `predict`.
            UserError: if no frame has a full history, or the model is not fitted.
        """
        split = self.prepare(split)
        known = np.flatnonzero(full_history(split["segment"], self.lags))
        if len(known) == 0:
            raise UserError(
                f"no segment has the {self.lags} frames on which a prediction of the "
                f"{type(self).__name__} depends; give longer segments"
            )
        first = split.isel(frame=slice(known[0] - self.lags + 1, known[0] + 1))
        layers = self.layers().items()
        return {layer: self.activity(first, layer).sizes[dim] for layer, dim in layers}

    def lesions(
        self, split: Shown, combinations: Iterable[Mapping[str, Sequence[int]]]
    ) -> Iterator[NDArray[Any]]:
        """The predictions of copies in which combinations of units are silent, one after another.

        By default each is computed with `without` and `predict`. A model overrides this method if
        it can compute the predictions of many combinations faster, for example from stored outputs
        of its layers.

        Args:
            split: as for `predict`.
            combinations: the silent units of each copy, as indices by layer; {} for none.

        Yields:
            ([repeat,] frame, cell), the values of the copy's `predict`, without labels, because
            there may be thousands of combinations.

        Raises:
            RecordingError, UserError: as for `predict` and `without`.
        """
        split = self.prepare(split)
        for combination in combinations:
            copied = self
            for layer, units in combination.items():
                copied = copied.without(layer, units)
            yield copied.predict(split).values

    def substituted(self, layer: str, unit: int, by: int) -> Self:
        """A copy of the fitted model in which the output of a unit is that of another unit.

        The substitute takes the place of the unit in the next layer, with the weights of the
        unit's output. It also remains in its own place.

        Args:
            layer: one of `layers()`.
            unit: index of the unit that is replaced.
            by: index of the unit of the same layer that replaces it.

        Raises:
            UserError: if the model does not support it, there is no such layer or unit, or the
                model is not fitted.
        """
        self.check_layer(layer)
        raise UserError(
            f"the {type(self).__name__} cannot substitute units, because it does not define the "
            "method 'substituted'; choose another model, or silence units instead"
        )

    def course_gradient(
        self, split: Shown, weight: ArrayLike, layer: str
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """The gradient of activities in all frames of clips, also those without a full history.

        For a model that begins each clip, a segment of `lags` frames, from rest, and so has an
        activity in each of its frames.

        Args:
            split: as for `predict`, with segments of `lags` frames.
            weight: (frame, unit, ...), or an array that can be broadcast to this shape.
            layer: one of `layers()`.

        Returns:
            value and gradient, as by `stimulus_gradient`.

        Raises:
            RecordingError: as for `predict`.
            UserError: if the model has no activity in all frames, no such layer, or the segments
                do not have `lags` frames.
        """
        self.check_layer(layer)
        raise UserError(
            f"the {type(self).__name__} has an activity only in frames with a full history; choose "
            "a model of clips, such as a circuit, or leave out whole_clip"
        )

    def cropped(self, y: slice, x: slice) -> Self:
        """A copy of the fitted model for a rectangle of the field.

        Its layers have the maps of this rectangle. It has no predictions, but `activity` and
        `stimulus_gradient` of a layer, which take less time than those of the whole field.

        Args:
            y, x: the rows and columns of the stimulus, in pixels.

        Raises:
            UserError: if the layers cannot be computed for a rectangle, or the model is not fitted.
        """
        raise UserError(
            f"the layers of the {type(self).__name__} cannot be computed for a part of the field; "
            "use the whole field"
        )

    def broadcast_weight(
        self, weight: ArrayLike, split: xr.Dataset, shape: tuple[int, ...], *, early: bool = False
    ) -> NDArray[np.float64]:
        """The weight of `stimulus_gradient` of all outputs, 0 in frames without a full history.

        Args:
            weight: as for `stimulus_gradient`.
            split: as returned by `prepare`.
            shape: of the outputs, (frame, ...).
            early: whether frames without a full history keep their weight.

        Raises:
            UserError: if the weight cannot be broadcast to this shape.
        """
        try:
            whole = np.broadcast_to(np.asarray(weight, float), shape)
        except ValueError:
            raise UserError(
                f"the weight of the gradient has the shape {np.shape(weight)} and the outputs of "
                f"the {type(self).__name__} have {shape}; give one weight for each output"
            ) from None
        known = early | full_history(split["segment"], self.lags)
        return np.where(known.reshape(-1, *[1] * (len(shape) - 1)), whole, 0)

    def check_layer(self, layer: str) -> None:
        """Checks that the model is fitted and has a layer.

        Raises:
            UserError: if it is not fitted or has no such layer.
        """
        self.check_fitted()
        if layer not in self.layers():
            raise self._no_layer(layer)

    def check_units(self, layer: str, units: Sequence[int], size: int) -> None:
        """Checks that the model is fitted and a layer has the given units.

        Args:
            layer: one of `layers()`.
            units: indices from 0.
            size: the number of units of the layer.

        Raises:
            UserError: if it is not fitted, or there is no such layer or unit.
        """
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
                f"the {name} has no layers; choose a model with layers, such as a convolutional "
                "network"
            )
        return UserError(f"the {name} has no layer '{layer}'; {nearest(layer, layers)}")

    def check_fitted(self) -> None:
        """Checks that the model was fitted or loaded.

        Raises:
            UserError: if it was not.
        """
        if not hasattr(self, "field"):
            raise UserError(f"the {type(self).__name__} is not fitted; call fit or load first")

    def check_field(self, recording: xr.DataTree) -> None:
        """Checks that the model supports the field of a recording; a pipeline does before `fit`.

        Args:
            recording: see `retinakit.contracts.recording`.

        Raises:
            UserError: if the stimulus has one row or one column of checks and the model does not
                have `any_field`.
        """
        height, width = (recording["train"].sizes[dim] for dim in ("y", "x"))
        if min(height, width) == 1 and not self.any_field:
            raise UserError(
                f"a {type(self).__name__} needs a stimulus of several rows and columns and this "
                f"one has {height} x {width} checks; choose another model"
            )

    def prepare(self, split: Shown) -> xr.Dataset:
        """Converts the argument of `predict` to a split and checks it against the fitted recording.

        Args:
            split: as for `predict`.

        Returns:
            A split with `stimulus`, `segment`, `time` and `frame_interval`.

        Raises:
            RecordingError: if the stimulus differs from that of the fit; the message names the
                dimension.
            UserError: if the model is not fitted, or was fitted to several recordings.
        """
        self.check_fitted()
        if self.recordings:
            raise UserError(
                f"the {type(self).__name__} was fitted to several recordings "
                f"({', '.join(self.recordings)}); select the model of one with of(name)"
            )
        split = _as_split(split, self.field)
        _check_split(split, self.field)
        return split

    def label(
        self, values: NDArray[Any], split: xr.Dataset, dims: Sequence[str], name: str | None = None
    ) -> xr.DataArray:
        """Labels an array with the coordinates of the frames of a split.

        Args:
            values: with the dimensions `dims`.
            split: as returned by `prepare`.
            dims: the names of the dimensions, `frame` among them.
            name: of the result.

        Returns:
            The labelled array, NaN in frames without a full history.
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
        """The fitted parameters, as arrays with labelled dimensions.

        Filters of the stimulus have the name `kernel`: `(cell, lag, y, x)` if each cell has its
        own, `(filter, lag, kernel_y, kernel_x)` if they are convolved with the stimulus, with
        `output_weight (cell, filter, map_y, map_x)`.

        Raises:
            UserError: if the model is not fitted.
        """

    @abstractmethod
    def state(self) -> xr.Dataset:
        """All arrays and attributes from which `restore` reconstructs the fitted model."""

    @abstractmethod
    def restore(self, state: xr.Dataset) -> None:
        """Reconstructs the fitted model.

        Args:
            state: as returned by `state`.
        """

    def save(self, path: Path | str, curves: xr.Dataset | None = None) -> None:
        """Writes the fitted model to a NetCDF-4 file.

        Args:
            path: of the file, which is overwritten.
            curves: the training curves returned by `fit`.

        The file has the groups `parameters`, `state` and, with curves, `curves`.
        """
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
        """Reads a model of this class that was written by `save`.

        Args:
            path: of the file.

        Raises:
            UserError: if there is no such file, it holds no model of this class, or it is damaged.
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
    """Renames the cells of one of several recordings to RECORDING/CELL.

    Args:
        labelled: arrays with the dimension `cell`.
        recording: the name of the recording, stored as the coordinate `recording` along `cell`.

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
    """Converts any exception during the reading of a fitted model to a UserError.

    Raises:
        UserError: if the file does not exist or is damaged.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the path") from None
    except Exception as error:  # HDF5 or the model may raise anything for a damaged file
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{path} cannot be read as a fitted model ({reason}); it may be damaged: fit it again"
        ) from error


def coordinates_of(split: xr.Dataset, lags: int) -> xr.Dataset:
    """The coordinates that label the parameters of a model fitted to a recording.

    A model stores them as its `field` and in its `state`, so that they are available after loading.

    Args:
        split: the training split of the recording.
        lags: the number of frames on which a prediction depends.

    Returns:
        A Dataset without variables: the coordinates `lag`, `lag_time` (s), `y`, `x`, `cell`, and,
        where the split has them, `channel` and `covariate`. The attributes are `frame_interval` (s)
        and `response_units`.

    Example:
        >>> from retinakit.contracts import make_split
        >>> split = make_split(np.zeros((6, 4, 5)), np.zeros((6, 2)), frame_interval=0.02)
        >>> field = coordinates_of(split, lags=3)
        >>> dict(field.sizes), field.attrs["response_units"]
        ({'lag': 3, 'y': 4, 'x': 5, 'cell': 2}, 'spikes per bin')
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
    """Converts the argument of `predict` to a split with segments, times and a frame interval."""
    if isinstance(shown, xr.DataTree):
        shown = shown.to_dataset()
    if isinstance(shown, xr.Dataset):
        if "stimulus" not in shown:
            raise RecordingError("the split has no variable 'stimulus'; add it")
        split = shown
    elif isinstance(shown, xr.DataArray):
        split = shown.rename("stimulus").to_dataset()
    else:
        array, height, width = np.asarray(shown), field.sizes.get("y"), field.sizes.get("x")
        if 1 in (height, width):
            array = with_space(array, column=width == 1)
        if array.ndim not in (3, 4) or array.dtype.kind not in "biuf":
            raise RecordingError(
                f"the stimulus is an array of {array.ndim} dimensions of type {array.dtype}; "
                "give numbers (frame, [channel,] y, x), (frame, x) for bars, or (frame) for a full "
                "field"
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
    """Checks that a split agrees with the recording to which a model was fitted."""
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
            f"with frames of {expected:g} s; resample the stimulus"
        )
    if "covariates" in split and "covariate" in field.coords:
        given, fitted = split["covariate"].values, field["covariate"].values
        if not np.array_equal(given, fitted):
            raise RecordingError(
                f"the covariates are {', '.join(map(str, given))} (dimension 'covariate') and the "
                f"model was fitted with {', '.join(map(str, fitted))}; give these in this order"
            )
