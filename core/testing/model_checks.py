"""Checks of models. The name of a check is the name of its function."""

import inspect
import re
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import h5py
import numpy as np
import xarray as xr

from retinakit.contracts.model import Model
from retinakit.contracts.recording import SPLITS, full_history, segments
from retinakit.registry.find import Entry
from retinakit.testing.case import demand, instance_of, run_checks
from retinakit.testing.comparisons import difference_of, equal, labelled, same_values, tree_of
from retinakit.testing.gradient_checks import GRADIENT_CHECKS
from retinakit.testing.layer_checks import LAYER_CHECKS
from retinakit.testing.model_case import (
    ModelCase,
    changed_frames,
    covariates_wanted,
    demand_refused,
    hide,
    loaded,
    responses_wanted,
    two_segments,
)
from retinakit.testing.plugin_checks import PLUGIN_CHECKS
from retinakit.testing.several_checks import SEVERAL_CHECKS
from retinakit.testing.small_fields import small_fields
from retinakit.testing.small_inputs import small_recording


def check_model(
    model: Model | type[Model] | Entry,
    recording: xr.DataTree | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Checks that a model satisfies its contract.

    The model is fitted about seven times, and more often if it accepts several recordings.

    Args:
        model: a class or an entry of the registry, which are checked with their `quick` options, or
            an instance, of which copies are fitted.
        recording: to be fitted; by default `small_recording()`, with covariates for a model that
            has them in its `inputs`.
        expected_failures: the reason for each check that is known to fail, by name.

    Raises:
        AssertionError: if checks fail. The message names the plugin and the failed checks, each
            with its finding.

    Example:
        >>> from retinakit.testing import SmallModel
        >>> check_model(SmallModel, small_recording(frames=200, size=4))
    """
    plugin = instance_of(model)
    if recording is None:
        recording = small_recording(covariates=covariates_wanted(plugin))
    run_checks(MODEL_CHECKS, ModelCase(plugin, recording), expected_failures)


def curves_labelled(case: ModelCase) -> None:
    """`fit` returns curves along `check`, including the validation loss, and perhaps `warning`."""
    curves = case.curves
    demand(
        isinstance(curves, xr.Dataset),
        f"fit() returned a {type(curves).__name__}, not an xarray.Dataset of curves",
    )
    demand("check" in curves.dims, f"the curves have dimensions {list(curves.dims)}, not 'check'")
    demand(
        "validation_loss" in curves and "check" in curves["validation_loss"].dims,
        f"the curves {list(curves.data_vars)} have no 'validation_loss' along 'check'",
    )
    for name, curve in curves.data_vars.items():
        kinds = "UOT" if name == "warning" else "biuf"
        demand(curve.dtype.kind in kinds, f"curve '{name}' is of type {curve.dtype}")
    demand(np.isfinite(curves["validation_loss"]).any(), "'validation_loss' is never finite")


def prediction_labelled(case: ModelCase) -> None:
    """`predict` returns (frame, cell) with the cells, times, segments and units.

    If the predictions depend on responses with repeats, it returns (repeat, frame, cell).
    """
    prediction, shown = case.prediction, case.shown
    demand(
        isinstance(prediction, xr.DataArray),
        f"predict() returned a {type(prediction).__name__}, not an xarray.DataArray",
    )
    repeated = responses_wanted(case.plugin) and "repeat" in shown["response"].dims
    dims = ("repeat", "frame", "cell") if repeated else ("frame", "cell")
    demand(
        prediction.dims == dims,
        f"the prediction has dimensions {prediction.dims}, not {dims}",
    )
    demand(
        prediction.sizes["frame"] == shown.sizes["frame"],
        f"the stimulus has {shown.sizes['frame']} frames and the prediction "
        f"{prediction.sizes['frame']}",
    )
    demand(prediction.dtype.kind == "f", f"the prediction is of type {prediction.dtype}")
    expected = {
        "cell": case.recording["train"].to_dataset()["cell"],
        "time": shown["time"],
        "segment": shown["segment"],
    }
    for name, coordinate in expected.items():
        demand(name in prediction.coords, f"the prediction has no coordinate '{name}'")
        demand(
            equal(prediction[name].values, coordinate.values),
            f"coordinate '{name}' of the prediction differs from that of the recording",
        )
    units, right = prediction.attrs.get("units"), shown["response"].attrs["units"]
    demand(units == right, f"the prediction is in {units!r} and the response in {right!r}")


def forms_of_stimulus(case: ModelCase) -> None:
    """A split, its stimulus and a NumPy array give the same predictions."""
    shown = case.shown.isel(frame=segments(case.shown)[0])
    if covariates_wanted(case.plugin):
        demand_refused(
            "a stimulus without its covariates", "covariates", case.model.predict, shown["stimulus"]
        )
        return
    if responses_wanted(case.plugin):
        demand_refused(
            "a stimulus without its responses", "response", case.model.predict, shown["stimulus"]
        )
        return
    forms: dict[str, Any] = {
        "DataArray": shown["stimulus"].copy(deep=True),
        "NumPy array": shown["stimulus"].values.copy(),
    }
    prediction = case.model.predict(shown)
    for name, form in forms.items():
        same_values(
            prediction,
            case.model.predict(form),
            f"the predictions for the stimulus as a {name} differ from those for the split",
            tolerance=0,
        )


def covariates_used(case: ModelCase) -> None:
    """The predictions of a model with covariates in its `inputs` depend on them."""
    if not covariates_wanted(case.plugin):
        return
    other = case.model.predict(case.shown.assign(covariates=case.shown["covariates"] + 1))
    demand(
        not equal(case.prediction.values, other.values),
        "'covariates' is in the model's 'inputs', and the predictions do not depend on them",
    )


def responses_used(case: ModelCase) -> None:
    """The predictions of a model with 'response' in its `inputs` depend on the responses."""
    if not responses_wanted(case.plugin):
        return
    other = case.model.predict(case.shown.assign(response=case.shown["response"] + 1))
    demand(
        not equal(case.prediction.values, other.values),
        "'response' is in the model's 'inputs', and the predictions do not depend on the responses",
    )


def every_prediction(case: ModelCase) -> None:
    """A torch module with the parameter `every` returns each `every`-th prediction."""
    module = getattr(case.model, "module", None)
    if module is None or "every" not in inspect.signature(module.forward).parameters:
        return
    import torch

    lags, shown = case.model.lags, case.shown
    inputs = [
        torch.from_numpy(shown[name].values[: 3 * lags].astype(np.float32))
        for name in getattr(case.plugin, "inputs", ("stimulus",))
    ]
    with torch.no_grad():
        expected, found = module(*inputs)[::lags], module(*inputs, every=lags)
    dims = ("frame", "cell")
    same_values(
        xr.DataArray(expected.numpy(), dims=dims),
        xr.DataArray(found.numpy(), dims=dims),
        f"with every={lags}, forward() does not return the predictions 0, {lags}, {2 * lags}, ...",
    )


def history_only(case: ModelCase) -> None:
    """Predictions are NaN in frames without a full history in the segment, and finite elsewhere."""
    shown = two_segments(case.shown)
    finite = np.isfinite(case.model.predict(shown).transpose("frame", ...).values)
    counted = full_history(shown["segment"], case.model.lags)
    early, lost = np.argwhere(finite[~counted]), np.argwhere(~finite[counted])
    demand(
        not len(early),
        f"frame {np.flatnonzero(~counted)[early[:1, 0]]} does not have {case.model.lags} frames of "
        "history in its segment, and its prediction is not NaN",
    )
    demand(
        not len(lost),
        f"frame {np.flatnonzero(counted)[lost[:1, 0]]} has {case.model.lags} frames of history "
        "and its prediction is not finite",
    )


def rate_not_negative(case: ModelCase) -> None:
    """The predictions of a model with the loss 'poisson' are nonnegative."""
    if getattr(case.plugin.config, "loss", None) == "poisson":
        lowest = float(np.nanmin(case.prediction))
        demand(lowest >= 0, f"loss is 'poisson' and a prediction is negative ({lowest:.6g})")


def model_determinism(case: ModelCase) -> None:
    """Two fits with the same seed give the same predictions."""
    # If the fit with another 'test' gives the same predictions, a further fit is not needed.
    if not equal(case.prediction.values, case.other_test.predict(case.shown).values):
        case.same_prediction(case.fit(), "the predictions of a second fit with this seed differ")


def unseen_test_split(case: ModelCase) -> None:
    """`fit` does not use `test`."""
    case.same_prediction(case.other_test, "the fit depends on the responses of 'test'")


def saved_and_loaded(case: ModelCase) -> None:
    """A loaded model has the predictions, parameters and options of the saved one."""
    model, again = case.model, loaded(case.model, case.file)
    case.same_prediction(again, "saving and loading changes the predictions")
    difference = difference_of(tree_of(model.parameters()), tree_of(again.parameters()))
    demand(difference is None, f"saving and loading changes parameters(): {difference}")
    demand(
        (again.config, again.seed) == (model.config, model.seed),
        f"{model!r} was saved and {again!r} was loaded",
    )


def file_open_to_all(case: ModelCase) -> None:
    """The file of a model is HDF5 with three groups and without pickled objects."""
    with h5py.File(BytesIO(case.file)) as file:
        missing = {"parameters", "state", "curves"} - set(file)
        demand(not missing, f"the file has no group {', '.join(sorted(missing))}")
        _no_pickle("/", file)
        file.visititems(_no_pickle)


def _no_pickle(name: str, item: Any) -> None:
    values = [item[()]] if isinstance(item, h5py.Dataset) and item.shape is not None else []
    for value in [*values, *(v for v in item.attrs.values() if not isinstance(v, h5py.Empty))]:
        array = np.asarray(value)
        demand(
            array.dtype.kind != "V" or array.dtype.names,
            f"'{name}' in the file has an opaque dtype ({array.dtype})",
        )
        pieces = array.ravel().tolist() if array.dtype.kind in "OS" else [array.tobytes()]
        for piece in pieces:
            text = piece.encode("latin-1", "replace") if isinstance(piece, str) else piece
            pickled = isinstance(text, bytes) and (
                re.match(rb"\x80[\x02-\x05]", text) and text.rstrip(b"\0").endswith(b".")
            )
            zipped = isinstance(text, bytes) and text.startswith(b"PK\x03\x04")
            demand(not (pickled or zipped), f"'{name}' in the file is a pickled object")


def recording_unchanged(case: ModelCase) -> None:
    """`fit` and `predict` do not modify their arguments."""
    given = case.given
    difference = difference_of(case.recording, given)
    demand(difference is None, f"fit() changed the recording it was given: {difference}")
    shown = case.shown
    case.model.predict(shown)
    demand(shown.identical(case.shown), "predict() changed the split it was given")


def missing_responses(case: ModelCase) -> None:
    """`fit` excludes responses that are NaN; they are neither propagated nor treated as 0.

    If there are several cells, the last one has no responses in `validation`.
    """
    random = np.random.default_rng(0)
    cells = case.recording["train"].sizes["cell"]
    lost = {
        name: random.random((case.recording[name].sizes["frame"], cells)) < 0.2
        for name in ("train", "validation")
    }
    lost["validation"][:, 1:][:, -1:] = True
    missing, silence = (
        case.fit(hide(case.recording, lost, value)).predict(case.shown) for value in (np.nan, 0)
    )
    counted = np.flatnonzero(full_history(case.shown["segment"], case.model.lags))
    for cell in range(cells):
        unknown = "all frames" if lost["validation"][:, cell].all() else "some frames"
        demand(
            np.isfinite(missing.isel(frame=counted, cell=cell)).all(),
            f"with NaN in some frames of 'train' and {unknown} of 'validation', the predictions "
            f"of the cell at index {cell} are not finite",
        )
    demand(
        np.ptp(case.prediction.isel(frame=counted).values, axis=-2).max() == 0
        or not equal(missing.values, silence.values),
        "responses that are NaN are treated as 0 in the fit; exclude them",
    )


def cells_independent(case: ModelCase) -> None:
    """With `cells_apart`, the fit of a cell does not depend on other cells."""
    cells = case.recording["train"].sizes["cell"]
    if cells == 1 or not getattr(case.plugin, "cells_apart", False):
        return
    last = {"cell": [cells - 1]}  # the first cell may have the same random numbers when alone
    alone = {name: case.recording[name].to_dataset().isel(last) for name in SPLITS}
    same_values(
        case.prediction.isel(last),
        case.fit(xr.DataTree.from_dict(alone)).predict(case.shown),
        "the model has 'cells_apart', and the predictions of the last cell change if it is alone",
        tolerance=1e-4,
    )
    lost = {
        name: np.zeros((case.recording[name].sizes["frame"], cells), bool)
        for name in ("train", "validation")
    }
    for gaps in lost.values():
        gaps[len(gaps) // 2 :, :-1] = True
    same_values(
        case.prediction.isel(last),
        case.fit(hide(case.recording, lost)).predict(case.shown).isel(last),
        "the model has 'cells_apart', and the predictions of the last cell change with missing "
        "responses of other cells",
        tolerance=1e-4,
    )


def short_stimulus(case: ModelCase) -> None:
    """A stimulus without frames is accepted, and one shorter than the history gives NaN."""
    cells = case.recording["train"].sizes["cell"]
    for frames in (0, case.model.lags - 1):
        prediction = case.model.predict(case.shown.isel(frame=slice(0, frames)))
        demand(
            prediction.shape == (frames, cells),
            f"the prediction for a stimulus of {frames} frames has the shape {prediction.shape}, "
            f"not {(frames, cells)}",
        )
        demand(
            np.isnan(prediction).all(),
            f"a stimulus of {frames} frames is shorter than the history, and its prediction is not "
            "NaN",
        )


def wrong_size_refused(case: ModelCase) -> None:
    """`predict` raises a UserError that names the dimension, for a stimulus of another size."""
    for dim in ("y", "x"):
        larger = case.shown.pad({dim: (0, 1)}, mode="edge")
        demand_refused(f"a stimulus that is larger along '{dim}'", dim, case.model.predict, larger)


def causality(case: ModelCase) -> None:
    """A prediction does not depend on later frames."""
    last = (case.shown.sizes["frame"] + case.model.lags) // 2
    before = {"frame": slice(0, last + 1)}
    for changed in changed_frames(case.shown, slice(last + 1, None)):
        same_values(
            case.prediction.isel(before),
            case.model.predict(changed).isel(before),
            f"changing the frames after {last} changes predictions up to this frame",
        )


def causality_of_responses(case: ModelCase) -> None:
    """A prediction does not depend on the responses in its own frame and in later frames."""
    first = (case.shown.sizes["frame"] + case.model.lags) // 2
    before = {"frame": slice(0, first + 1)}
    for changed in changed_frames(case.shown, slice(first, None), ["response"]):
        same_values(
            case.prediction.isel(before),
            case.model.predict(changed).isel(before),
            f"changing the responses from frame {first} on changes predictions up to this frame",
        )


def missing_history(case: ModelCase) -> None:
    """Missing responses (NaN) in the predicted split do not remove predictions."""
    lost = np.zeros((case.shown.sizes["frame"], case.shown.sizes["cell"]), bool)
    lost[::3], lost[:, -1] = True, True
    shown = hide(case.recording, {"test": lost})["test"].to_dataset()
    finite = np.isfinite(case.model.predict(shown).values)
    demand(
        equal(finite, np.isfinite(case.prediction.values)),
        "with missing responses (NaN) in the predicted split, some predictions are not finite",
    )


def simulated_spikes(case: ModelCase) -> None:
    """A model whose predictions depend on responses has `simulate`, which does not use them."""
    if not responses_wanted(case.plugin):
        return
    model: Any = case.model
    demand(
        callable(getattr(model, "simulate", None)),
        "'response' is in the model's 'inputs'; add a method simulate(split, repeats, seed)",
    )
    spikes = model.simulate(case.shown, repeats=2, seed=1)
    expected = ("repeat", "frame", "cell"), (2, *case.prediction.shape[-2:])
    demand(
        isinstance(spikes, xr.DataArray) and (spikes.dims, spikes.shape) == expected,
        f"simulate() with two repeats returned {getattr(spikes, 'sizes', type(spikes).__name__)}, "
        f"not {dict(zip(*expected, strict=True))}",
    )
    counted = full_history(case.shown["segment"], case.model.lags)
    demand(
        np.array_equal(np.isfinite(spikes.values).all((0, 2)), counted),
        "the simulated spikes must be finite in frames with a full history and NaN in the others",
    )
    other = case.shown.assign(response=case.shown["response"] + 1)
    demand(
        equal(spikes.values, model.simulate(other, repeats=2, seed=1).values),
        "two simulations with the same seed differ if the responses of the split differ",
    )


def segments_apart(case: ModelCase) -> None:
    """Predictions in a segment do not depend on the segment before it."""
    shown = two_segments(case.shown)
    middle = shown.sizes["frame"] // 2
    second = {"frame": slice(middle, None)}
    prediction = case.model.predict(shown).isel(second)
    variables = ("stimulus", "covariates", "response")
    for changed in changed_frames(shown, slice(0, middle), variables):
        same_values(
            prediction,
            case.model.predict(changed).isel(second),
            "changing the frames of the first segment changes predictions in the second",
        )


def parameters_labelled(case: ModelCase) -> None:
    """`parameters` returns arrays with labelled dimensions."""
    labelled(case.model.parameters(), "parameters()")


def interrupted_fit(case: ModelCase) -> None:
    """A fit that is resumed from its checkpoint gives the result of an uninterrupted fit."""
    if case.progress_calls:
        case.same_prediction(
            case.resumed(case.progress_calls),
            "interrupting and resuming a fit changes the predictions",
        )


def bars_and_full_field(case: ModelCase) -> None:
    """A model with `any_field` can be fitted to a stimulus of one row and to one of one check."""
    if not case.plugin.any_field:
        return
    for field, recording in small_fields(case.recording).items():
        try:
            prediction = case.fit(recording).predict(recording["test"].to_dataset())
        except Exception as error:
            raise AssertionError(
                f"with a stimulus of {field}, it raised {type(error).__name__} ({error}); set the "
                "attribute any_field to False if the model does not support such stimuli"
            ) from error
        demand(
            np.isfinite(prediction).any(), f"with a stimulus of {field}, no prediction is finite"
        )


MODEL_CHECKS: tuple[Callable[[Any], None], ...] = (
    *PLUGIN_CHECKS,
    curves_labelled,
    prediction_labelled,
    forms_of_stimulus,
    covariates_used,
    responses_used,
    every_prediction,
    history_only,
    rate_not_negative,
    model_determinism,
    unseen_test_split,
    saved_and_loaded,
    file_open_to_all,
    recording_unchanged,
    missing_responses,
    cells_independent,
    short_stimulus,
    wrong_size_refused,
    causality,
    causality_of_responses,
    missing_history,
    simulated_spikes,
    segments_apart,
    parameters_labelled,
    interrupted_fit,
    *LAYER_CHECKS,
    *GRADIENT_CHECKS,
    *SEVERAL_CHECKS,
    bars_and_full_field,
)
