"""Checks of analyses. The name of a check is the name of its function."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from retinakit.contracts.analysis import Analysis, FittedModel
from retinakit.contracts.errors import UserError
from retinakit.contracts.model import Model
from retinakit.contracts.progress import silent
from retinakit.registry.find import Entry
from retinakit.testing.case import Case, demand, instance_of, run_checks
from retinakit.testing.comparisons import difference_of, labelled, through_netcdf, tree_of
from retinakit.testing.model_case import hide
from retinakit.testing.plugin_checks import PLUGIN_CHECKS
from retinakit.testing.small_fields import refitted, small_fields
from retinakit.testing.small_inputs import SmallModel, small_recording

RUN_PARAMETERS = ("data", "model", "recordings", "models", "results", "progress")
"""The parameters that `run` of an analysis may have."""


def check_analysis(
    analysis: Analysis | type[Analysis] | Entry,
    recording: xr.DataTree | None = None,
    models: Mapping[str, Model] | None = None,
    results: Mapping[str, xr.DataTree] | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Checks that an analysis satisfies its contract.

    Args:
        analysis: a class, an instance, or an entry of the registry.
        recording: to be analysed; by default `small_recording()`.
        models: models fitted to it, by name; by default two `SmallModel`s.
        results: results of other analyses, by name, if `run` has the parameter `results`.
        expected_failures: the reason for each check that is known to fail, by name.

    Raises:
        AssertionError: if checks fail. The message names the plugin and the failed checks, each
            with its finding.
        UserError: if the analysis requires results and none are given.

    Example:
        >>> from matplotlib.figure import Figure
        >>> class Count(Analysis):
        ...     def run(self, data):
        ...         return xr.Dataset({"spikes": data["train"]["response"].sum("frame")})
        ...
        ...     def plot(self, result):
        ...         return Figure()
        ...
        ...     def caption(self, result):
        ...         return "Spike counts."
        >>> check_analysis(Count, small_recording(frames=80, size=4))
    """
    recording = small_recording() if recording is None else recording
    case = AnalysisCase(instance_of(analysis), recording, models, results)
    if "results" in case.wanted and results is None:
        raise UserError(
            f"run() of {case.name} has the parameter 'results'; give check_analysis the argument "
            "'results'"
        )
    run_checks(ANALYSIS_CHECKS, case, expected_failures)


class _Source:
    """The source of the recording and the model of a `FittedModel`."""

    def __init__(self, recording: xr.DataTree, model: Model | None):
        self._recording, self._model = recording, model

    def recording(self) -> xr.DataTree:
        return self._recording

    def model(self) -> Model:
        assert self._model is not None, "this is a recording without a model"
        return self._model


@dataclass
class AnalysisCase(Case):
    """An analysis under test, with the arguments of `run`."""

    recording: xr.DataTree
    given_models: Mapping[str, Model] | None
    results: Mapping[str, xr.DataTree] | None

    @cached_property
    def wanted(self) -> list[str]:
        """The parameters of `run` that are passed."""
        return [
            name
            for name, parameter in inspect.signature(self.plugin.run).parameters.items()
            if parameter.default is parameter.empty or name in RUN_PARAMETERS
        ]

    @property
    def mapped(self) -> bool:
        """Whether `run` is called for each point of a sweep."""
        return bool({"data", "model"} & set(self.wanted))

    @cached_property
    def models(self) -> Mapping[str, Model]:
        if self.given_models is not None:
            return self.given_models
        models = {"first": SmallModel(), "second": SmallModel(seed=1)}
        for model in models.values():
            model.fit(self.recording)
        return models

    def run(self) -> dict[str, xr.Dataset]:
        """The results of `run`, by the name of the model or recording; '' if it takes all."""
        known: dict[str, Any] = {
            "data": self.recording,
            "recordings": [FittedModel("recording", {}, _Source(self.recording, None))],
            "results": self.results,
            "progress": silent,
        }
        if "models" in self.wanted:
            known["models"] = [
                FittedModel(name, {}, _Source(self.recording, model))
                for name, model in self.models.items()
            ]
        inputs = {name: known[name] for name in self.wanted if name in known}
        if "model" in self.wanted:
            results = {
                name: self.fresh().run(model=model, **inputs) for name, model in self.models.items()
            }
        else:
            results = {"recording" if self.mapped else "": self.fresh().run(**inputs)}
        for result in results.values():
            demand(
                isinstance(result, xr.Dataset),
                f"run() returned a {type(result).__name__}, not an xarray.Dataset",
            )
        return results

    def inputs(self) -> dict[str, xr.DataTree]:
        """Copies of the arguments of `run`, by a description."""
        found = {"the recording": self.recording.copy(deep=True)}
        for name, model in self.models.items() if {"model", "models"} & set(self.wanted) else ():
            found[f"model '{name}'"] = tree_of(model.state().copy(deep=True))
        for name, result in (self.results or {}).items():
            found[f"result '{name}'"] = result.copy(deep=True)
        return found

    @cached_property
    def inputs_before(self) -> dict[str, xr.DataTree]:
        """Copies of the inputs made before the first run."""
        return self.inputs()

    @cached_property
    def result(self) -> dict[str, xr.Dataset]:
        _ = self.inputs_before  # makes the copies
        return self.run()

    @cached_property
    def combined(self) -> xr.DataTree:
        """The result as combined by the pipeline and read from disk."""
        return self._combined([()])

    @cached_property
    def swept(self) -> xr.DataTree:
        """The combined result of a sweep over two values."""
        return self._combined([(("swept", 1),), (("swept", 2),)])

    def _combined(self, points: Sequence[tuple[tuple[str, Any], ...]]) -> xr.DataTree:
        from retinakit.pipeline.combine import combine

        groups = {
            f"/{about}": combine([(coords, result) for coords in points])
            for about, result in self.result.items()
        }
        return through_netcdf(xr.DataTree.from_dict(groups))


