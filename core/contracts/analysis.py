"""The analysis contract: recordings, models or other results in, a labelled result out."""

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
    """One recording of a sweep and, if the step fits models, the model fitted to it.

    Attributes:
        name: the name of the pipeline step.
        coords: the coordinates in the sweep, such as {"cell": 5, "filters": 4}.
        source: reads the model and the recording from disk when they are first used.
        data_coords: the coordinates that belong to the recording, such as {"cell": 5}.

    Example:
        >>> from types import SimpleNamespace
        >>> source = SimpleNamespace(model=lambda: "a model", recording=lambda: "its recording")
        >>> member = FittedModel("cnn", {"filters": 4}, source)
        >>> member.name, member.coords["filters"], member.model, member.data
        ('cnn', 4, 'a model', 'its recording')
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
        """The recording to which the model was fitted, or the recording of a dataset step."""
        return self.source.recording()


class Analysis(Plugin, ABC):
    """Base class of analyses, which compute a labelled result and draw it.

    The names of the parameters of `run` determine its arguments:

    - `data`: one recording. The analysis runs once for every point of the sweep.
    - `model`: one fitted model (a `Model`). The analysis runs once for every model and point of its
      sweep. With `data` as a second parameter, it also gets the recording to which the model was
      fitted, or the one that the step's `data:` names.
    - `recordings`, `models`: all points of the sweep as a list of `FittedModel`, for an analysis
      that needs them together, such as a transfer matrix.
    - `results`: the results of the analyses in the step's `results:`, by name.
    - `progress`: a `retinakit.contracts.Progress` to report progress to.

    The result of a cell that was not recorded is NaN, and a text variable `reason (cell)` gives
    the reason (see `retinakit.scores.reason`). A text variable `warning`, with any dimensions, is
    shown at the top of the report where it is not empty, after the name of the model or dataset:
    "predicts worse than a constant rate", for example.

    The pipeline combines the results of single runs into one DataTree with one group for each model
    or dataset, in which every sweep is a dimension.

    Example:
        >>> import numpy as np
        >>> from retinakit.contracts import SPLITS, make_recording, make_split
        >>> class Count(Analysis):
        ...     def run(self, data):
        ...         return xr.Dataset({"spikes": data["train"]["response"].sum("frame")})
        ...
        ...     def plot(self, result):
        ...         from matplotlib.figure import Figure
        ...
        ...         return Figure()
        >>> split = make_split(np.zeros((4, 2, 2)), np.ones((4, 1)), frame_interval=0.03)
        >>> Count().run(make_recording(dict.fromkeys(SPLITS, split)))["spikes"].values
        array([4.])
    """

    @abstractmethod
    def run(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Computes the result.

        Returns:
            Arrays with labelled dimensions, such as `cell`, with coordinates and, as attributes,
            `units`.

        Raises:
            UserError: if the recording or the model cannot be analysed.
        """

    @abstractmethod
    def plot(self, result: xr.DataTree) -> "Figure":
        """Draws the result; a report can therefore be drawn again from the stored results.

        Args:
            result: as combined by the pipeline. `self` is a new object with the step's options,
                not the one that ran.
        """

    def caption(self, result: xr.DataTree) -> str:
        """A caption of one or two sentences; by default the first line of the class docstring.

        Args:
            result: as for `plot`.
        """
        documented = (cls.__doc__ for cls in type(self).__mro__ if cls.__doc__)
        return next(documented).strip().splitlines()[0]

    def table(self, result: xr.DataTree) -> "pd.DataFrame | None":
        """A table for the report, or None for none.

        Args:
            result: as for `plot`.
        """
        return None


def groups(result: xr.DataTree) -> dict[str, xr.Dataset]:
    """The Datasets of a combined result, by the name of the analysed model or dataset.

    The result of an analysis that takes all models or recordings together has the name "".

    Args:
        result: as combined by the pipeline, the argument of `Analysis.plot`.

    Example:
        >>> result = xr.DataTree.from_dict({"/cnn": xr.Dataset({"fev": ("cell", [0.5])})})
        >>> list(groups(result))
        ['cnn']
        >>> list(groups(result["cnn"]))
        ['']
    """
    if result.children:
        return {name: child.to_dataset() for name, child in result.children.items()}
    return {"": result.to_dataset()}


def sweep_dims(group: xr.Dataset) -> list[str]:
    """The dimensions of a combined result that are sweeps, in the order of the pipeline file.

    Args:
        group: one Dataset of a combined result (see `groups`).

    Example:
        >>> sweep_dims(xr.Dataset(attrs={"sweep": "filters,seed"}))
        ['filters', 'seed']
    """
    return [name for name in str(group.attrs.get("sweep", "")).split(",") if name]


def cases(result: xr.DataTree) -> Iterator[tuple[str, xr.Dataset]]:
    """Iterates over the points of the sweeps of a combined result.

    Args:
        result: as combined by the pipeline.

    Yields:
        A label of up to three short lines (name, swept options, cell) and the Dataset of the point.

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
    """The swept options: the sweep dimensions, with `point` replaced by the options it sets."""
    found = []
    for dim in sweep_dims(group):
        at_points = [str(n) for n, c in group.coords.items() if c.dims == ("point",) and n != dim]
        found += at_points if dim == "point" and at_points else [dim]
    return found


def points(result: xr.DataTree) -> list[str]:
    """The index columns of a result's table: `model`, the swept options and `cell`.

    Args:
        result: as combined by the pipeline.

    Example:
        >>> group = xr.Dataset(
        ...     {"fev": ("filters", [0.1, 0.4])}, {"filters": [1, 2]}, {"sweep": "filters"}
        ... )
        >>> points(xr.DataTree.from_dict({"/cnn": group}))
        ['model', 'filters', 'cell']
    """
    swept = [option for group in groups(result).values() for option in _options(group)]
    return ["model", *dict.fromkeys(option for option in swept if option != "cell"), "cell"]
