"""Recordings of bars and of a full field, made from a recording of a movie."""

from weakref import WeakKeyDictionary

import xarray as xr

from retinakit.contracts.model import Model


def small_fields(recording: xr.DataTree) -> dict[str, xr.DataTree]:
    """A recording reduced to its middle row, and to its middle check, by a description."""

    def reduced(dims: tuple[str, ...]) -> xr.DataTree:
        groups = {}
        for name, group in recording.children.items():
            split = group.to_dataset()
            middle = {dim: [split.sizes[dim] // 2] for dim in dims if dim in split.dims}
            groups[str(name)] = split.isel(middle)
        tree = xr.DataTree.from_dict(groups)
        tree.attrs.update(recording.attrs)
        return tree

    return {"one row": reduced(("y",)), "one check": reduced(("y", "x"))}


_refitted: WeakKeyDictionary[Model, dict[str, tuple[xr.DataTree, xr.DataTree, Model]]]
_refitted = WeakKeyDictionary()


def refitted(model: Model, recording: xr.DataTree, field: str) -> tuple[xr.DataTree, Model]:
    """A recording reduced to "one row" or "one check", and a copy of a model fitted to it.

    They are kept, because many analyses are checked with the same models.
    """
    known = _refitted.setdefault(model, {})
    if field not in known or known[field][0] is not recording:
        other = type(model)(model.config, seed=model.seed)
        reduced = small_fields(recording)[field]
        other.fit(reduced)
        known[field] = (recording, reduced, other)
    return known[field][1:]
