"""Curves of a score against a swept option, with mean and spread over other dimensions."""

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.contracts.analysis import groups, sweep_dims
from retinakit.contracts.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd

MARKERS = "os^v"
LEVELS = ("--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
"""Line styles of horizontal lines. The next one is used when all colours have been used."""

WIDE = 8
"""The axis is logarithmic if the ratio of the largest to the smallest value is at least this."""

MANY = 16
"""Largest number of values for which each value has a tick."""

DECADES = 2
"""Range of a logarithmic axis from which ticks at powers of 10 are enough."""

ROOM = 20
"""Characters of all tick labels together up to which they are horizontal; else they are turned."""

ABSENT: Final = {"number": 0, "swept": False}
"""Fill values where a joined curve has no point at a value of the swept option."""


def curves(
    result: xr.DataTree, name: str, over: str, spread: Sequence[str] = ("seed",)
) -> xr.Dataset:
    """Curves of a variable, one for each model and each point of its other sweeps.

    Args:
        result: a combined result of the pipeline.
        name: the variable; models that do not have it are left out.
        over: the swept option on the horizontal axis.
        spread: dimensions over which mean and standard deviation are taken.

    Returns:
        `mean`, `deviation` (the standard deviation with n - 1, NaN for n < 2) and `number (curve,
        OVER)`, the n values that are not NaN, where the dimension OVER is named after the option.
        `curve` is a label such as "cnn, layers 2". A model that was not swept over the option has
        the same value at all points, and `swept (curve)` is false.

    Raises:
        UserError: if no model has the variable, or no model that has it was swept over the option.

    Example:
        >>> import xarray as xr
        >>> group = xr.Dataset(
        ...     {"fev": (("frames", "seed"), [[0.1, 0.3], [0.5, 0.7]])},
        ...     coords={"frames": [100, 200], "seed": [0, 1]},
        ...     attrs={"sweep": "frames,seed"},
        ... )
        >>> found = curves(xr.DataTree.from_dict({"/cnn": group}), "fev", over="frames")
        >>> found["mean"].values.round(3).tolist()
        [[0.2, 0.6]]
    """
    by_model = groups(result)
    having = {model: group for model, group in by_model.items() if name in group.data_vars}
    if not having:
        known = {str(v) for group in by_model.values() for v in group.data_vars}
        raise UserError(f"the results have no '{name}'; {nearest(name, known)}")
    axes = [group[over].values for group in having.values() if over in group[name].dims]
    if not axes:
        known = {dim for group in having.values() for dim in sweep_dims(group)}
        raise UserError(f"the results were not swept over '{over}'; {nearest(over, known)}")
    parts = []
    for model, group in having.items():
        values, swept = group[name], over in group[name].dims
        if not swept:
            values = values.expand_dims({over: np.unique(np.concatenate(axes))})
        repeated = [dim for dim in spread if dim in values.dims]
        number = values.notnull().sum(repeated)
        mean = values.sum(repeated) / number.where(number > 0)
        finite = mean.where(np.isfinite(mean))  # a mean of -inf has no deviation
        squares = ((values - finite) ** 2).sum(repeated).where(finite.notnull())
        part = xr.Dataset(
            {
                "mean": mean,
                "deviation": (squares / (number - 1).where(number > 1)) ** 0.5,
                "number": number,
            }
        )
        others = [str(dim) for dim in mean.dims if dim != over]
        varied = [dim for dim in others if mean.sizes[dim] > 1]
        labels = []
        for point in product(*(range(mean.sizes[dim]) for dim in others)):
            place = dict(zip(others, point, strict=True))
            about = [f"{d} {mean[d].values[i]}" for d, i in place.items() if d in varied]
            labels.append(", ".join([*([model] if len(by_model) > 1 else []), *about]) or name)
        part = part.stack(curve=others, create_index=False) if others else part.expand_dims("curve")
        part = part.drop_vars([c for c in part.coords if c != over]).assign_coords(curve=labels)
        part["swept"] = ("curve", [swept] * len(labels))
        parts.append(part.transpose("curve", over))
    joined: xr.Dataset = xr.concat(parts, "curve", join="outer", fill_value=ABSENT)
    return joined


def chosen(
    result: xr.DataTree, options: Sequence[str], by: str, *, largest: bool = False
) -> xr.DataTree:
    """Selects the best values of swept options, at each point of the other sweeps.

    Args:
        result: a combined result of the pipeline.
        options: swept options; those that a model was not swept over are ignored for it.
        by: the variable whose mean over `cell` is compared; it should be one that is measured on
            the validation frames. A point at which a cell has no value that it has at others is
            not chosen. Of points whose mean is infinitely bad, such as -inf bits per spike, the one
            with the fewest such cells, and then with the best mean of the others, is chosen.
        largest: whether the largest value is the best; else the smallest.

    Returns:
        The result without the dimensions of these options. `best_OPTION` is the selected value.

    Raises:
        UserError: if no model was swept over the options, or one that was has no such variable.

    Example:
        >>> import xarray as xr
        >>> group = xr.Dataset(
        ...     {"loss": ("filters", [0.4, 0.1, 0.2])},
        ...     coords={"filters": [1, 2, 3]},
        ...     attrs={"sweep": "filters"},
        ... )
        >>> best = chosen(xr.DataTree.from_dict({"/cnn": group}), ["filters"], by="loss")
        >>> int(best["cnn"]["best_filters"])
        2
    """
    groups_of = groups(result)
    if not any(dim in sweep_dims(group) for group in groups_of.values() for dim in options):
        known = {dim for group in groups_of.values() for dim in sweep_dims(group)}
        raise UserError(
            f"the results were not swept over '{options[0]}'; {nearest(options[0], known)}"
        )
    best = {f"/{n}": _chosen(n, group, options, by, largest) for n, group in groups_of.items()}
    return xr.DataTree.from_dict(best)


def _chosen(
    name: str, group: xr.Dataset, options: Sequence[str], by: str, largest: bool
) -> xr.Dataset:
    dims = [dim for dim in sweep_dims(group) if dim in options]
    if not dims:
        return group
    if by not in group:
        raise UserError(
            f"the results of '{name}' have no '{by}'; {nearest(by, map(str, group.data_vars))}"
        )
    value = (group[by] if largest else -group[by]).stack(candidate=dims)
    cells = ["cell"] if "cell" in value.dims else []
    # A cell of another recording has no value at any point.
    lacking = (value.isnull() & value.notnull().any("candidate")).any(cells)
    infinite = xr.DataArray(np.isneginf(value))
    worst = infinite.sum(cells)
    worst = worst.where(~lacking, np.inf)
    fewest = worst == worst.min("candidate")
    mean = value.where(~infinite).mean(cells)
    # A model whose values are all NaN gets its first point.
    place = mean.where(fewest).fillna(-np.inf).argmax("candidate")
    best = group.stack(candidate=dims).isel(candidate=place)
    best = (
        best.drop_vars("candidate")
        .rename({dim: f"best_{dim}" for dim in dims})
        .reset_coords([f"best_{dim}" for dim in dims])
    )
    left = [dim for dim in sweep_dims(group) if dim not in dims]
    return best.assign_attrs(group.attrs, sweep=",".join(left))


def rows(model: str, numbers: xr.Dataset) -> "pd.DataFrame":
    """The numbers of a model as rows of a table, one for each point of its sweep.

    Args:
        model: the name of the model, for the column `model`.
        numbers: variables over the dimensions of a sweep, or single numbers.

    Example:
        >>> import xarray as xr
        >>> rows("ln", xr.Dataset({"fev": ("cell", [0.5, 0.25])}, {"cell": [3, 4]})).values.tolist()
        [['ln', 3, 0.5], ['ln', 4, 0.25]]
    """
    import pandas as pd

    frame = (
        numbers.to_dataframe().reset_index()
        if numbers.sizes
        else pd.DataFrame([{name: value.item() for name, value in numbers.data_vars.items()}])
    )
    frame.insert(0, "model", model)
    return frame[["model", *numbers.sizes, *numbers.data_vars]]


def draw(axis: Any, drawn: xr.Dataset, over: str, **style: Any) -> None:
    """Draws the result of `curves`: means with error bars of one standard deviation.

    A model that was not swept over the option is drawn as a horizontal line. Infinite means are
    drawn as triangles at the lower (-inf) or upper (inf) edge of the panel.

    Args:
        axis: a matplotlib Axes.
        drawn: the result of `curves`.
        over: the swept option on the horizontal axis.
        style: line properties of the curves, such as ls=":"; horizontal lines do not use them.

    Example:
        >>> import xarray as xr
        >>> from matplotlib.figure import Figure
        >>> drawn = xr.Dataset(
        ...     {
        ...         "mean": (("curve", "frames"), [[0.2, 0.6]]),
        ...         "deviation": (("curve", "frames"), [[0.1, 0.1]]),
        ...         "swept": ("curve", [True]),
        ...     },
        ...     coords={"frames": [100, 200], "curve": ["cnn"]},
        ... )
        >>> axis = Figure().subplots()
        >>> draw(axis, drawn, over="frames")
        >>> axis.get_legend_handles_labels()[1]
        ['cnn']
    """
    for index, label in enumerate(drawn["curve"].values):
        curve, marker, level = drawn.isel(curve=index), *marks(index)
        common = {"color": f"C{index}", "label": str(label)}
        for edge, sign, symbol in ((0.03, -1, "v"), (0.97, 1, "^")):
            lost = curve[over].values[curve["mean"].values == sign * np.inf]
            place = axis.get_xaxis_transform()
            axis.plot(lost, [edge] * len(lost), symbol, color=f"C{index}", ms=6, transform=place)
        curve = curve.isel({over: np.flatnonzero(np.isfinite(curve["mean"]))})
        if not curve["swept"] and curve.sizes[over]:
            axis.axhline(float(curve["mean"][0]), ls=level, **common)
            continue
        look = {"marker": marker, "ms": 4, "capsize": 2.5} | common | style
        axis.errorbar(curve[over], curve["mean"], curve["deviation"].fillna(0), **look)


def marks(index: int) -> tuple[str, Any]:
    """The marker of a curve and the line style of a horizontal line, for the colour "C{index}".

    They change when the colour cycle begins again.

    Example:
        >>> marks(0)
        ('o', '--')
    """
    from matplotlib import rcParams

    turn = index // len(rcParams["axes.prop_cycle"])
    return MARKERS[turn % len(MARKERS)], LEVELS[turn % len(LEVELS)]


def number_axis(axis: Any, name: str, values: NDArray[Any], scale: str | None = None) -> None:
    """Sets label, scale and ticks of a horizontal axis for a swept option.

    Args:
        axis: a matplotlib Axes.
        name: the name of the option.
        values: its values in ascending order. Up to `MANY` integers each have a tick, and so have
            other numbers on a logarithmic axis of less than `DECADES`.
        scale: "linear" or "log"; by default "log" if the values are positive and the largest is at
            least `WIDE` times the smallest.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> axis = Figure().subplots()
        >>> number_axis(axis, "frames", np.array([10, 100, 1000]))
        >>> axis.get_xscale()
        'log'
    """
    if scale is None:
        scale = "log" if 0 < values[0] * WIDE <= values[-1] else "linear"
    axis.set(xlabel=name, xscale=scale)
    narrow = scale == "log" and values[-1] < 10**DECADES * values[0]
    whole = values.dtype.kind in "iu"
    if (whole or narrow) and len(values) <= MANY:
        axis.minorticks_off()
        labels = [str(value) if whole else f"{value:g}" for value in values]
        axis.set_xticks(values, labels)
        if sum(map(len, labels)) > ROOM:
            axis.tick_params("x", rotation=90)
