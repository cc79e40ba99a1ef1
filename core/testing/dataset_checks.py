"""Checks of datasets. The name of a check is the name of its function."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from retinakit.contracts.dataset import Dataset
from retinakit.contracts.errors import UserError
from retinakit.contracts.recording import SPIKES_PER_BIN, SPLITS, segments, validate
from retinakit.registry.find import Entry
from retinakit.testing.case import Case, demand, instance_of, run_checks
from retinakit.testing.comparisons import difference_of, labelled, through_netcdf
from retinakit.testing.plugin_checks import PLUGIN_CHECKS
from retinakit.testing.small_fields import small_fields
from retinakit.testing.small_inputs import small_recording


def check_dataset(
    dataset: Dataset | type[Dataset] | Entry,
    data: xr.DataTree | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Checks that a dataset satisfies its contract.

    Args:
        dataset: a class, an instance, or an entry of the registry.
        data: the recording passed to a dataset that is derived from another one; by default
            `small_recording()`.
        expected_failures: the reason for each check that is known to fail, by name.

    Raises:
        AssertionError: if checks fail. The message names the plugin and the failed checks, each
            with its finding.

    Example:
        >>> class Small(Dataset):
        ...     def load(self):
        ...         return small_recording(frames=80, size=4, seed=self.seed)
        >>> check_dataset(Small)
    """
    case = DatasetCase(instance_of(dataset), small_recording() if data is None else data)
    run_checks(DATASET_CHECKS, case, expected_failures)


@dataclass
class DatasetCase(Case):
    """A dataset under test; `data` is the recording for one that is derived from another."""

    data: xr.DataTree

    @property
    def made_from_data(self) -> bool:
        return bool(inspect.signature(self.plugin.load).parameters)

    @property
    def needs_data(self) -> bool:
        parameters = inspect.signature(self.plugin.load).parameters.values()
        return any(parameter.default is parameter.empty for parameter in parameters)

    def load(self, data: xr.DataTree | None = None) -> xr.DataTree:
        given = self.data.copy(deep=True) if data is None else data
        recording = self.fresh().load(data=given) if self.made_from_data else self.fresh().load()
        demand(
            isinstance(recording, xr.DataTree),
            f"load() returned a {type(recording).__name__}, not an xarray.DataTree",
        )
        tree: xr.DataTree = recording
        return tree

    @cached_property
    def recording(self) -> xr.DataTree:
        return self.load()


def recording_valid(case: DatasetCase) -> None:
    """`load` returns a recording that satisfies its contract."""
    validate(case.recording)


def recording_labelled(case: DatasetCase) -> None:
    """Variables have units, times agree with the frame interval, and other groups are labelled."""
    for name in SPLITS:
        split = case.recording[name].to_dataset()
        for variable in ("stimulus", "response", "rate", "time", "y", "x"):
            if variable == "rate" and variable not in split:
                continue
            demand(variable in split.variables, f"{name}: there is no coordinate '{variable}'")
            units = split[variable].attrs.get("units")
            demand(units, f"{name}: '{variable}' has no attribute 'units'")
            for of, right in (("time", "s"), ("rate", SPIKES_PER_BIN)):
                demand(
                    variable != of or units == right,
                    f"{name}: '{variable}' is in {units!r}; it must be in {right!r}",
                )
        interval = float(split.attrs["frame_interval"])
        demand(interval > 0, f"{name}: frame_interval is {interval}")
        steps = [np.diff(split["time"].values[part]) for part in segments(split)]
        within = np.concatenate(steps)
        if len(within):
            demand(
                np.isclose(np.median(within), interval, rtol=0.05),
                f"{name}: frame_interval is {interval:g} s and the median step of 'time' within "
                f"a segment is {np.median(within):g} s",
            )
    for name in case.recording.children:
        if name not in SPLITS:
            labelled(case.recording[name].to_dataset(), f"group '{name}'")


def stimulus_compact(case: DatasetCase) -> None:
    """A stimulus of small integers has an integer dtype."""
    for name in SPLITS:
        stimulus = case.recording[name].to_dataset()["stimulus"].values
        small = stimulus.dtype.kind == "f" and bool(
            np.all((stimulus == np.round(stimulus)) & (np.abs(stimulus) < 128))
        )
        demand(
            not small,
            f"{name}: 'stimulus' has only small integers as {stimulus.dtype}; store it as int8",
        )


def dataset_determinism(case: DatasetCase) -> None:
    """Two loads with the same seed give equal recordings."""
    difference = difference_of(case.recording, case.load())
    demand(difference is None, f"a second load with the same seed differs: {difference}")


def recording_stored(case: DatasetCase) -> None:
    """The recording is unchanged after writing and reading NetCDF."""
    difference = difference_of(case.recording, through_netcdf(case.recording))
    demand(difference is None, f"writing and reading NetCDF changes the recording: {difference}")


def files_listed(case: DatasetCase) -> None:
    """`files` lists existing files."""
    for path in case.fresh().files():
        demand(isinstance(path, Path), f"files() lists {path!r}, which is not a pathlib.Path")
        demand(path.is_file(), f"files() lists {path}, which is not a file")


def data_unchanged(case: DatasetCase) -> None:
    """`load` does not modify the recording that it is given."""
    if not case.made_from_data:
        return
    given = case.data.copy(deep=True)
    case.load(given)
    difference = difference_of(case.data, given)
    demand(difference is None, f"load() changed the recording it was given: {difference}")


def made_alone(case: DatasetCase) -> None:
    """A dataset whose `load` has a default for `data` is also made without it."""
    if case.made_from_data and not case.needs_data:
        validate(case.fresh().load())


def bars_and_full_field(case: DatasetCase) -> None:
    """A dataset derived from another one accepts bars and full fields, or raises a UserError."""
    if not case.made_from_data:
        return
    for field, data in small_fields(case.data).items():
        try:
            validate(case.load(data))
        except UserError:
            continue
        except Exception as error:
            raise AssertionError(
                f"with a stimulus of {field}, it raised {type(error).__name__} ({error}); raise a "
                "UserError if such stimuli are not supported"
            ) from error


DATASET_CHECKS: tuple[Callable[[Any], None], ...] = (
    *PLUGIN_CHECKS,
    recording_valid,
    recording_labelled,
    stimulus_compact,
    dataset_determinism,
    recording_stored,
    files_listed,
    data_unchanged,
    made_alone,
    bars_and_full_field,
)
