"""Checks of the layers of a model. A model without layers passes them.

The name of a check is the name of its function.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from retinakit.contracts.model import Model
from retinakit.contracts.recording import full_history
from retinakit.testing.case import demand
from retinakit.testing.comparisons import same_values
from retinakit.testing.model_case import ModelCase, demand_refused


def activity_labelled(case: ModelCase) -> None:
    """`activity` returns (frame, unit dimension, ...), NaN only in frames without full history."""
    counted = full_history(case.shown["segment"], case.model.lags)
    for layer, dim in case.model.layers().items():
        activity: Any = case.model.activity(case.shown, layer)
        demand(
            isinstance(activity, xr.DataArray) and activity.dims[:2] == ("frame", dim),
            f"the activity of layer '{layer}' has dimensions {getattr(activity, 'dims', None)}, "
            f"not ('frame', '{dim}', ...)",
        )
        demand(
            activity.sizes["frame"] == len(counted) and activity.size,
            f"the activity of layer '{layer}' has the sizes {dict(activity.sizes)} for "
            f"{len(counted)} frames",
        )
        known = np.isfinite(activity.values.reshape(len(counted), -1))
        demand(
            known[counted].all() and not known[~counted].any(),
            f"the activity of layer '{layer}' must be finite in frames with a full history and "
            "NaN in the others",
        )


def unknown_layer_refused(case: ModelCase) -> None:
    """`activity` and `without` raise a UserError that names a layer that does not exist."""
    wrong = "no_such_layer"
    names = wrong if case.model.layers() else "layers"
    demand_refused(f"activity of '{wrong}'", names, case.model.activity, case.shown, wrong)
    demand_refused(f"without of '{wrong}'", names, case.model.without, wrong, [])


def silenced_units(case: ModelCase) -> None:
    """`without` returns a copy in which only the given units are 0; the model is unchanged."""
    model = case.model
    for layer, dim in model.layers().items():
        before = model.activity(case.shown, layer)
        case.same_prediction(
            model.without(layer, []),
            f"without('{layer}', []) changes the predictions",
        )
        for units in ([0], [*range(before.sizes[dim])]):
            silenced = model.without(layer, units)
            after = silenced.activity(case.shown, layer)
            others = [unit for unit in range(before.sizes[dim]) if unit not in units]
            demand(
                float(np.abs(after.isel({dim: units})).max()) == 0,
                f"without('{layer}', {units}) does not set the activity of these units to 0",
            )
            same_values(
                before.isel({dim: others}),
                after.isel({dim: others}),
                f"without('{layer}', {units}) changes other units of the layer",
            )
            prediction = silenced.predict(case.shown)
            demand(
                np.array_equal(np.isfinite(prediction), np.isfinite(case.prediction)),
                f"without('{layer}', {units}) leads to predictions that are not finite",
            )
        demand(
            not np.array_equal(prediction, case.prediction, equal_nan=True)
            or float(np.abs(before).max()) == 0,
            f"without('{layer}', {units}), all units, does not change the prediction",
        )
        case.same_prediction(model, f"without() of layer '{layer}' modifies the model itself")


def lesions_agree(case: ModelCase) -> None:
    """`lesions` predicts what copies with `without` predict."""
    model = case.model
    if not model.layers():
        return
    numbers = model.units(case.shown)
    last = {layer: [number - 1] for layer, number in numbers.items()}
    combinations = [{}, last, *({layer: [0]} for layer in numbers)]
    found = list(model.lesions(case.shown, combinations))
    demand(
        len(found) == len(combinations),
        f"lesions() yields {len(found)} predictions for {len(combinations)} combinations",
    )
    for combination, prediction in zip(combinations, found, strict=True):
        copied = model
        for layer, units in combination.items():
            copied = copied.without(layer, units)
        same_values(
            copied.predict(case.shown),
            xr.DataArray(prediction),
            f"lesions() without {combination} differs from without() and predict()",
        )


def substituted_units(case: ModelCase) -> None:
    """`substituted`, where it is defined, gives a unit the output of another in a copy."""
    model = case.model
    if type(model).substituted is Model.substituted:
        return
    for layer, dim in model.layers().items():
        before = model.activity(case.shown, layer)
        unit, by = 0, before.sizes[dim] - 1
        changed = model.substituted(layer, unit, by)
        after = changed.activity(case.shown, layer)
        expected = before.copy(deep=True)
        expected[{dim: unit}] = before.isel({dim: by}).values
        same_values(
            expected, after, f"substituted('{layer}', {unit}, {by}) has other activities than these"
        )
        case.same_prediction(model, f"substituted() of layer '{layer}' modifies the model itself")


LAYER_CHECKS: tuple[Callable[[Any], None], ...] = (
    activity_labelled,
    unknown_layer_refused,
    silenced_units,
    lesions_agree,
    substituted_units,
)
