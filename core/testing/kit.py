"""The conformance kit: checks that a dataset, a model or an analysis keeps its contract.

For the tests of retinakit and of anybody's plugins:

    import pytest
    from retinakit.testing.kit import check_model, registered

    @pytest.mark.parametrize("plugin", registered("model", distribution="my-plugins"))
    def test_model(plugin):
        check_model(plugin)

`check_model`, `check_dataset` and `check_analysis` take a class, an instance (the way to give small
sizes: `check_model(Mine({"lags": 5}))`), or an entry of the registry. Each runs every check of its
kind and fails with one AssertionError that lists the checks that failed, by name, with what was
found. A check that is known to fail is named in `expected_failures` with the reason; it is then an
error if it passes.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pydantic
import xarray as xr
from numpy.typing import NDArray

from retinakit.contracts.analysis import Analysis, FittedModel
from retinakit.contracts.dataset import Dataset
from retinakit.contracts.errors import UserError
from retinakit.contracts.model import ENGINE, Model, coordinates_of
from retinakit.contracts.plugin import Plugin
from retinakit.contracts.progress import Progress, silent
from retinakit.contracts.recording import (
    SPIKES_PER_BIN,
    SPLITS,
    full_history,
    lag_coordinate,
    make_recording,
    make_split,
    mean_response,
    segments,
    validate,
)
from retinakit.registry.find import Entry, Registry, load_entry
from retinakit.registry.hookspecs import KINDS

RUN_PARAMETERS = ("data", "model", "recordings", "models", "results", "progress")
"""What the `run` of an analysis may ask for."""


# What a test needs: plugins and small inputs.


def registered(kind: str, *, distribution: str | None = None) -> list[Any]:
    """The plugins that are installed, for `pytest.mark.parametrize`.

    Args:
        kind: "dataset", "model" or "analysis".
        distribution: only what this distribution offers.

    Returns:
        A pytest param for each, with the id `distribution:name`. Its value is the registry's entry;
        the class is not imported before the check, or `retinakit.registry.find.load_entry`.

    Raises:
        UserError: if the distribution that was asked for could not be read, or offers nothing.
    """
    import pytest

    if kind not in KINDS:
        raise UserError(f"there is no kind of plugin {kind!r}; known: {', '.join(KINDS)}")
    entries = Registry().entries
    if distribution is not None:
        entries = [entry for entry in entries if entry.distribution == distribution]
        # Without this, a distribution that breaks would pass its tests by having none.
        for entry in entries:
            if entry.status == "failed":
                raise UserError(f"{entry.full_name} cannot be tested: {entry.reason}")
        if not entries:
            raise UserError(f"no distribution {distribution!r} with plugins is installed")
    return [
        pytest.param(entry, id=entry.full_name)
        for entry in entries
        if entry.spec and entry.spec.kind == kind and entry.status in ("ok", "conflict")
    ]


def small_recording(
    *,
    frames: int = 2000,
    cells: int = 2,
    size: int = 8,
    lags: int = 5,
    repeats: int = 5,
    truth: bool = True,
    seed: int = 0,
) -> xr.DataTree:
    """A recording of simulated cells under white noise, small enough for tests.

    Each cell sums four rectified subunits of 2 x 2 checks; its spikes are Poisson.

    Args:
        frames: of `train`, in two segments; the other splits have a quarter of it.
        cells: how many.
        size: checks along y and along x, at least 4.
        lags: length of the temporal filter in frames.
        repeats: of `test`.
        truth: include the group `truth`, which `retinakit.simulation.cells_of` understands.
        seed: of cells, stimulus and spikes.

    Returns:
        `stimulus` is int8 of +-1, `response` int16 counts, and `rate` is known in every split.
    """
    random = np.random.default_rng(seed)
    frame_interval, check = 1 / 30, 30.0
    lag = np.arange(lags)
    temporal = np.stack(
        [np.sin(np.pi * (lag + 0.5) / lags) * np.exp(-lag / (2 + cell)) for cell in range(cells)]
    )
    temporal /= np.linalg.norm(temporal, axis=1, keepdims=True)
    subunit = np.zeros((cells, 4, size, size))
    for cell in range(cells):
        top, left = random.integers(0, size - 3, 2)
        for i, (y, x) in enumerate(((0, 0), (0, 2), (2, 0), (2, 2))):
            subunit[cell, i, top + y : top + y + 2, left + x : left + x + 2] = 0.5

    def split(length: int, parts: int, shown: int | None = None) -> xr.Dataset:
        stimulus = (2 * random.integers(0, 2, (length, size, size)) - 1).astype(np.int8)
        segment = np.sort(np.arange(length) % parts).astype(np.int32)
        rate = np.empty((length, cells))
        for part in range(parts):
            here = segment == part
            drive = np.einsum("fyx,csyx->csf", stimulus[here].astype(float), subunit)
            for cell in range(cells):
                filtered = [np.convolve(one, temporal[cell])[: len(one)] for one in drive[cell]]
                rate[here, cell] = 0.5 * np.maximum(filtered, 0).sum(0)
        counts = random.poisson(rate if shown is None else np.stack([rate] * shown))
        place = np.arange(size) * check
        return make_split(
            stimulus,
            counts.astype(np.int16),
            frame_interval=frame_interval,
            rate=rate,
            segment=segment,
            y=place,
            x=place,
        )

    groups = {
        "train": split(frames, 2),
        "validation": split(frames // 4, 1),
        "test": split(frames // 4, 1, repeats),
    }
    if truth:
        first = groups["train"]
        groups["truth"] = xr.Dataset(
            {
                "subunit_weight": (("cell", "subunit", "y", "x"), subunit),
                "output_weight": (("cell", "subunit"), np.ones((cells, 4))),
                "temporal": (("cell", "lag"), temporal),
                "threshold": ("cell", np.zeros(cells)),
                "gain": ("cell", np.full(cells, 0.5)),
            },
            coords={
                **lag_coordinate(lag, frame_interval),
                "subunit": np.arange(4),
                **{dim: first[dim].variable for dim in ("cell", "y", "x")},
            },
            attrs={
                "contrast": 1.0,
                "nonlinearity": "rectify",
                "output_nonlinearity": "rectify",
                "spikes": "poisson",
            },
        )
    return make_recording(groups)


class SmallModel(Model):
    """A rectified linear filter per cell, for tests of what needs some fitted model.

    The filter is the response's covariance with the white stimulus: no training, no options.
    """

    weights: xr.Dataset

    @property
    def lags(self) -> int:
        return 5

    def fit(
        self,
        recording: xr.DataTree,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> xr.Dataset:
        split = recording["train"].to_dataset()
        windows, counted = self._windows(split["stimulus"])
        response = np.asarray(mean_response(split), float)[counted]
        mean = np.nanmean(response, 0)
        filters = np.nan_to_num(response - mean).T @ windows / len(windows)
        field = coordinates_of(split, self.lags)
        dims = ("cell", "lag", *split["stimulus"].dims[1:])
        shape = [field.sizes[str(dim)] for dim in dims]
        self.weights = self.field = field.assign(
            filter=(dims, filters.reshape(shape)), offset=("cell", mean)
        )
        return xr.Dataset({"validation_loss": ("check", [0.0])}, coords={"check": [0]})

    def _windows(self, stimulus: xr.DataArray) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The histories (window, lag and pixel), and the frames (frame,) that have one."""
        counted = full_history(stimulus["segment"], self.lags)
        pixels = int(np.prod(stimulus.shape[1:]))
        values = stimulus.values.reshape(len(counted), pixels).astype(float)
        ends = np.flatnonzero(counted)[:, None] - np.arange(self.lags)
        return values[ends].reshape(len(ends), self.lags * pixels), counted

    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        windows, counted = self._windows(split["stimulus"])
        filters = self.weights["filter"].values.reshape(self.weights.sizes["cell"], -1)
        rate = np.full((len(counted), len(filters)), np.nan)
        rate[counted] = np.maximum(windows @ filters.T + self.weights["offset"].values, 0)
        return rate

    def parameters(self) -> xr.Dataset:
        return self.weights

    def state(self) -> xr.Dataset:
        return self.weights

    def restore(self, state: xr.Dataset) -> None:
        self.weights = self.field = state


