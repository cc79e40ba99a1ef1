"""Comparisons of arrays and trees that are used by several checks."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from retinakit.contracts.netcdf import read_netcdf, write_netcdf
from retinakit.testing.case import demand, temporary_path


def difference_of(a: xr.DataTree, b: xr.DataTree) -> str | None:
    """The first difference of two trees in groups, variables, dtypes, values or attributes.

    Returns:
        A sentence, or None if there is no difference.
    """
    first, second = ({node.path: node for node in tree.subtree} for tree in (a, b))
    if first.keys() != second.keys():
        return f"group {sorted(first.keys() ^ second.keys())[0]} is in only one of them"
    for path, node in first.items():
        one, other = node.to_dataset(inherit=False), second[path].to_dataset(inherit=False)
        if set(one.variables) != set(other.variables):
            names = sorted(map(str, set(one.variables) ^ set(other.variables)))
            return f"{path}: variable '{names[0]}' is in only one of them"
        for name, variable in one.variables.items():
            twin, where = other.variables[name], f"{path}: '{name}'"
            if variable.dims != twin.dims:
                return f"{where} has dimensions {variable.dims} and {twin.dims}"
            if _type(variable.dtype) != _type(twin.dtype):
                return f"{where} is of type {variable.dtype} and {twin.dtype}"
            if not equal(variable.values, twin.values):
                return f"{where} has different values"
            if not _equal_attributes(variable.attrs, twin.attrs):
                return f"{where} has attributes {variable.attrs} and {twin.attrs}"
        if not _equal_attributes(one.attrs, other.attrs):
            return f"{path} has attributes {one.attrs} and {other.attrs}"
    return None


def _type(dtype: Any) -> str:
    # NetCDF changes the dtype of text.
    return "text" if dtype.kind in "OSUT" else str(np.dtype(dtype).newbyteorder("="))


def equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays are equal, with NaN equal to NaN."""
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc" and b.dtype.kind in "fc"))


def _equal_attributes(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
    return a.keys() == b.keys() and all(
        equal(np.atleast_1d(np.asarray(a[name])), np.atleast_1d(np.asarray(b[name]))) for name in a
    )


def tree_of(dataset: xr.Dataset) -> xr.DataTree:
    return xr.DataTree(dataset=dataset)


def same_values(a: xr.DataArray, b: xr.DataArray, what: str, *, tolerance: float = 1e-5) -> None:
    """Checks that two predictions ([repeat,] frame, cell) are equal, with NaN equal to NaN.

    Args:
        a, b: the predictions.
        what: the beginning of the message if they differ.
        tolerance: relative to the largest absolute value. The default allows for rounding errors,
            such as those of a convolution by Fourier transform.

    Raises:
        AssertionError: if they differ.
    """
    one, other = np.asarray(a, float), np.asarray(b, float)
    demand(one.shape == other.shape, f"{what}: shape {one.shape} became {other.shape}")
    if one.size == 0:
        return
    scale = tolerance * float(np.nanmax(np.abs(one), initial=0))
    wrong = ~np.isclose(one, other, rtol=0, atol=scale, equal_nan=True)
    if wrong.any():
        first = tuple(int(index[0]) for index in np.nonzero(wrong))  # ([repeat,] frame, cell)
        raise AssertionError(
            f"{what}, in {np.count_nonzero(wrong)} of {wrong.size} predictions; the first is "
            f"frame {first[-2]} of the cell at index {first[-1]}: {one[first]:.6g} became "
            f"{other[first]:.6g}"
        )


def labelled(dataset: xr.Dataset, what: str) -> None:
    """Checks that a Dataset has nonempty variables with labelled dimensions.

    A variable with the name of one of its dimensions must be one-dimensional. xarray treats
    `filter (filter, lag, y, x)` as a coordinate, of which only the first is kept when results of a
    sweep are combined, and which is renamed in the file.

    Raises:
        AssertionError: if it does not.
    """
    demand(
        isinstance(dataset, xr.Dataset),
        f"{what} is a {type(dataset).__name__}, not an xarray.Dataset",
    )
    for name, variable in dataset.variables.items():
        demand(
            name not in variable.dims or variable.ndim == 1,
            f"'{name}' in {what} has the name of one of its dimensions {variable.dims}; rename the "
            "variable or the dimension",
        )
    demand(dataset.data_vars, f"{what} has no variables")
    for name in dataset.data_vars:
        variable = dataset.variables[name]
        demand(variable.size, f"variable '{name}' of {what} is empty: {dict(variable.sizes)}")
        described = str(variable.attrs.get("description", ""))
        for dim in variable.dims:
            demand(
                dim in dataset.coords or re.search(rf"\b{re.escape(str(dim))}\b", described),
                f"dimension '{dim}' of '{name}' in {what} has no coordinate; add one, or explain "
                f"'{dim}' in the variable's attribute 'description'",
            )
    if "lag" in dataset.dims:
        demand(
            "lag_time" in dataset.coords and dataset["lag_time"].dims == ("lag",),
            f"{what} has the dimension 'lag' without the coordinate 'lag_time' (s) along it; add "
            "it with retinakit.contracts.lag_coordinate",
        )


def through_netcdf(tree: xr.DataTree) -> xr.DataTree:
    """The tree after writing it to NetCDF and reading it."""
    with temporary_path("tree.nc") as path:
        write_netcdf(tree, path)
        return read_netcdf(path, load=True)
