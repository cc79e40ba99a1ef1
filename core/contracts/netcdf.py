"""NetCDF-4 files of recordings, models and results, written and read with h5py alone.

They are ordinary NetCDF-4: xarray, MATLAB and ncdump read them. They are not written with xarray's
engine h5netcdf, because it looks up every dimension scale again for every variable: a small
recording takes a quarter of a second, and a sweep writes and reads thousands of them.
"""

import json
from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

BLOCK: Final = 64 * 2**20
"""Bytes of a large variable that are written at a time."""

EAGER: Final = 2**20
"""Variables up to this many bytes are read with the file, larger ones when they are used."""

COMPRESSED: Final = 2**16
"""Arrays of integers with more values than this are compressed."""

CHUNK: Final = 2**20
"""Largest size, in bytes, of a chunk of a compressed variable."""

_NOT_A_VARIABLE = "This is a netCDF dimension but not a netCDF variable."
_NOT_A_COORDINATE = "_nc4_non_coord_"
"""The prefix, in NetCDF, of a variable that has the name of a dimension and is no coordinate."""

_OF_THE_FORMAT = {
    "CLASS",
    "NAME",
    "DIMENSION_LIST",
    "REFERENCE_LIST",
    "DIMENSION_LABELS",
    "_Netcdf4Dimid",
    "_Netcdf4Coordinates",
    "_NCProperties",
    "_nc3_strict",
}


# Writing


def write_netcdf(content: xr.DataTree | xr.Dataset, path: Path | str) -> None:
    """Writes a recording, a model or a result as NetCDF-4.

    Large arrays of integers are compressed. Large variables are written in blocks, so they may stay
    in the file they come from. Attributes are converted by `storable`, and byte strings to text.

    Args:
        content: a DataTree, or a Dataset, which becomes the root group.

    Raises:
        TypeError, ValueError: if NetCDF has no type for an array, such as one of Python objects.

    Example:
        >>> import tempfile
        >>> result = xr.Dataset({"sta": (("cell", "lag"), np.zeros((2, 3)))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_netcdf(result, f"{folder}/sta.nc")
        ...     read_netcdf(f"{folder}/sta.nc").to_dataset().identical(result)
        True
    """
    tree = xr.DataTree(dataset=content) if isinstance(content, xr.Dataset) else content
    with h5py.File(path, "w", track_order=True) as file:
        file.attrs["_NCProperties"] = np.bytes_(f"version=2,h5py={h5py.__version__}")
        scales: dict[str, MutableMapping[str, h5py.Dataset]] = {}
        number = 0
        for node in tree.subtree:
            above = scales[node.parent.path] if node is not tree and node.parent else {}
            place = node.path[len(tree.path.rstrip("/")) :] or "/"
            group = file if place == "/" else file.create_group(place, track_order=True)
            scales[node.path] = ChainMap({}, above)
            number = _write_group(group, node.to_dataset(inherit=False), scales[node.path], number)


def _write_group(
    group: h5py.Group,
    dataset: xr.Dataset,
    scales: MutableMapping[str, h5py.Dataset],
    number: int,
) -> int:
    """Writes a Dataset as a group.

    Args:
        scales: the dimensions of the groups above, by name; those of this group are added.
        number: of dimensions in the file so far.

    Returns:
        The number of dimensions in the file, with those of this group.
    """
    variables, attributes = xr.conventions.encode_dataset_coordinates(storable(dataset))
    _write_attributes(group, attributes)
    written: dict[str, tuple[xr.Variable, h5py.Dataset]] = {}
    for key, plain in variables.items():
        name = str(key)
        if name in dataset.dims and plain.dims != (name,):
            name = _NOT_A_COORDINATE + name
        # A variable that was read from a file has the encoding of that file, such as its chunks.
        variable = xr.conventions.encode_cf_variable(plain.drop_encoding(), name=name)
        written[name] = variable, _write_variable(group, name, variable)
    sizes = {str(dim): n for variable, _ in written.values() for dim, n in variable.sizes.items()}
    for dim, size in sizes.items():
        if dim in written:  # a coordinate is a dimension of its own group, whatever is above
            scale, title = written[dim][1], dim
        elif dim in scales and scales[dim].shape == (size,):
            continue
        else:
            shape, title = (size,), f"{_NOT_A_VARIABLE} {size:10d}"
            scale = group.create_dataset(
                dim, shape, ">f4", maxshape=(size or None,), track_order=True
            )
        scale.make_scale(title)
        scale.attrs["_Netcdf4Dimid"] = np.int32(number)
        scales[dim] = scale
        number += 1
    for name, (variable, target) in written.items():
        if variable.dims == (name,):
            continue
        for axis, along in enumerate(variable.dims):
            target.dims[axis].attach_scale(scales[str(along)])
    return number