# The three checks of the kit.


def check_dataset(
    dataset: Dataset | type[Dataset] | Entry,
    data: xr.DataTree | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Checks that a dataset keeps its contract.

    Args:
        dataset: a class, an instance with options that make it small, or an entry of the registry.
        data: the recording to give to a dataset that is made from another one.
        expected_failures: reasons by the name of the check.

    Raises:
        AssertionError: naming the plugin, the checks that failed and what was found.
    """
    case = DatasetCase(_instance(dataset), small_recording() if data is None else data)
    _run(DATASET_CHECKS, case, expected_failures)


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
    case = ModelCase(_instance(model), small_recording() if recording is None else recording)
    _run(MODEL_CHECKS, case, expected_failures)


def check_analysis(
    analysis: Analysis | type[Analysis] | Entry,
    recording: xr.DataTree | None = None,
    models: Mapping[str, Model] | None = None,
    results: Mapping[str, xr.DataTree] | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Checks that an analysis keeps its contract.

    Args:
        analysis: a class, an instance with options, or an entry of the registry.
        recording: what to analyse; `small_recording()` by default.
        models: models fitted on it, by name; two `SmallModel`s by default.
        results: results of other analyses, by name, for an analysis that asks for them.
        expected_failures: reasons by the name of the check.

    Raises:
        AssertionError: naming the plugin, the checks that failed and what was found.
        UserError: if the analysis asks for results and none are given.
    """
    recording = small_recording() if recording is None else recording
    case = AnalysisCase(_instance(analysis), recording, models, results)
    if "results" in case.wanted and results is None:
        raise UserError(f"{case.name} asks for results; give check_analysis some")
    _run(ANALYSIS_CHECKS, case, expected_failures)


def _instance(plugin: Any) -> Any:
    if isinstance(plugin, Entry):
        plugin = load_entry(plugin)
    return plugin() if isinstance(plugin, type) else plugin


def _run(
    checks: Iterable[Callable[[Any], None]],
    case: "Case",
    expected_failures: Mapping[str, str] | None,
) -> None:
    """Runs every check and reports together."""
    by_name = {check.__name__: check for check in checks}
    expected = dict(expected_failures or {})
    unknown = sorted(expected.keys() - by_name.keys())
    if unknown:
        raise ValueError(f"no check is called {', '.join(unknown)}; known: {', '.join(by_name)}")
    found: list[str] = []
    first: Exception | None = None
    for name, check in by_name.items():
        try:
            check(case)
        except Exception as error:
            if name in expected:
                continue
            first = first or error
            what = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            found.append(f"{name}: {what}{' '.join(str(error).split())}")
        else:
            if name in expected:
                found.append(
                    f"{name}: passes, and was expected to fail ({expected[name]}); "
                    "take it out of expected_failures"
                )
    if found:
        lines = "\n".join(f"  {line}" for line in found)
        raise AssertionError(
            f"{case.name} breaks {len(found)} of {len(by_name)} checks:\n{lines}"
        ) from first


def _demand(condition: Any, found: str) -> None:
    if not condition:
        raise AssertionError(found)


@contextmanager
def _temporary(name: str) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder, name)


