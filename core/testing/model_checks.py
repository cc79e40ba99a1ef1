"""Checks of models. The name of a check is that of its function."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import h5py
import numpy as np
import xarray as xr

from retinakit.contracts.errors import UserError
from retinakit.contracts.model import ENGINE, Model
from retinakit.contracts.recording import full_history
from retinakit.registry.find import Entry
from retinakit.testing.case import Case, demand, instance_of, run_checks, temporary_path
from retinakit.testing.comparisons import difference_of, equal, labelled, same_values, tree_of
from retinakit.testing.plugin_checks import PLUGIN_CHECKS
from retinakit.testing.small_inputs import small_recording


def check_model(
    model: Model | type[Model] | Entry,
    recording: xr.DataTree | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Checks that a model keeps its contract. Fits it about seven times.

    Args:
        model: a class, an instance with options that make it quick, or an entry of the registry.
            An instance is not fitted itself.
        recording: what to fit; `small_recording()` by default.
        expected_failures: reasons by the name of the check.

    Raises:
        AssertionError: naming the plugin, the checks that failed and what was found.
    """
    case = ModelCase(instance_of(model), small_recording() if recording is None else recording)
    run_checks(MODEL_CHECKS, case, expected_failures)


class _Interruption(Exception):
    """Raised from a progress callback, as a user who stops a fit would."""


@dataclass
class ModelCase(Case):
    """A model under test, and the recording it is fitted to."""

    recording: xr.DataTree

    def fit(self, recording: xr.DataTree | None = None, **options: Any) -> Model:
        model: Model = self.fresh()
        model.fit((self.recording if recording is None else recording).copy(deep=True), **options)
        return model

    @cached_property
    def _fitted(self) -> tuple[Model, xr.Dataset, xr.DataTree, int]:
        model: Model = self.fresh()
        given = self.recording.copy(deep=True)
        calls: list[float] = []
        curves = model.fit(given, progress=lambda done, total, message="": calls.append(done))
        return model, curves, given, len(calls)

    @property
    def model(self) -> Model:
        """Fitted on `given`."""
        return self._fitted[0]

    @property
    def curves(self) -> xr.Dataset:
        return self._fitted[1]

    @property
    def given(self) -> xr.DataTree:
        """The copy of the recording that the model was fitted on."""
        return self._fitted[2]

    @property
    def progress_calls(self) -> int:
        return self._fitted[3]

    @property
    def stimulus(self) -> xr.DataArray:
        """(frame, [channel,] y, x) of `test`, a new copy each time."""
        return self.recording["test"].to_dataset()["stimulus"].copy(deep=True)

    @cached_property
    def prediction(self) -> xr.DataArray:
        return self.model.predict(self.stimulus)

    def same_prediction(self, other: Model, what: str) -> None:
        """Demands that another model predicts exactly the same."""
        same_values(self.prediction, other.predict(self.stimulus), what, exact=True)


def curves_labelled(case: ModelCase) -> None:
    """`fit` gives numbers along `check`, the validation loss among them."""
    curves = case.curves
    demand(
        isinstance(curves, xr.Dataset),
        f"fit() gave a {type(curves).__name__}, not an xarray.Dataset of curves",
    )
    demand("check" in curves.dims, f"the curves have dimensions {list(curves.dims)}, not 'check'")
    demand(
        "validation_loss" in curves and "check" in curves["validation_loss"].dims,
        f"the curves {list(curves.data_vars)} have no 'validation_loss' along 'check'",
    )
    for name, curve in curves.data_vars.items():
        demand(curve.dtype.kind in "biuf", f"curve '{name}' is of type {curve.dtype}")
    demand(np.isfinite(curves["validation_loss"]).any(), "'validation_loss' is nowhere finite")


def prediction_labelled(case: ModelCase) -> None:
    """`predict` gives (frame, cell) with the cells, the times and the segments."""
    prediction, stimulus = case.prediction, case.stimulus
    demand(
        isinstance(prediction, xr.DataArray),
        f"predict() gave a {type(prediction).__name__}, not an xarray.DataArray",
    )
    demand(
        prediction.dims == ("frame", "cell"),
        f"the prediction has dimensions {prediction.dims}, not ('frame', 'cell')",
    )
    demand(
        prediction.sizes["frame"] == stimulus.sizes["frame"],
        f"{stimulus.sizes['frame']} frames were shown and {prediction.sizes['frame']} predicted",
    )
    demand(prediction.dtype.kind == "f", f"the prediction is of type {prediction.dtype}")
    expected = {
        "cell": case.recording["train"].to_dataset()["cell"],
        "time": stimulus["time"],
        "segment": stimulus["segment"],
    }
    for name, coordinate in expected.items():
        demand(name in prediction.coords, f"the prediction has no coordinate '{name}'")
        demand(
            equal(prediction[name].values, coordinate.values),
            f"coordinate '{name}' of the prediction differs from that of the recording",
        )


