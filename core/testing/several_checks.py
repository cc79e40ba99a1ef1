"""Checks of a model that may be fitted to several recordings. Others pass them.

The name of a check is that of its function.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from retinakit.contracts.recording import full_history
from retinakit.testing.case import demand
from retinakit.testing.comparisons import equal, labelled, same_values
from retinakit.testing.model_case import ModelCase, demand_refused, loaded, saved


def fitted_to_several(case: ModelCase) -> None:
    """Each of two recordings, of other cells, lengths and frame intervals, has its own model."""
    if not case.plugin.several:
        return
    model = case.model_of_pair
    demand(
        tuple(model.recordings) == tuple(case.pair),
        f"fitted to {tuple(case.pair)}, the model has recordings {tuple(model.recordings)}",
    )
    for name, recording in case.pair.items():
        one, test = model.of(name), recording["test"].to_dataset()
        demand(not one.recordings, f"of('{name}') is itself of several recordings")
        prediction = one.predict(test)
        demand(
            equal(prediction["cell"].values, test["cell"].values),
            f"of('{name}') predicts other cells than that recording's",
        )
        counted = full_history(test["segment"], one.lags)
        demand(
            np.isfinite(prediction[counted]).all(), f"predictions of of('{name}') are not finite"
        )
    demand_refused("of() for a recording that was not fitted", "nowhere", model.of, "nowhere")
    demand_refused(
        "a prediction by a model of several recordings", "other", model.predict, case.shown
    )


def parameters_of_several(case: ModelCase) -> None:
    """`parameters` joins the cells of the recordings, which the coordinate `recording` tells."""
    if not case.plugin.several:
        return
    parameters = case.model_of_pair.parameters()
    labelled(parameters, "parameters() of several recordings")
    cells = [
        (name, f"{name}/{cell}")
        for name, recording in case.pair.items()
        for cell in recording["train"].to_dataset()["cell"].values
    ]
    demand(
        "recording" in parameters.coords and parameters["recording"].dims == ("cell",),
        "parameters() of several recordings has no coordinate 'recording' along 'cell'",
    )
    found = list(zip(parameters["recording"].values, parameters["cell"].values, strict=True))
    demand(
        found == cells,
        f"parameters() of several recordings has the cells {found}, not {cells} (recording, cell)",
    )


def shared_parts(case: ModelCase) -> None:
    """The submodules that a model names in `shared` are the same in every recording's model."""
    if not case.plugin.several:
        return
    one, other = (case.model_of_pair.of(name).state() for name in case.pair)
    for part in getattr(case.plugin, "shared", ()):
        names = [name for name in one.data_vars if str(name).startswith(f"module.{part}.")]
        demand(names, f"'{part}' is shared, and state() has no variable 'module.{part}...'")
        for name in names:
            demand(
                equal(one[name].values, other[name].values),
                f"'{part}' is shared, and '{name}' differs between recordings",
            )


def several_saved(case: ModelCase) -> None:
    """A model of several recordings that was saved and loaded has them still."""
    if not case.plugin.several:
        return
    model = case.model_of_pair
    again = loaded(model, saved(model))
    demand(
        again.recordings == model.recordings,
        f"recordings {model.recordings} were saved and {again.recordings} loaded",
    )
    _same_predictions(case, again, "the model of several that was saved and loaded")


def several_resumed(case: ModelCase) -> None:
    """An interrupted fit to several recordings goes on as if nothing had happened."""
    if case.plugin.several and case.progress_calls_of_pair:
        resumed = case.resumed(case.progress_calls_of_pair, case.pair)
        _same_predictions(case, resumed, "a fit to several that was interrupted and resumed")


def _same_predictions(case: ModelCase, model: Any, what: str) -> None:
    for name, recording in case.pair.items():
        test = recording["test"].to_dataset()
        same_values(
            case.model_of_pair.of(name).predict(test),
            model.of(name).predict(test),
            f"{what} predicts '{name}' otherwise",
            tolerance=0,
        )


SEVERAL_CHECKS: tuple[Callable[[Any], None], ...] = (
    fitted_to_several,
    parameters_of_several,
    shared_parts,
    several_saved,
    several_resumed,
)