# Cases: a plugin with its inputs, and what several checks use of it.


@dataclass
class Case:
    """A plugin under test."""

    plugin: Any

    @property
    def name(self) -> str:
        return type(self.plugin).__name__

    def fresh(self, **changed: Any) -> Any:
        """A new instance with the same options and seed, which shares nothing with the others."""
        plugin: Plugin = self.plugin
        return type(plugin)(**{"config": plugin.config, "seed": plugin.seed} | changed)


@dataclass
class DatasetCase(Case):
    """A dataset under test; `data` is for one that is made from another."""

    data: xr.DataTree

    @property
    def made_from_data(self) -> bool:
        return bool(inspect.signature(self.plugin.load).parameters)

    def load(self, data: xr.DataTree | None = None) -> xr.DataTree:
        given = self.data.copy(deep=True) if data is None else data
        recording = self.fresh().load(data=given) if self.made_from_data else self.fresh().load()
        _demand(
            isinstance(recording, xr.DataTree),
            f"load() gave a {type(recording).__name__}, not an xarray.DataTree",
        )
        tree: xr.DataTree = recording
        return tree

    @cached_property
    def recording(self) -> xr.DataTree:
        return self.load()


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
        _same_values(self.prediction, other.predict(self.stimulus), what, exact=True)


class _Source:
    """Reads what a `FittedModel` is asked for."""

    def __init__(self, recording: xr.DataTree, model: Model | None):
        self._recording, self._model = recording, model

    def recording(self) -> xr.DataTree:
        return self._recording

    def model(self) -> Model:
        assert self._model is not None, "this is a recording, there is no model"
        return self._model


