"""Puts the results of a sweep together: every swept option becomes a dimension."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from retinakit.contracts.errors import UserError
from retinakit.pipeline.graph import Coords


def combine(points: Sequence[tuple[Coords, xr.Dataset]]) -> xr.Dataset:
    """One Dataset of the results at the points of a sweep.

    A swept option becomes a dimension with its values as coordinate. Where the results have that
    dimension already, with one entry each (a sweep over `cell` of one-cell recordings), they are
    joined along it. Sizes that differ between points (`filter`) are filled with NaN.

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
    combined.attrs["sweep"] = ",".join(dims)
    return combined


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
    parts = []
    for text, inner in by_value.items():
        part = _along(inner, others)
        if dim not in part.dims:
            if dim in part.coords or dim in part.data_vars:
                part = part.drop_vars(dim)
            part = part.expand_dims({dim: [labels[text]]})
        elif part.sizes[dim] != 1:
            raise UserError(
                f"the results have a dimension '{dim}' of {part.sizes[dim]} entries, the name of a "
                "swept option; rename one of them"
            )
        parts.append(part)
    joined: xr.Dataset = xr.concat(
        parts,
        dim,
        data_vars="all",
        coords="different",
        compat="equals",
        join="outer",
        combine_attrs="drop_conflicts",
    )
    return joined


def _label(value: Any) -> Any:
    """A coordinate label of a swept value: itself if it is a scalar, else its JSON."""
    return value if np.isscalar(value) else json.dumps(value)