def history_only(case: ModelCase) -> None:
    """The prediction is NaN just where the segment holds no full history, finite elsewhere."""
    stimulus = _two_segments(case)
    prediction = np.asarray(case.model.predict(stimulus))
    counted = full_history(stimulus["segment"], case.model.lags)
    early = np.isfinite(prediction) & ~counted[:, None]
    demand(
        not early.any(),
        f"frame {np.nonzero(early)[0][:1]} has no {case.model.lags} frames of history in its "
        "segment and is predicted; it must be NaN",
    )
    lost = ~np.isfinite(prediction) & counted[:, None]
    demand(
        not lost.any(),
        f"frame {np.nonzero(lost)[0][:1]} has {case.model.lags} frames of history and its "
        "prediction is not finite",
    )


def rate_not_negative(case: ModelCase) -> None:
    """A model fitted by Poisson likelihood predicts no negative rate."""
    if getattr(case.plugin.config, "loss", None) == "poisson":
        lowest = float(np.nanmin(case.prediction))
        demand(lowest >= 0, f"loss is 'poisson' and a prediction is negative ({lowest:.6g})")


def model_determinism(case: ModelCase) -> None:
    """Two fits with one seed predict the same."""
    case.same_prediction(case.fit(), "a second fit with the same seed predicts otherwise")


def unseen_test_split(case: ModelCase) -> None:
    """`fit` does not look at `test`."""
    changed = case.recording.copy(deep=True)
    test = changed["test"].to_dataset()
    test["response"] = test["response"].isel(frame=slice(None, None, -1)).variable + 1
    changed["test"] = xr.DataTree(dataset=test)
    case.same_prediction(case.fit(changed), "the fit depends on the responses of 'test'")


def saved_and_loaded(case: ModelCase) -> None:
    """A model read from its file predicts the same and has the same parameters and options."""
    model = case.model
    with temporary_path("model.nc") as path:
        model.save(path, case.curves)
        loaded = type(model).load(path)
    case.same_prediction(loaded, "the model that was saved and loaded predicts otherwise")
    difference = difference_of(tree_of(model.parameters()), tree_of(loaded.parameters()))
    demand(difference is None, f"parameters() before and after saving: {difference}")
    demand(
        (loaded.config, loaded.seed) == (model.config, model.seed),
        f"{model!r} was saved and {loaded!r} was loaded",
    )


def file_open_to_all(case: ModelCase) -> None:
    """The file of a model opens in xarray and h5py, and holds no pickle."""
    with temporary_path("model.nc") as path:
        case.model.save(path, case.curves)
        with xr.open_datatree(path, engine=ENGINE) as tree:
            missing = {"parameters", "state", "curves"} - set(tree.children)
        demand(not missing, f"the file has no group {', '.join(sorted(missing))}")
        with h5py.File(path) as file:
            _no_pickle("/", file)
            file.visititems(_no_pickle)


def _no_pickle(name: str, item: Any) -> None:
    values = [item[()]] if isinstance(item, h5py.Dataset) and item.shape is not None else []
    for value in [*values, *(v for v in item.attrs.values() if not isinstance(v, h5py.Empty))]:
        array = np.asarray(value)
        demand(
            array.dtype.kind != "V" or array.dtype.names,
            f"'{name}' in the file is opaque ({array.dtype})",
        )
        pieces = array.ravel().tolist() if array.dtype.kind in "OS" else [array.tobytes()]
        for piece in pieces:
            text = piece.encode("latin-1", "replace") if isinstance(piece, str) else piece
            pickled = isinstance(text, bytes) and (
                re.match(rb"\x80[\x02-\x05]", text) and text.rstrip(b"\0").endswith(b".")
            )
            zipped = isinstance(text, bytes) and text.startswith(b"PK\x03\x04")
            demand(not (pickled or zipped), f"'{name}' in the file holds a pickle")


def recording_unchanged(case: ModelCase) -> None:
    """`fit` and `predict` leave what they are given as it was."""
    given = case.given
    difference = difference_of(case.recording, given)
    demand(difference is None, f"fit() changed the recording it was given: {difference}")
    stimulus = case.stimulus
    case.model.predict(stimulus)
    demand(stimulus.identical(case.stimulus), "predict() changed the stimulus it was given")


def missing_responses(case: ModelCase) -> None:
    """Responses that are NaN are left out: not propagated, and not taken for silence."""
    random = np.random.default_rng(0)
    missing, silence = case.recording.copy(deep=True), case.recording.copy(deep=True)
    for name in ("train", "validation"):
        split = case.recording[name].to_dataset()
        lost = random.random((split.sizes["frame"], split.sizes["cell"])) < 0.2
        for recording, value in ((missing, np.nan), (silence, 0.0)):
            changed = (
                split["response"]
                .astype(np.float32)
                .where(~xr.DataArray(lost, dims=("frame", "cell")), value)
            )
            replaced = split.assign(response=changed.transpose(*split["response"].dims))
            replaced["response"].attrs = split["response"].attrs
            if "rate" in replaced:  # for a model that is fitted to the rate
                hidden = np.where(lost, value, split["rate"])
                replaced["rate"] = split["rate"].copy(data=hidden)
            recording[name] = xr.DataTree(dataset=replaced)
    recordings = {"missing": missing, "silence": silence}
    predictions = {
        name: np.asarray(case.fit(recording).predict(case.stimulus))
        for name, recording in recordings.items()
    }
    counted = full_history(case.stimulus["segment"], case.model.lags)
    demand(
        np.isfinite(predictions["missing"][counted]).all(),
        "with NaN in some frames of the response, the fitted model's predictions are not finite",
    )
    demand(
        np.ptp(np.asarray(case.prediction)[counted], axis=0).max() == 0
        or not equal(predictions["missing"], predictions["silence"]),
        "with NaN in some frames of the response, the fit is the same as with zeros there; "
        "frames that were not recorded must be left out",
    )