@dataclass
class AnalysisCase(Case):
    """An analysis under test, and what it may ask for."""

    recording: xr.DataTree
    given_models: Mapping[str, Model] | None
    results: Mapping[str, xr.DataTree] | None

    @cached_property
    def wanted(self) -> list[str]:
        """The parameters of `run` that must be given."""
        return [
            name
            for name, parameter in inspect.signature(self.plugin.run).parameters.items()
            if parameter.default is parameter.empty or name in RUN_PARAMETERS
        ]

    @property
    def mapped(self) -> bool:
        """Whether it sees one member of a family at a time, and is mapped over a sweep."""
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
        """What `run` gives, by the name of what it is about; one about a whole family has ''."""
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
            _demand(
                isinstance(result, xr.Dataset),
                f"run() gave a {type(result).__name__}, not an xarray.Dataset",
            )
        return results

    @cached_property
    def result(self) -> dict[str, xr.Dataset]:
        return self.run()

    @cached_property
    def combined(self) -> xr.DataTree:
        """The result as the pipeline combines it and reads it from disk."""
        return self._combined([()])

    @cached_property
    def swept(self) -> xr.DataTree:
        """The same after a sweep of an option over two values."""
        return self._combined([(("swept", 1),), (("swept", 2),)])

    def _combined(self, points: Sequence[tuple[tuple[str, Any], ...]]) -> xr.DataTree:
        from retinakit.pipeline.combine import combine

        groups = {
            f"/{about}": combine([(coords, result) for coords in points])
            for about, result in self.result.items()
        }
        return _through_netcdf(xr.DataTree.from_dict(groups))


def _through_netcdf(tree: xr.DataTree) -> xr.DataTree:
    with _temporary("tree.nc") as path:
        tree.to_netcdf(path, engine="h5netcdf")
        with xr.open_datatree(path, engine=ENGINE) as opened:
            return opened.load()


# Comparisons.


def _difference(a: xr.DataTree, b: xr.DataTree) -> str | None:
    """Where two trees differ in groups, variables, dimensions, types, values or attributes."""
    first, second = ({node.path: node for node in tree.subtree} for tree in (a, b))
    if first.keys() != second.keys():
        return f"group {sorted(first.keys() ^ second.keys())[0]} is in only one"
    for path, node in first.items():
        one, other = node.to_dataset(inherit=False), second[path].to_dataset(inherit=False)
        if set(one.variables) != set(other.variables):
            names = sorted(map(str, set(one.variables) ^ set(other.variables)))
            return f"{path}: variable '{names[0]}' is in only one"
        for name, variable in one.variables.items():
            twin, where = other.variables[name], f"{path}: '{name}'"
            if variable.dims != twin.dims:
                return f"{where} has dimensions {variable.dims} and {twin.dims}"
            if _type(variable.dtype) != _type(twin.dtype):
                return f"{where} is of type {variable.dtype} and {twin.dtype}"
            if not _equal(variable.values, twin.values):
                return f"{where} has different values"
            if not _equal_attributes(variable.attrs, twin.attrs):
                return f"{where} has attributes {variable.attrs} and {twin.attrs}"
        if not _equal_attributes(one.attrs, other.attrs):
            return f"{path} has attributes {one.attrs} and {other.attrs}"
    return None


def _type(dtype: Any) -> str:
    # Text comes back from NetCDF as another type of text.
    return "text" if dtype.kind in "OSUT" else str(np.dtype(dtype).newbyteorder("="))


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc"))


