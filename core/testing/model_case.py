"""A model under test, which is fitted once for many checks, and its recordings."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.contracts.errors import UserError
from retinakit.contracts.model import Model
from retinakit.contracts.recording import SPLITS
from retinakit.testing.case import Case, demand, temporary_path
from retinakit.testing.comparisons import same_values

Fitted = xr.DataTree | Mapping[str, xr.DataTree]
"""The first argument of `fit`: a recording, or several by name."""


@dataclass
class ModelCase(Case):
    """A model under test, and the recording to which it is fitted."""

    recording: xr.DataTree

    def fit(self, recording: Fitted | None = None, **options: Any) -> Model:
        model: Any = self.fresh()
        model.fit(_copied(self.recording if recording is None else recording), **options)
        fitted: Model = model
        return fitted

    @cached_property
    def _fitted(self) -> tuple[Model, xr.Dataset, xr.DataTree, int]:
        model: Model = self.fresh()
        given = self.recording.copy(deep=True)
        calls: list[float] = []
        curves = model.fit(given, progress=lambda done, total, message="": calls.append(done))
        return model, curves, given, len(calls)

    @property
    def model(self) -> Model:
        """The model fitted to `given`."""
        return self._fitted[0]

    @property
    def curves(self) -> xr.Dataset:
        return self._fitted[1]

    @property
    def given(self) -> xr.DataTree:
        """The copy of the recording to which the model was fitted."""
        return self._fitted[2]

    @property
    def progress_calls(self) -> int:
        return self._fitted[3]

    @cached_property
    def other_test(self) -> Model:
        """The model fitted with other responses in `test`, which must not affect a fit."""
        changed = self.recording.copy(deep=True)
        test = changed["test"].to_dataset()
        test["response"] = test["response"].isel(frame=slice(None, None, -1)).variable + 1
        changed["test"] = xr.DataTree(dataset=test)
        return self.fit(changed)

    @property
    def shown(self) -> xr.Dataset:
        """A new copy of the split `test`."""
        return self.recording["test"].to_dataset().copy(deep=True)

    @cached_property
    def prediction(self) -> xr.DataArray:
        return self.model.predict(self.shown)

    @cached_property
    def file(self) -> bytes:
        """The content of the file of the fitted model."""
        return saved(self.model, self.curves)

    @cached_property
    def pair(self) -> dict[str, xr.DataTree]:
        """Two recordings with the same field, for a model that accepts several."""
        return {"one": self.recording, "other": _another(self.recording)}

    @cached_property
    def _fitted_to_pair(self) -> tuple[Model, int]:
        calls: list[float] = []
        model = self.fit(self.pair, progress=lambda done, total, message="": calls.append(done))
        return model, len(calls)

    @property
    def model_of_pair(self) -> Model:
        """The model fitted to `pair`."""
        return self._fitted_to_pair[0]

    @property
    def progress_calls_of_pair(self) -> int:
        return self._fitted_to_pair[1]

    def same_prediction(self, other: Model, what: str) -> None:
        """Checks that another model gives exactly the same predictions."""
        same_values(self.prediction, other.predict(self.shown), what, tolerance=0)

    def resumed(self, calls: int, recording: Fitted | None = None) -> Model:
        """A fit that is interrupted and resumed.

        Args:
            calls: the number of calls of `progress` in a fit; it is interrupted after half of them.
            recording: by default that of the case.
        """
        stop, called = calls // 2 + 1, 0

        def interrupt(done: float, total: float, message: str = "") -> None:
            nonlocal called
            called += 1
            if called == stop:
                raise _Interruption

        with temporary_path("checkpoint") as path:
            try:
                self.fit(recording, checkpoint=path, progress=interrupt)
            except _Interruption:
                return self.fit(recording, checkpoint=path)
        raise AssertionError("an exception raised by the progress callback did not end the fit")


def covariates_wanted(model: Model) -> bool:
    """Whether the predictions of a model depend on the covariates of a split."""
    return "covariates" in getattr(model, "inputs", ())


def responses_wanted(model: Model) -> bool:
    """Whether the predictions of a model depend on the responses before a frame."""
    return "response" in getattr(model, "inputs", ())


class _Interruption(Exception):
    """Raised by a progress callback to interrupt a fit."""


def _copied(recording: Fitted) -> Fitted:
    if isinstance(recording, xr.DataTree):
        return recording.copy(deep=True)
    return {name: one.copy(deep=True) for name, one in recording.items()}


def _another(recording: xr.DataTree) -> xr.DataTree:
    """A recording of the same field with more cells, fewer frames and a longer frame interval."""
    splits = {}
    for name in SPLITS:
        split = recording[name].to_dataset()
        frames, cells = split.sizes["frame"], split.sizes["cell"]
        split = split.isel(frame=slice(frames // 4, None), cell=[*range(cells), 0])
        time = split["time"].copy(data=1.25 * split["time"].values)
        split = split.assign_coords(time=time, cell=[f"other {i}" for i in range(cells + 1)])
        splits[name] = split.assign_attrs(frame_interval=1.25 * split.attrs["frame_interval"])
    return xr.DataTree.from_dict(splits)


def hide(
    recording: xr.DataTree, lost: Mapping[str, NDArray[np.bool_]], value: float = np.nan
) -> xr.DataTree:
    """A copy of a recording in which some responses and rates are replaced.

    Args:
        recording: to be copied.
        lost: the responses to replace, (frame, cell) bool, by the name of the split.
        value: the new value.
    """
    changed = recording.copy(deep=True)
    for name, where in lost.items():
        split = changed[name].to_dataset()
        kept = xr.DataArray(~where, dims=("frame", "cell"))
        for variable in {"response", "rate"} & set(split):  # a model may be fitted to the rate
            values = split[variable]
            hidden = values.astype(np.float32).where(kept, value).transpose(*values.dims)
            split[variable] = hidden.assign_attrs(values.attrs)
        changed[name] = xr.DataTree(dataset=split)
    return changed


def two_segments(split: xr.Dataset) -> xr.Dataset:
    """The split, divided into two segments."""
    frames = split.sizes["frame"]
    half = (np.arange(frames) >= frames // 2).astype(np.int32)
    return split.assign_coords(segment=("frame", half))


def changed_frames(
    split: xr.Dataset, frames: slice, variables: Sequence[str] = ("stimulus", "covariates")
) -> Iterator[xr.Dataset]:
    """The split with other values in some frames.

    The values are changed in two ways, because a model may be invariant to one of them.

    Args:
        split: to be changed.
        frames: in which the values change.
        variables: that change, where the split has them.
    """
    random = np.random.default_rng(0)

    def mixed(values: NDArray[Any]) -> NDArray[Any]:
        return random.permutation(values.ravel()).reshape(values.shape)

    def reversed_contrast(values: NDArray[Any]) -> NDArray[Any]:
        return values.max() + values.min() - values.astype(float)

    for change in (mixed, reversed_contrast):
        changed = split.copy(deep=True)
        for variable in set(variables) & set(changed):
            values = changed[variable].transpose("frame", ...).values  # a view
            values[frames] = change(values[frames]).astype(values.dtype)
        yield changed


def saved(model: Model, curves: xr.Dataset | None = None) -> bytes:
    """The content of the file of a model."""
    with temporary_path("model.nc") as path:
        model.save(path, curves)
        return path.read_bytes()


def loaded(model: Model, file: bytes) -> Model:
    """Loads a model of the same class from the content of a file."""
    with temporary_path("model.nc") as path:
        path.write_bytes(file)
        return type(model).load(path)


def demand_refused(what: str, word: str, call: Callable[..., Any], *args: Any) -> None:
    """Checks that a call raises a UserError whose message contains a word."""
    try:
        call(*args)
    except UserError as error:
        demand(
            re.search(rf"\b{word}\b", str(error)),
            f"{what} raised a UserError that does not name '{word}': {error}",
        )
    except Exception as error:
        raise AssertionError(
            f"{what} raised {type(error).__name__} ({error}), not a UserError"
        ) from error
    else:
        raise AssertionError(f"{what} raised no UserError")