def short_stimulus(case: ModelCase) -> None:
    """A stimulus of no frames predicts no frames; one shorter than the history is all NaN."""
    cells = case.recording["train"].sizes["cell"]
    for frames in (0, case.model.lags - 1):
        prediction = case.model.predict(case.stimulus.isel(frame=slice(0, frames)))
        demand(
            prediction.shape == (frames, cells),
            f"a stimulus of {frames} frames gave a prediction of shape {prediction.shape}, "
            f"not {(frames, cells)}",
        )
        demand(
            np.isnan(prediction).all(), f"a stimulus of {frames} frames, too short, was predicted"
        )


def wrong_size_refused(case: ModelCase) -> None:
    """A stimulus of another size is a UserError that names the dimension."""
    for dim in ("y", "x"):
        larger = case.stimulus.pad({dim: (0, 1)}, mode="edge")
        try:
            case.model.predict(larger)
        except UserError as error:
            demand(
                re.search(rf"\b{dim}\b", str(error)),
                f"a stimulus that is larger along '{dim}' was refused without naming '{dim}': "
                f"{error}",
            )
        except Exception as error:
            raise AssertionError(
                f"a stimulus that is larger along '{dim}' raised {type(error).__name__} "
                f"({error}), not a UserError"
            ) from error
        else:
            raise AssertionError(f"a stimulus that is larger along '{dim}' was accepted")


def _two_segments(case: ModelCase) -> xr.DataArray:
    """The stimulus of `test` as two segments."""
    stimulus = case.stimulus
    frames = stimulus.sizes["frame"]
    half = (np.arange(frames) >= frames // 2).astype(np.int32)
    return stimulus.assign_coords(segment=("frame", half))


def _changed(stimulus: xr.DataArray, frames: slice) -> Iterator[xr.DataArray]:
    """The stimulus with other values in some frames, in two ways that no model is blind to both."""
    values = stimulus.values[frames]
    mixed = np.random.default_rng(0).permutation(values.ravel()).reshape(values.shape)
    reversed_contrast = values.max() + values.min() - values.astype(float)
    for new in (mixed, reversed_contrast):
        changed = stimulus.copy(deep=True)
        changed.values[frames] = new.astype(values.dtype)
        yield changed


def causality(case: ModelCase) -> None:
    """A frame does not change the predictions before it."""
    stimulus = case.stimulus
    last = (stimulus.sizes["frame"] + case.model.lags) // 2
    for changed in _changed(stimulus, slice(last + 1, None)):
        same_values(
            case.prediction[: last + 1],
            case.model.predict(changed)[: last + 1],
            f"frames after {last} were changed, and with them predictions up to it",
        )


def segments_apart(case: ModelCase) -> None:
    """A segment does not change the predictions in the next one."""
    stimulus = _two_segments(case)
    middle = stimulus.sizes["frame"] // 2
    prediction = case.model.predict(stimulus)
    for changed in _changed(stimulus, slice(0, middle)):
        same_values(
            prediction[middle:],
            case.model.predict(changed)[middle:],
            "frames of the first segment were changed, and with them predictions in the second",
        )


def parameters_labelled(case: ModelCase) -> None:
    """`parameters` gives arrays whose dimensions say what they are."""
    labelled(case.model.parameters(), "parameters()")


def interrupted_fit(case: ModelCase) -> None:
    """A fit that was interrupted goes on from its checkpoint as if nothing had happened."""
    if case.progress_calls == 0:
        return
    stop, calls = case.progress_calls // 2 + 1, 0

    def interrupt(done: float, total: float, message: str = "") -> None:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise _Interruption

    with temporary_path("checkpoint") as path:
        try:
            case.fit(checkpoint=path, progress=interrupt)
        except _Interruption:
            pass
        else:
            raise AssertionError("an exception raised by the progress callback did not end the fit")
        resumed = case.fit(checkpoint=path)
    case.same_prediction(resumed, "a fit that was interrupted and resumed predicts otherwise")


MODEL_CHECKS: tuple[Callable[[Any], None], ...] = (
    *PLUGIN_CHECKS,
    curves_labelled,
    prediction_labelled,
    history_only,
    rate_not_negative,
    model_determinism,
    unseen_test_split,
    saved_and_loaded,
    file_open_to_all,
    recording_unchanged,
    missing_responses,
    short_stimulus,
    wrong_size_refused,
    causality,
    segments_apart,
    parameters_labelled,
    interrupted_fit,
)