def run_parameters(case: AnalysisCase) -> None:
    """The parameters of `run` are those that a pipeline can pass."""
    unknown = [name for name in case.wanted if name not in RUN_PARAMETERS]
    demand(
        not unknown,
        f"run() has the parameters {', '.join(unknown)}; a pipeline can pass "
        f"{', '.join(RUN_PARAMETERS)}",
    )


def result_labelled(case: AnalysisCase) -> None:
    """The result is a Dataset with labelled dimensions."""
    for result in case.result.values():
        labelled(result, "the result")


def analysis_determinism(case: AnalysisCase) -> None:
    """Two runs with the same seed give equal results."""
    again = case.run()
    for about, result in case.result.items():
        difference = difference_of(tree_of(result), tree_of(again[about]))
        demand(difference is None, f"a second run with the same seed differs: {difference}")


def inputs_unchanged(case: AnalysisCase) -> None:
    """`run` does not modify its arguments."""
    demand(case.result, "run() returned nothing")
    for name, after in case.inputs().items():
        difference = difference_of(case.inputs_before[name], after)
        demand(difference is None, f"run() changed {name}: {difference}")


def unrecorded_cell(case: AnalysisCase) -> None:
    """`run` accepts a cell without responses in `validation` and `test`."""
    cells = case.recording["train"].sizes["cell"]
    if cells == 1 or not {"data", "recordings", "model", "models"} & set(case.wanted):
        return
    last = np.arange(cells) == cells - 1
    lost = {
        name: np.tile(last, (case.recording[name].sizes["frame"], 1))
        for name in ("validation", "test")
    }
    AnalysisCase(case.plugin, hide(case.recording, lost), case.models, case.results).run()


def result_stored(case: AnalysisCase) -> None:
    """The result is unchanged after writing and reading NetCDF."""
    for result in case.result.values():
        difference = difference_of(tree_of(result), through_netcdf(tree_of(result)))
        demand(difference is None, f"writing and reading NetCDF changes the result: {difference}")


def plotted_from_disk(case: AnalysisCase) -> None:
    """`plot` of a new instance draws the result that was read from disk."""
    _draw(case.fresh(), case.combined)


def plotted_after_sweep(case: AnalysisCase) -> None:
    """`plot` draws the result of a sweep, which has an additional first dimension."""
    if case.mapped:
        _draw(case.fresh(), case.swept)


def _draw(analysis: Analysis, result: xr.DataTree) -> None:
    from matplotlib.figure import Figure

    figure: Any = analysis.plot(result)
    demand(
        isinstance(figure, Figure),
        f"plot() returned a {type(figure).__name__}, not a matplotlib.figure.Figure",
    )
    figure.draw_without_rendering()
    figure.clear()
    # pyplot keeps references to its figures.
    import matplotlib.pyplot

    matplotlib.pyplot.close(figure)


def caption_given(case: AnalysisCase) -> None:
    """The caption is not empty."""
    caption: Any = case.fresh().caption(case.combined)
    demand(
        isinstance(caption, str) and caption.strip(),
        f"caption() returned {caption!r}; return a sentence",
    )


def table_given(case: AnalysisCase) -> None:
    """The table is a pandas.DataFrame or None, with and without a sweep."""
    import pandas as pd

    for result in (case.combined, case.swept) if case.mapped else (case.combined,):
        table: Any = case.fresh().table(result)
        demand(
            table is None or isinstance(table, pd.DataFrame),
            f"table() returned a {type(table).__name__}, not a pandas.DataFrame or None",
        )


def bars_and_full_field(case: AnalysisCase) -> None:
    """Stimuli of one row and of one check are analysed and drawn, or refused with a UserError.

    The models are fitted to them, except those without `any_field`.
    """
    wanted = {"data", "recordings", "model", "models"} & set(case.wanted)
    for field, recording in small_fields(case.recording).items() if wanted else ():
        models: dict[str, Model] = {}
        for name, model in case.models.items() if {"model", "models"} & wanted else ():
            if model.any_field:
                recording, models[name] = refitted(model, case.recording, field)
        if {"model", "models"} & wanted and not models:
            return
        small = AnalysisCase(case.plugin, recording, models, case.results)
        try:
            _draw(case.fresh(), small.combined)
        except UserError:
            continue
        except Exception as error:
            raise AssertionError(
                f"with a stimulus of {field}, it raised {type(error).__name__} ({error}); raise a "
                "UserError if such stimuli cannot be analysed"
            ) from error


ANALYSIS_CHECKS: tuple[Callable[[Any], None], ...] = (
    *PLUGIN_CHECKS,
    run_parameters,
    result_labelled,
    analysis_determinism,
    inputs_unchanged,
    unrecorded_cell,
    result_stored,
    plotted_from_disk,
    plotted_after_sweep,
    caption_given,
    table_given,
    bars_and_full_field,
)
