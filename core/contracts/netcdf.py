"""What NetCDF files cannot hold, as what they can."""

import json
from typing import Any

import numpy as np
import xarray as xr


def storable(dataset: xr.Dataset) -> xr.Dataset:
    """A Dataset whose attributes NetCDF can hold.

    True and False become 1 and 0, None an empty text, and dictionaries and nested lists JSON.

    Example:
        >>> import xarray as xr
        >>> result = xr.Dataset(attrs={"found": True, "options": {"lags": 20}, "note": None})
        >>> storable(result).attrs
        {'found': 1, 'options': '{"lags": 20}', 'note': ''}
    """
    dataset = dataset.copy()
    dataset.attrs = _attributes(dataset.attrs)
    for variable in dataset.variables.values():
        variable.attrs = _attributes(variable.attrs)
    return dataset


def _attributes(attributes: dict[Any, Any]) -> dict[str, Any]:
    return {str(name): _attribute(value) for name, value in attributes.items()}


def _attribute(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, dict) or (isinstance(value, list | tuple) and not _flat(value)):
        return json.dumps(value, default=str)
    if isinstance(value, np.ndarray) and value.dtype == bool:
        return value.astype(np.int8)
    return value


def _flat(values: Any) -> bool:
    """Whether a list holds numbers alone, or text alone."""
    kinds = {str if isinstance(v, str) else float for v in values}
    plain = all(isinstance(v, str | int | float | np.number) for v in values)
    return plain and len(kinds) == 1 and not any(isinstance(v, bool) for v in values)
