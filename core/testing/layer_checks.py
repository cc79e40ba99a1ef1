"""Checks of the layers that one can look into. A model without any passes them.

The name of a check is that of its function.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from retinakit.contracts.recording import full_history
from retinakit.testing.case import demand
from retinakit.testing.comparisons import same_values
from retinakit.testing.model_case import ModelCase, demand_refused


def activity_labelled(case: ModelCase) -> None:
    """`activity` gives (frame, unit dimension, ...), NaN just where there is no full history."""
    counted = full_history(case.shown["segment"], case.model.lags)
    for layer, dim in case.model.layers().items():
        activity: Any = case.model.activity(case.shown, layer)
        demand(
            isinstance(activity, xr.DataArray) and activity.dims[:2] == ("frame", dim),
            f"the activity of layer '{layer}' has dimensions {getattr(activity, 'dims', None)}, "
            f"and not ('frame', '{dim}', ...)",
        )
        demand(
            activity.sizes["frame"] == len(counted) and activity.size,
            f"the activity of layer '{layer}' is {dict(activity.sizes)} for {len(counted)} frames",
        )
        known = np.isfinite(activity.values.reshape(len(counted), -1))
        demand(
            known[counted].all() and not known[~counted].any(),
            f"the activity of layer '{layer}' must be finite in frames with a full history and "
            "NaN in the others",
        )


def unknown_layer_refused(case: ModelCase) -> None:
    """A layer that a model does not have is a UserError that names it, for `without` too."""
    wrong = "no_such_layer"
    names = wrong if case.model.layers() else "layers"
    demand_refused(f"activity of '{wrong}'", names, case.model.activity, case.shown, wrong)
    demand_refused(f"without of '{wrong}'", names, case.model.without, wrong, [])


def silenced_units(case: ModelCase) -> None:
    """`without` is a copy in which the units are 0, those beside them and the model as before."""
    model = case.model
    for layer, dim in model.layers().items():
        before = model.activity(case.shown, layer)
        case.same_prediction(
            model.without(layer, []),
            f"without no unit of layer '{layer}', predictions differ",
        )
        for units in ([0], [*range(before.sizes[dim])]):
            silenced = model.without(layer, units)
            after = silenced.activity(case.shown, layer)
            others = [unit for unit in range(before.sizes[dim]) if unit not in units]
            demand(
                float(np.abs(after.isel({dim: units})).max()) == 0,
                f"units {units} of layer '{layer}' are active in a model without them",
            )
            same_values(
                before.isel({dim: others}),
                after.isel({dim: others}),
                f"without units {units} of layer '{layer}', others of it changed",
            )
            prediction = silenced.predict(case.shown)
            demand(
                np.array_equal(np.isfinite(prediction), np.isfinite(case.prediction)),
                f"without units {units} of layer '{layer}', predictions are not finite",
            )
        demand(
            not np.array_equal(prediction, case.prediction, equal_nan=True)
            or float(np.abs(before).max()) == 0,
            f"without all units of layer '{layer}', the prediction is that of the whole model",
        )
        case.same_prediction(model, f"without() of layer '{layer}' changed the model itself")


LAYER_CHECKS: tuple[Callable[[Any], None], ...] = (
    activity_labelled,
    unknown_layer_refused,
    silenced_units,
)
