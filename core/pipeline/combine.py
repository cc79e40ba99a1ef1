"""Puts the results of a sweep together: every swept option becomes a dimension."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from retinakit.contracts.errors import UserError
from retinakit.contracts.model import cells_of_recording
from retinakit.pipeline.graph import Coords, Task
from retinakit.pipeline.hashes import code_hash


def combine(points: Sequence[tuple[Coords, xr.Dataset]]) -> xr.Dataset:
    """One Dataset of the results at the points of a sweep.

    A swept option becomes a dimension with its values as coordinate. Where the results have that
    dimension already, with one entry each (a sweep over `cell` of one-cell recordings), they are
    joined along it. Results of the recordings of one model are joined along `cell`, with the
    coordinate `recording` and cells named RECORDING/CELL. Sizes that differ between points, such as
    that of `filter`, are filled with NaN.

    Args:
        points: where each result stands, and the result.

    Returns:
        The combined result; its attribute `sweep` lists the dimensions that came from the sweep.

    Raises:
        UserError: if the results already use the name of a swept option for something larger.
    """
    dims = list(dict.fromkeys(dim for coords, _ in points for dim, _ in coords))
    # Read from disk, whole numbers would be written as such again, and NaN among them as nonsense.
    combined = _along([(dict(coords), result.drop_encoding()) for coords, result in points], dims)
    combined.attrs["sweep"] = ",".join(dim for dim in dims if dim in combined.dims)
    # Swept values of different kinds, such as a number and text, are one array as text alone.
    mixed = {
        name: (
            coord.dims,
            [v if isinstance(v, str) else json.dumps(v, default=str) for v in coord.values],
        )
        for name, coord in combined.coords.items()
        if coord.dims and coord.dims[0] in dims and coord.ndim == 1 and coord.dtype == object
    }
    return combined.assign_coords(mixed)


def at_point(task: Task, result: xr.Dataset) -> xr.Dataset:
    """A result with the options of its point as coordinates, for a sweep of listed points."""
    options = {f"{n}_option" if n in result.variables else n: _label(v) for n, v in task.options}
    return result.assign_coords(options)


def joined_key(tasks: Sequence[Task], contents: Sequence[str]) -> str:
    """The key in the store of the joined results of tasks.

    Args:
        contents: hashes of the results; one that is computed again may be another.
    """
    points = [
        (task.key, content, task.about, task.coords, task.options)
        for task, content in zip(tasks, contents, strict=True)
    ]
    text = json.dumps(["joined", code_hash(__name__, "retinakit"), points])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _along(points: list[tuple[dict[str, Any], xr.Dataset]], dims: list[str]) -> xr.Dataset:
    if not dims:
        return points[0][1].copy()
    dim, *others = dims
    by_value: dict[str, list[tuple[dict[str, Any], xr.Dataset]]] = {}
    labels: dict[str, Any] = {}
    for coords, result in points:
        if dim not in coords:
            raise UserError(
                f"some results are swept over '{dim}' and others are not, so they cannot be one "
                "array; give them to separate steps"
            )
        text = json.dumps(coords[dim])
        labels[text] = _label(coords[dim])
        by_value.setdefault(text, []).append((coords, result))
    parts = [_along(inner, others) for inner in by_value.values()]
    if dim == "recording" and all("cell" in part.dims for part in parts):
        named = [cells_of_recording(*part) for part in zip(parts, labels.values(), strict=True)]
        return _joined(named, "cell", "different")
    parts = [_at(part, dim, label) for part, label in zip(parts, labels.values(), strict=True)]
    return _joined(parts, dim, "all")


def _at(part: xr.Dataset, dim: str, label: Any) -> xr.Dataset:
    """A result with a swept option as a dimension of size 1."""
    if dim not in part.dims:
        if dim in part.coords or dim in part.data_vars:
            part = part.drop_vars(dim)
        return part.expand_dims({dim: [label]})
    if part.sizes[dim] != 1:
        raise UserError(
            f"the results have a dimension '{dim}' of {part.sizes[dim]} entries, the name of a "
            "swept option; rename one of them"
        )
    return part


def _joined(parts: list[xr.Dataset], dim: str, data_vars: Any) -> xr.Dataset:
    """Results along a dimension, filled with NaN where other dimensions differ in size."""
    sizes: dict[Any, set[int]] = {}
    for part in parts:
        for name, size in part.sizes.items():
            sizes.setdefault(name, set()).add(size)
    # A dimension without a coordinate is counted, so that xarray can align it.
    counted = [
        name
        for name, found in sizes.items()
        if name != dim and len(found) > 1 and not any(name in part.indexes for part in parts)
    ]
    parts = [
        part.assign_coords({n: np.arange(part.sizes[n]) for n in counted if n in part.dims})
        for part in parts
    ]
    joined: xr.Dataset = xr.concat(
        parts,
        dim,
        data_vars=data_vars,
        coords="different",
        compat="equals",
        join="outer",
        combine_attrs="drop_conflicts",
    )
    # Text that only some results have, such as the reason of a missing score, is empty elsewhere.
    for name, values in joined.data_vars.items():
        if values.dtype.kind == "O":
            joined[name] = values.where(values.notnull(), "")
    return joined.drop_vars(counted)


def _label(value: Any) -> Any:
    """A coordinate label of a swept value: itself if it is a scalar, else its JSON."""
    return value if np.isscalar(value) else json.dumps(value)
