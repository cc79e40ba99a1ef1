"""Checks of models that accept several recordings. Other models pass them.

The name of a check is the name of its function.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from retinakit.contracts.recording import full_history
from retinakit.testing.case import demand
from retinakit.testing.comparisons import equal, labelled, same_values
from retinakit.testing.model_case import ModelCase, demand_refused, loaded, saved


def fitted_to_several(case: ModelCase) -> None:
    """A fit to two recordings gives a model of each; they differ in cells and frame interval."""
    if not case.plugin.several:
        return
    model = case.model_of_pair
    demand(
        tuple(model.recordings) == tuple(case.pair),
        f"the model was fitted to {tuple(case.pair)} and its attribute 'recordings' is "
        f"{tuple(model.recordings)}",
    )
    for name, recording in case.pair.items():
        one, test = model.of(name), recording["test"].to_dataset()
        demand(not one.recordings, f"of('{name}') is a model of several recordings")
        prediction = one.predict(test)
        demand(
            equal(prediction["cell"].values, test["cell"].values),
            f"the predictions of of('{name}') do not have the cells of that recording",
        )
        counted = full_history(test["segment"], one.lags)
        demand(
            np.isfinite(prediction[counted]).all(),
            f"the predictions of of('{name}') are not finite",
        )
    demand_refused("of() for a recording that was not fitted", "nowhere", model.of, "nowhere")
    demand_refused(
        "a prediction by a model of several recordings", "other", model.predict, case.shown
    )


def parameters_of_several(case: ModelCase) -> None:
    """`parameters` joins the cells of all recordings, with the coordinate `recording`."""
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
    """The submodules in `shared` are the same in the models of all recordings."""
    if not case.plugin.several:
        return
    one, other = (case.model_of_pair.of(name).state() for name in case.pair)
    for part in getattr(case.plugin, "shared", ()):
        names = [name for name in one.data_vars if str(name).startswith(f"module.{part}.")]
        demand(names, f"'{part}' is in 'shared', and state() has no variable 'module.{part}...'")
        for name in names:
            demand(
                equal(one[name].values, other[name].values),
                f"'{part}' is in 'shared', and '{name}' differs between recordings",
            )


def several_saved(case: ModelCase) -> None:
    """A model of several recordings is unchanged after saving and loading."""
    if not case.plugin.several:
        return
    model = case.model_of_pair
    again = loaded(model, saved(model))
    demand(
        again.recordings == model.recordings,
        f"the recordings {model.recordings} were saved and {again.recordings} were loaded",
    )
    _same_predictions(case, again, "saving and loading a model of several recordings")


def several_resumed(case: ModelCase) -> None:
    """An interrupted and resumed fit to several recordings equals an uninterrupted one."""
    if case.plugin.several and case.progress_calls_of_pair:
        resumed = case.resumed(case.progress_calls_of_pair, case.pair)
        _same_predictions(case, resumed, "interrupting and resuming a fit to several recordings")


def _same_predictions(case: ModelCase, model: Any, what: str) -> None:
    for name, recording in case.pair.items():
        test = recording["test"].to_dataset()
        same_values(
            case.model_of_pair.of(name).predict(test),
            model.of(name).predict(test),
            f"{what} changes the predictions of '{name}'",
            tolerance=0,
        )


SEVERAL_CHECKS: tuple[Callable[[Any], None], ...] = (
    fitted_to_several,
    parameters_of_several,
    shared_parts,
    several_saved,
    several_resumed,
)
