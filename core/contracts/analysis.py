"""The analysis contract: from recordings, models or other results to a labelled result."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import xarray as xr

from retinakit.contracts.model import Model
from retinakit.contracts.plugin import Plugin

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class _Source(Protocol):
    def model(self) -> Model: ...
    def recording(self) -> xr.DataTree: ...


@dataclass(frozen=True)
class FittedModel:
    """One member of a family: a recording and, if the family is of models, a fitted model.

    Attributes:
        name: the step's name.
        coords: where in the sweep it stands, such as {"cell": 5, "filters": 4}.
        source: reads it, when it is asked for.
        data_coords: those of the coords that are its recording's, such as {"cell": 5}.
    """

    name: str
    coords: Mapping[str, Any]
    source: _Source
    data_coords: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def model(self) -> Model:
        """The fitted model."""
        return self.source.model()

    @property
    def data(self) -> xr.DataTree:
        """The recording that it was fitted on, or is."""
        return self.source.recording()


class Analysis(Plugin, ABC):
    """Computes a result, and draws it.

    What `run` is given follows from the names of its parameters:

    - `data`: one recording. The analysis is run once for every point of the sweep.
    - `model`: one fitted model (a `Model`). Run once for every model and point of its sweep; `data`
      beside it is the recording that the model was fitted on, or the one the step's `data:` names.
    - `recordings`, `models`: all of them, as a list of `FittedModel`. For an analysis that wants
      the whole family, such as a transfer matrix.
    - `results`: the results of the analyses that the step's `results:` names, by name.
    - `progress`: to be told how far it is (a `retinakit.contracts.Progress`).

    A cell that was not recorded in a split has NaN there, and a text variable `reason (cell)` says
    why (see `retinakit.scores.reason`).

    The pipeline puts what one-by-one runs return into one DataTree: a group for each model or
    dataset, in which every sweep is a dimension.
    """

    @abstractmethod
    def run(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """The result, with labelled dimensions."""

    @abstractmethod
    def plot(self, result: xr.DataTree) -> "Figure":
        """A figure made from the result alone, so that a report can be drawn again from disk.

        Args:
            result: as the pipeline combines it. `self` has the step's options, nothing else.
        """

    def caption(self, result: xr.DataTree) -> str:
        """What the figure shows, in a sentence or two. By default the class's first line."""
        documented = (cls.__doc__ for cls in type(self).__mro__ if cls.__doc__)
        return next(documented).strip().splitlines()[0]

    def table(self, result: xr.DataTree) -> "pd.DataFrame | None":
        """The numbers that belong in the report as a table, or None."""
        return None


def groups(result: xr.DataTree) -> dict[str, xr.Dataset]:
    """The Datasets of a combined result by the name of the model or dataset they are about.

    A result that is about no single step (of an analysis of a whole family) has the name "".
    """
    if result.children:
        return {name: child.to_dataset() for name, child in result.children.items()}
    return {"": result.to_dataset()}


def sweep_dims(group: xr.Dataset) -> list[str]:
    """The dimensions of a combined result that came from a sweep, in the order of the sweep."""
    return [name for name in str(group.attrs.get("sweep", "")).split(",") if name]


def cases(result: xr.DataTree) -> Iterator[tuple[str, xr.Dataset]]:
    """Every point of the sweeps of a combined result, with a label of a few short lines.

    Example:
        >>> import xarray as xr
        >>> group = xr.Dataset(
        ...     {"fev": ("filters", [0.1, 0.4])}, {"filters": [1, 2]}, {"sweep": "filters"}
        ... )
        >>> [label for label, _ in cases(xr.DataTree.from_dict({"/cnn": group}))]
        ['cnn\\nfilters=1', 'cnn\\nfilters=2']
    """
    for name, group in groups(result).items():
        dims = sweep_dims(group)
        stacked = group.stack(case=dims, create_index=False) if dims else group.expand_dims("case")
        for index in range(stacked.sizes["case"]):
            case = stacked.isel(case=index)
            options = [dim for dim in _options(group) if dim != "cell"]
            values = ", ".join(f"{option}={case[option].item()}" for option in options)
            cell = f"cell {case['cell'].item()}" if "cell" in dims else ""
            yield "\n".join(filter(None, (name, values, cell))), case


def _options(group: xr.Dataset) -> list[str]:
    """What was swept: dimensions, and in the place of `point` the options at the points."""
    found = []
    for dim in sweep_dims(group):
        at_points = [str(n) for n, c in group.coords.items() if c.dims == ("point",) and n != dim]
        found += at_points if dim == "point" and at_points else [dim]
    return found


def points(result: xr.DataTree) -> list[str]:
    """The columns that say what a row of a result's table is about: model, sweeps, cell."""
    swept = [option for group in groups(result).values() for option in _options(group)]
    return ["model", *dict.fromkeys(option for option in swept if option != "cell"), "cell"]