def _equal_attributes(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
    return a.keys() == b.keys() and all(
        _equal(np.atleast_1d(np.asarray(a[name])), np.atleast_1d(np.asarray(b[name]))) for name in a
    )


def _tree(dataset: xr.Dataset) -> xr.DataTree:
    return xr.DataTree(dataset=dataset)


def _same_values(a: xr.DataArray, b: xr.DataArray, what: str, *, exact: bool = False) -> None:
    """Demands that predictions are the same, NaN included; with `what` differed otherwise.

    Without `exact`, rounding is allowed, as that of a convolution by Fourier transform.
    """
    one, other = np.asarray(a, float), np.asarray(b, float)
    _demand(one.shape == other.shape, f"{what}: shape {one.shape} became {other.shape}")
    if one.size == 0:
        return
    scale = 0.0 if exact else 1e-5 * float(np.nanmax(np.abs(one), initial=0))
    wrong = ~np.isclose(one, other, rtol=0, atol=scale, equal_nan=True)
    if wrong.any():
        frame, cell = (int(index[0]) for index in np.nonzero(wrong))
        raise AssertionError(
            f"{what}, in {np.count_nonzero(wrong)} of {wrong.size} predictions; the first is "
            f"frame {frame} of cell number {cell}: {one[frame, cell]:.6g} became "
            f"{other[frame, cell]:.6g}"
        )


def _labelled(dataset: xr.Dataset, what: str) -> None:
    """Demands a Dataset of non-empty variables whose dimensions say what they are.

    A variable may not have the name of one of its dimensions unless it is their coordinate: xarray
    would take `filter (filter, lag, y, x)` for a coordinate, of which a combination over a sweep
    keeps only the first, and in the file it has another name.
    """
    _demand(
        isinstance(dataset, xr.Dataset),
        f"{what} gave a {type(dataset).__name__}, not an xarray.Dataset",
    )
    for name, variable in dataset.variables.items():
        _demand(
            name not in variable.dims or variable.ndim == 1,
            f"'{name}' in {what} has the name of one of its dimensions {variable.dims}; give the "
            "variable or the dimension another name",
        )
    _demand(dataset.data_vars, f"{what} holds no variable")
    for name in dataset.data_vars:
        variable = dataset.variables[name]
        _demand(variable.size, f"variable '{name}' of {what} is empty: {dict(variable.sizes)}")
        described = str(variable.attrs.get("description", ""))
        for dim in variable.dims:
            _demand(
                dim in dataset.coords or re.search(rf"\b{re.escape(str(dim))}\b", described),
                f"dimension '{dim}' of '{name}' in {what} has no coordinate; add one, or say what "
                f"'{dim}' is in the variable's attribute 'description'",
            )
    if "lag" in dataset.dims:
        _demand(
            "lag_time" in dataset.coords and dataset["lag_time"].dims == ("lag",),
            f"{what} has the dimension 'lag' without the coordinate 'lag_time' (s) along it; "
            "see retinakit.contracts.recording.lag_coordinate",
        )


# Checks of any plugin. The name of a check is that of its function.


def config_class(case: Case) -> None:
    """The options are a `retinakit.Config`."""
    from retinakit.contracts.config import Config

    _demand(
        issubclass(type(case.plugin).Config, Config) and isinstance(case.plugin.config, Config),
        f"Config is {type(case.plugin).Config.__name__}, which does not derive from "
        "retinakit.Config",
    )


def config_round_trip(case: Case) -> None:
    """The options survive JSON."""
    config = case.plugin.config
    again = type(config).model_validate(json.loads(config.model_dump_json()))
    _demand(again == config, f"the options {config!r} came back from JSON as {again!r}")


def config_frozen(case: Case) -> None:
    """The options cannot be changed."""
    config = case.plugin.config
    _demand(config.model_config.get("frozen"), "the options are not frozen")
    for name in type(config).model_fields:
        try:
            setattr(config, name, getattr(config, name))
        except pydantic.ValidationError:
            continue
        raise AssertionError(f"option '{name}' can be set on an existing config")


def config_extra(case: Case) -> None:
    """An unknown option is refused."""
    try:
        type(case.plugin).Config.model_validate({"no_such_option": 1})
    except pydantic.ValidationError as error:
        # Another complaint, such as a missing option, does not count.
        if any(detail["type"] == "extra_forbidden" for detail in error.errors()):
            return
    raise AssertionError("an unknown option 'no_such_option' was accepted")


def config_described(case: Case) -> None:
    """Every option has a default and a description."""
    for name, field in type(case.plugin).Config.model_fields.items():
        _demand(not field.is_required(), f"option '{name}' has no default")
        _demand((field.description or "").strip(), f"option '{name}' has no description")


def seed_kept(case: Case) -> None:
    """The seed and the options of an instance are those it was given."""
    seed = case.plugin.seed + 1
    other = case.fresh(seed=seed)
    _demand(other.seed == seed, f"seed={seed} was given and .seed is {other.seed!r}")
    _demand(other.config == case.plugin.config, "the options changed with the seed")


PLUGIN_CHECKS: tuple[Callable[[Any], None], ...] = (
    config_class,
    config_round_trip,
    config_frozen,
    config_extra,
    config_described,
    seed_kept,
)


# Checks of datasets.


def recording_valid(case: DatasetCase) -> None:
    """`load` gives a recording that keeps its own contract."""
    validate(case.recording)


def recording_labelled(case: DatasetCase) -> None:
    """Variables and coordinates have units, times fit the frame interval, truth is labelled."""
    for name in SPLITS:
        split = case.recording[name].to_dataset()
        for variable in ("stimulus", "response", "rate", "time", "y", "x"):
            if variable == "rate" and variable not in split:
                continue
            _demand(variable in split.variables, f"{name}: there is no coordinate '{variable}'")
            units = split[variable].attrs.get("units")
            _demand(units, f"{name}: '{variable}' has no attribute 'units'")
            for of, right in (("time", "s"), ("rate", SPIKES_PER_BIN)):
                _demand(
                    variable != of or units == right,
                    f"{name}: '{variable}' is in {units!r}; it must be in {right!r}",
                )
        interval = float(split.attrs["frame_interval"])
        _demand(interval > 0, f"{name}: frame_interval is {interval}")
        steps = [np.diff(split["time"].values[part]) for part in segments(split)]
        within = np.concatenate(steps)
        if len(within):
            _demand(
                np.isclose(np.median(within), interval, rtol=0.05),
                f"{name}: frame_interval is {interval:g} s and the median step of 'time' within "
                f"a segment is {np.median(within):g} s",
            )
    for name in case.recording.children:
        if name not in SPLITS:
            _labelled(case.recording[name].to_dataset(), f"group '{name}'")


def stimulus_compact(case: DatasetCase) -> None:
    """A stimulus of small integers is not stored as floating point numbers."""
    for name in SPLITS:
        stimulus = case.recording[name].to_dataset()["stimulus"].values
        small = stimulus.dtype.kind == "f" and bool(
            np.all((stimulus == np.round(stimulus)) & (np.abs(stimulus) < 128))
        )
        _demand(
            not small,
            f"{name}: 'stimulus' holds only small integers, as {stimulus.dtype}; store it as int8",
        )


def dataset_determinism(case: DatasetCase) -> None:
    """Two loads with one seed give the same."""
    difference = _difference(case.recording, case.load())
    _demand(difference is None, f"a second load with the same seed differs: {difference}")


def recording_stored(case: DatasetCase) -> None:
    """NetCDF keeps everything."""
    difference = _difference(case.recording, _through_netcdf(case.recording))
    _demand(difference is None, f"before and after NetCDF: {difference}")


def files_listed(case: DatasetCase) -> None:
    """`files` lists existing files."""
    for path in case.fresh().files():
        _demand(isinstance(path, Path), f"files() lists {path!r}, which is not a pathlib.Path")
        _demand(path.is_file(), f"files() lists {path}, which is not a file")


def data_unchanged(case: DatasetCase) -> None:
    """The recording that another one is made from is left as it was."""
    if not case.made_from_data:
        return
    given = case.data.copy(deep=True)
    case.load(given)
    difference = _difference(case.data, given)
    _demand(difference is None, f"load() changed the recording it was given: {difference}")


DATASET_CHECKS: tuple[Callable[[Any], None], ...] = (
    *PLUGIN_CHECKS,
    recording_valid,
    recording_labelled,
    stimulus_compact,
    dataset_determinism,
    recording_stored,
    files_listed,
    data_unchanged,
)


# Checks of models.


def curves_labelled(case: ModelCase) -> None:
    """`fit` gives numbers along `check`, the validation loss among them."""
    curves = case.curves
    _demand(
        isinstance(curves, xr.Dataset),
        f"fit() gave a {type(curves).__name__}, not an xarray.Dataset of curves",
    )
    _demand("check" in curves.dims, f"the curves have dimensions {list(curves.dims)}, not 'check'")
    _demand(
        "validation_loss" in curves and "check" in curves["validation_loss"].dims,
        f"the curves {list(curves.data_vars)} have no 'validation_loss' along 'check'",
    )
    for name, curve in curves.data_vars.items():
        _demand(curve.dtype.kind in "biuf", f"curve '{name}' is of type {curve.dtype}")
    _demand(np.isfinite(curves["validation_loss"]).any(), "'validation_loss' is nowhere finite")


def prediction_labelled(case: ModelCase) -> None:
    """`predict` gives (frame, cell) with the cells, the times and the segments."""
    prediction, stimulus = case.prediction, case.stimulus
    _demand(
        isinstance(prediction, xr.DataArray),
        f"predict() gave a {type(prediction).__name__}, not an xarray.DataArray",
    )
    _demand(
        prediction.dims == ("frame", "cell"),
        f"the prediction has dimensions {prediction.dims}, not ('frame', 'cell')",
    )
    _demand(
        prediction.sizes["frame"] == stimulus.sizes["frame"],
        f"{stimulus.sizes['frame']} frames were shown and {prediction.sizes['frame']} predicted",
    )
    _demand(prediction.dtype.kind == "f", f"the prediction is of type {prediction.dtype}")
    expected = {
        "cell": case.recording["train"].to_dataset()["cell"],
        "time": stimulus["time"],
        "segment": stimulus["segment"],
    }
    for name, coordinate in expected.items():
        _demand(name in prediction.coords, f"the prediction has no coordinate '{name}'")
        _demand(
            _equal(prediction[name].values, coordinate.values),
            f"coordinate '{name}' of the prediction differs from that of the recording",
        )


def history_only(case: ModelCase) -> None:
    """The prediction is NaN just where the segment holds no full history, finite elsewhere."""
    stimulus = _two_segments(case)
    prediction = np.asarray(case.model.predict(stimulus))
    counted = full_history(stimulus["segment"], case.model.lags)
    early = np.isfinite(prediction) & ~counted[:, None]
    _demand(
        not early.any(),
        f"frame {np.nonzero(early)[0][:1]} has no {case.model.lags} frames of history in its "
        "segment and is predicted; it must be NaN",
    )
    lost = ~np.isfinite(prediction) & counted[:, None]
    _demand(
        not lost.any(),
        f"frame {np.nonzero(lost)[0][:1]} has {case.model.lags} frames of history and its "
        "prediction is not finite",
    )


def rate_not_negative(case: ModelCase) -> None:
    """A model fitted by Poisson likelihood predicts no negative rate."""
    if getattr(case.plugin.config, "loss", None) == "poisson":
        lowest = float(np.nanmin(case.prediction))
        _demand(lowest >= 0, f"loss is 'poisson' and a prediction is negative ({lowest:.6g})")


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
    with _temporary("model.nc") as path:
        model.save(path, case.curves)
        loaded = type(model).load(path)
    case.same_prediction(loaded, "the model that was saved and loaded predicts otherwise")
    difference = _difference(_tree(model.parameters()), _tree(loaded.parameters()))
    _demand(difference is None, f"parameters() before and after saving: {difference}")
    _demand(
        (loaded.config, loaded.seed) == (model.config, model.seed),
        f"{model!r} was saved and {loaded!r} was loaded",
    )


def file_open_to_all(case: ModelCase) -> None:
    """The file of a model opens in xarray and h5py, and holds no pickle."""
    with _temporary("model.nc") as path:
        case.model.save(path, case.curves)
        with xr.open_datatree(path, engine=ENGINE) as tree:
            missing = {"parameters", "state", "curves"} - set(tree.children)
        _demand(not missing, f"the file has no group {', '.join(sorted(missing))}")
        with h5py.File(path) as file:
            _no_pickle("/", file)
            file.visititems(_no_pickle)


def _no_pickle(name: str, item: Any) -> None:
    values = [item[()]] if isinstance(item, h5py.Dataset) and item.shape is not None else []
    for value in [*values, *(v for v in item.attrs.values() if not isinstance(v, h5py.Empty))]:
        array = np.asarray(value)
        _demand(
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
            _demand(not (pickled or zipped), f"'{name}' in the file holds a pickle")


def recording_unchanged(case: ModelCase) -> None:
    """`fit` and `predict` leave what they are given as it was."""
    given = case.given
    difference = _difference(case.recording, given)
    _demand(difference is None, f"fit() changed the recording it was given: {difference}")
    stimulus = case.stimulus
    case.model.predict(stimulus)
    _demand(stimulus.identical(case.stimulus), "predict() changed the stimulus it was given")


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
    _demand(
        np.isfinite(predictions["missing"][counted]).all(),
        "with NaN in some frames of the response, the fitted model's predictions are not finite",
    )
    _demand(
        np.ptp(np.asarray(case.prediction)[counted], axis=0).max() == 0
        or not _equal(predictions["missing"], predictions["silence"]),
        "with NaN in some frames of the response, the fit is the same as with zeros there; "
        "frames that were not recorded must be left out",
    )


def short_stimulus(case: ModelCase) -> None:
    """A stimulus of no frames predicts no frames; one shorter than the history is all NaN."""
    cells = case.recording["train"].sizes["cell"]
    for frames in (0, case.model.lags - 1):
        prediction = case.model.predict(case.stimulus.isel(frame=slice(0, frames)))
        _demand(
            prediction.shape == (frames, cells),
            f"a stimulus of {frames} frames gave a prediction of shape {prediction.shape}, "
            f"not {(frames, cells)}",
        )
        _demand(
            np.isnan(prediction).all(), f"a stimulus of {frames} frames, too short, was predicted"
        )


def wrong_size_refused(case: ModelCase) -> None:
    """A stimulus of another size is a UserError that names the dimension."""
    for dim in ("y", "x"):
        larger = case.stimulus.pad({dim: (0, 1)}, mode="edge")
        try:
            case.model.predict(larger)
        except UserError as error:
            _demand(
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
        _same_values(
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
        _same_values(
            prediction[middle:],
            case.model.predict(changed)[middle:],
            "frames of the first segment were changed, and with them predictions in the second",
        )


def parameters_labelled(case: ModelCase) -> None:
    """`parameters` gives arrays whose dimensions say what they are."""
    _labelled(case.model.parameters(), "parameters()")


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

    with _temporary("checkpoint") as path:
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


# Checks of analyses.


def run_parameters(case: AnalysisCase) -> None:
    """`run` asks for what a pipeline can give."""
    unknown = [name for name in case.wanted if name not in RUN_PARAMETERS]
    _demand(
        not unknown,
        f"run() asks for {', '.join(unknown)}; it can be given {', '.join(RUN_PARAMETERS)}",
    )


def result_labelled(case: AnalysisCase) -> None:
    """The result is a Dataset whose dimensions say what they are."""
    for result in case.result.values():
        _labelled(result, "the result")


def analysis_determinism(case: AnalysisCase) -> None:
    """Two runs with one seed give the same."""
    again = case.run()
    for about, result in case.result.items():
        difference = _difference(_tree(result), _tree(again[about]))
        _demand(difference is None, f"a second run with the same seed differs: {difference}")


def inputs_unchanged(case: AnalysisCase) -> None:
    """`run` leaves the recordings, the models and the results it is given as they were."""

    def inputs() -> dict[str, xr.DataTree]:
        found = {"the recording": case.recording.copy(deep=True)}
        for name, model in case.models.items() if {"model", "models"} & set(case.wanted) else ():
            found[f"model '{name}'"] = _tree(model.state().copy(deep=True))
        for name, result in (case.results or {}).items():
            found[f"result '{name}'"] = result.copy(deep=True)
        return found

    before = inputs()
    case.run()
    for name, after in inputs().items():
        difference = _difference(before[name], after)
        _demand(difference is None, f"run() changed {name}: {difference}")


def result_stored(case: AnalysisCase) -> None:
    """NetCDF keeps everything."""
    for result in case.result.values():
        difference = _difference(_tree(result), _through_netcdf(_tree(result)))
        _demand(difference is None, f"before and after NetCDF: {difference}")


def plotted_from_disk(case: AnalysisCase) -> None:
    """`plot` draws from the result as read from disk alone, with another instance."""
    _draw(case.fresh(), case.combined)


def plotted_after_sweep(case: AnalysisCase) -> None:
    """`plot` draws a result that has a sweep's dimension in front."""
    if case.mapped:
        _draw(case.fresh(), case.swept)


def _draw(analysis: Analysis, result: xr.DataTree) -> None:
    from matplotlib.figure import Figure

    figure: Any = analysis.plot(result)
    _demand(
        isinstance(figure, Figure),
        f"plot() gave a {type(figure).__name__}, not a matplotlib.figure.Figure",
    )
    figure.savefig(BytesIO(), format="png")
    figure.clear()
    # A figure made by pyplot would stay in its list.
    import matplotlib.pyplot

    matplotlib.pyplot.close(figure)


def caption_given(case: AnalysisCase) -> None:
    """The caption is a sentence."""
    caption: Any = case.fresh().caption(case.combined)
    _demand(
        isinstance(caption, str) and caption.strip(), f"caption() gave {caption!r}, not a sentence"
    )


def table_given(case: AnalysisCase) -> None:
    """The table is a pandas.DataFrame or None, after a sweep too."""
    import pandas as pd

    for result in (case.combined, case.swept) if case.mapped else (case.combined,):
        table: Any = case.fresh().table(result)
        _demand(
            table is None or isinstance(table, pd.DataFrame),
            f"table() gave a {type(table).__name__}, not a pandas.DataFrame or None",
        )


ANALYSIS_CHECKS: tuple[Callable[[Any], None], ...] = (
    *PLUGIN_CHECKS,
    run_parameters,
    result_labelled,
    analysis_determinism,
    inputs_unchanged,
    result_stored,
    plotted_from_disk,
    plotted_after_sweep,
    caption_given,
    table_given,
)