def _write_variable(group: h5py.Group, name: str, variable: xr.Variable) -> h5py.Dataset:
    dtype = variable.dtype
    if dtype.kind == "S":
        variable, dtype = variable.astype(str), np.dtype(str)
    if dtype.kind in "UO":  # encode_cf_variable accepts no objects but text
        dtype = h5py.string_dtype()
    how: dict[str, Any] = {}
    if dtype.kind in "iub" and variable.size > COMPRESSED:
        how = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        how["chunks"] = _chunk(variable.shape, dtype.itemsize)
    elif (
        variable.ndim and 0 in variable.shape
    ):  # NetCDF has no dimension of length 0 that is not unlimited
        how["maxshape"] = tuple(size or None for size in variable.shape)
    target = group.create_dataset(name, variable.shape, dtype, track_order=True, **how)
    _write_attributes(target, variable.attrs)
    if not variable.ndim:
        target[()] = variable.values[()]
    elif variable.size:
        rows = max(1, BLOCK * len(variable) // max(1, variable.nbytes))
        if "chunks" in how:
            rows = max(1, rows // how["chunks"][0]) * how["chunks"][0]
        for start in range(0, len(variable), rows):
            target[start : start + rows] = variable[start : start + rows].values
    return target


def _chunk(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Chunks of whole frames, unless a frame is larger than `CHUNK`."""
    size, chunk = itemsize, []
    for length in reversed(shape):
        chunk.append(int(max(1, min(length, CHUNK // size))))
        size *= chunk[-1]
    return tuple(reversed(chunk))


def _write_attributes(target: h5py.Group | h5py.Dataset, attributes: Mapping[Any, Any]) -> None:
    for name, value in attributes.items():
        if isinstance(value, str):
            target.attrs[name] = value
            continue
        array = np.atleast_1d(np.asarray(value))
        if array.dtype.kind in "US" and not isinstance(value, bytes):
            target.attrs.create(name, array.astype(object), dtype=h5py.string_dtype())
        elif array.size:
            target.attrs[name] = array
        else:
            target.attrs[name] = h5py.Empty(array.dtype if array.dtype.kind in "iuf" else "f8")


# Reading


def read_netcdf(path: Path | str, *, load: bool = False) -> xr.DataTree:
    """Reads a file that `write_netcdf` wrote.

    Args:
        load: read all variables. Otherwise large variables are read from the file when they are
            used. The file is open only while it is read.

    Raises:
        FileNotFoundError: if the file does not exist.
        OSError, KeyError, ValueError, RuntimeError: if it is damaged; h5py raises different ones.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_netcdf(xr.Dataset(attrs={"lags": 20}), f"{folder}/a.nc")
        ...     int(read_netcdf(f"{folder}/a.nc", load=True).attrs["lags"])
        20
    """
    with h5py.File(path, "r") as file:
        groups: dict[str, xr.Dataset] = {}
        waiting: list[h5py.Group] = [file]
        while waiting:
            group = waiting.pop(0)
            variables: dict[str, xr.Variable] = {}
            for name, item in group.items():
                if isinstance(item, h5py.Group):
                    waiting.append(item)
                elif (variable := _read_variable(item, name, load)) is not None:
                    variables[name.removeprefix(_NOT_A_COORDINATE)] = variable
            encoded = xr.Dataset(variables, attrs=_plain_attributes(dict(group.attrs)))
            groups[group.name] = xr.decode_cf(encoded)
    return xr.DataTree.from_dict(groups)


def _read_variable(item: h5py.Dataset, name: str, load: bool) -> xr.Variable | None:
    """A variable as encoded in the file, or None for a dimension without a coordinate."""
    attributes = dict(item.attrs)
    title = attributes.get("NAME", b"")
    if attributes.get("CLASS") == b"DIMENSION_SCALE" and title.startswith(_NOT_A_VARIABLE.encode()):
        return None
    dims: tuple[str, ...] = (name,) if "CLASS" in attributes else ()
    if "DIMENSION_LIST" in attributes:
        file = item.file.id
        paths = (h5py.h5r.get_name(found[0], file) for found in attributes["DIMENSION_LIST"])
        dims = tuple(path.rpartition(b"/")[2].decode() for path in paths)
    encoding: dict[str, Any] = {}
    if item.chunks is not None:
        encoding["preferred_chunks"] = dict(zip(dims, item.chunks, strict=True))
        encoding["zlib"] = item.compression is not None
    data: Any
    if h5py.check_string_dtype(item.dtype):
        data = item.asstr()[()]
    elif load or item.nbytes <= EAGER:
        data = item[()]
    else:
        data = indexing.LazilyIndexedArray(_InFile(item))
    return xr.Variable(dims, data, _plain_attributes(attributes), encoding)


def _plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in attributes.items():
        if name in _OF_THE_FORMAT:
            continue
        if isinstance(value, h5py.Empty):
            value = np.empty(0, value.dtype)
        elif isinstance(value, np.ndarray) and value.size == 1:
            value = value.ravel()[0]
        elif isinstance(value, np.ndarray) and value.dtype.kind == "O":
            value = value.tolist()
        found[name] = value
    return found


class _InFile(BackendArray):
    """An array that stays in its file until it is used."""

    def __init__(self, array: h5py.Dataset):
        self.path, self.name = Path(array.file.filename).absolute(), array.name
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> NDArray[Any]:
        with h5py.File(self.path, "r") as file:
            found: NDArray[Any] = indexing.explicit_indexing_adapter(
                key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, file[self.name].__getitem__
            )
        return found


# Attributes that NetCDF cannot hold


def storable(dataset: xr.Dataset) -> xr.Dataset:
    """A Dataset whose attributes NetCDF can hold.

    True and False become 1 and 0, None an empty text, and dictionaries and nested lists JSON.

    Example:
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
