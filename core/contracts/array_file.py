"""Lazy arrays of a user's file (HDF5, NetCDF-4, MATLAB): only indexed elements are read.

An HDF5 file can refer to other files by external links, external storage or virtual datasets. These
references are followed only within the folder of the user's file, and each file they lead to is
recorded as an input of the array.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from xarray.backends import BackendArray
from xarray.core import indexing

from retinakit.contracts.errors import UserError, nearest

MOST_LINKS = 100
"""Maximum number of links and virtual sources that are followed for one array."""


def find_array(path: Path, name: str) -> "StoredArray":
    """Finds a numeric array in a file without reading its values.

    The axes of an array in a MATLAB file are in the order that MATLAB displays.

    Args:
        path: the path of an HDF5, NetCDF-4 or MATLAB file.
        name: the name of the array, or its path within the file.

    Raises:
        UserError: if there is no such array, it is not numeric, it was not written completely, or
            it is stored outside the folder of the file, from where nothing is read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "mine.h5")
        ...     with h5py.File(path, "w") as file:
        ...         file["spikes"] = np.zeros((5, 2))
        ...     find_array(path, "spikes").shape
        (5, 2)
    """
    if is_old_matlab(path):
        return _of_old_matlab(path, name)
    search = _Search(path)
    array = search.find(path, name)
    if is_matlab(path):
        array = array.transposed(range(len(array.shape))[::-1])
    array.files = tuple(dict.fromkeys([path, *search.files]))
    return array


def is_matlab(path: Path) -> bool:
    """Whether a file was written by MATLAB, according to its first bytes or its suffix.

    Args:
        path: the path of the file.

    Raises:
        UserError: if there is no such file or it cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile(suffix=".mat") as file:
        ...     is_matlab(Path(file.name))
        True
    """
    with _reading(path), path.open("rb") as file:
        return file.read(6) == b"MATLAB" or path.suffix == ".mat"


def is_old_matlab(path: Path) -> bool:
    """Whether a file has a MATLAB format older than version 7.3, which is not HDF5."""
    return is_matlab(path) and not h5py.is_hdf5(path)


class StoredArray(BackendArray):
    """A lazy array in a file; indexing reads only the indexed elements. See `find_array`.

    Attributes:
        path: the path of the file that contains the array.
        name: the path of the array in that file.
        axes: the stored axis for each axis of this array; None for an axis that is not stored.
        shape, chunks, dtype: of this array; `chunks` is None if it is not chunked in the file.
        compressed: whether the chunks are compressed.
        files: every file that stores a part of the array.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "mine.h5")
        ...     with h5py.File(path, "w") as file:
        ...         file["movie"] = np.zeros((5, 4, 3), np.int8)
        ...     array = find_array(path, "movie").transposed((0, 2, 1))
        ...     array.shape, array[indexing.BasicIndexer((0, slice(2), slice(None)))].shape
        ((5, 3, 4), (2, 4))
    """

    def __init__(
        self,
        path: Path,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunks: tuple[int, ...] | None = None,
        values: NDArray[Any] | None = None,
    ):
        self.path, self.name, self.shape, self.chunks = path, name, shape, chunks
        wide = dtype.kind == "f" and dtype.itemsize > 8  # no other machine or compiler has these
        self.dtype = np.dtype(float) if wide else dtype.newbyteorder("=")
        self.axes: tuple[int | None, ...] = tuple(range(len(shape)))
        self.files: tuple[Path, ...] = (path,)
        self.compressed = False
        self._values = values

    def transposed(self, axes: Any) -> "StoredArray":
        """A lazy transpose.

        Args:
            axes: the axis of this array for each axis of the result, as for `numpy.transpose`.
        """
        other = StoredArray(self.path, self.name, self.shape, self.dtype, values=self._values)
        other.files, other.compressed = self.files, self.compressed
        other.shape = tuple(self.shape[axis] for axis in axes)
        other.chunks = self.chunks and tuple(self.chunks[axis] for axis in axes)
        other.axes = tuple(self.axes[axis] for axis in axes)
        return other

    def expanded(self, place: int) -> "StoredArray":
        """The array with an additional axis of size 1.

        Args:
            place: the position of the new axis.
        """
        other = self.transposed(range(len(self.shape)))
        other.shape = (*self.shape[:place], 1, *self.shape[place:])
        other.chunks = self.chunks and (*self.chunks[:place], 1, *self.chunks[place:])
        other.axes = (*self.axes[:place], None, *self.axes[place:])
        return other

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> Any:
        there = [axis for axis in self.axes if axis is not None]
        stored = tuple(key[self.axes.index(axis)] for axis in range(len(there)))
        # An axis that is indexed with an integer is dropped from the result.
        number = (int, np.integer)
        kept = [
            pair for pair in zip(self.axes, key, strict=True) if not isinstance(pair[1], number)
        ]
        left = [axis for axis, _ in kept if axis is not None]
        if self._values is not None:
            values = self._values[stored]
        else:
            with _reading(self.path), h5py.File(self.path, "r") as file:
                values = _open(file, self.name)[stored]
        order = [sorted(left).index(axis) for axis in left]
        values = values.transpose(order)
        for place, (axis, k) in enumerate(kept):
            if axis is None:
                values = np.expand_dims(values, place)[(slice(None),) * place + (k,)]
        return np.asarray(values, dtype=self.dtype, order="C")


class _Search:
    """Resolves links to an array, and a virtual dataset to its sources."""

    def __init__(self, path: Path):
        self.path, self.folder = path, path.resolve().parent
        self.files: list[Path] = []
        self.steps, self.in_virtual = 0, False

    def error(self, name: str, problem: str) -> UserError:
        return UserError(f"{self.path}: '{name}' {problem}")

    def find(self, path: Path, name: str) -> StoredArray:
        """The array at a path in a file, after all links are resolved."""
        name = _joined(name)
        parts = name.split("/") if name else []
        with _reading(path), h5py.File(path, "r") as file:
            group: h5py.Group = file
            for index, part in enumerate(parts):
                link = group.get(part, getlink=True) if part in group.keys() else None  # noqa: SIM118
                rest = "/".join(parts[index + 1 :])
                if link is None:
                    raise UserError(f"{path}: there is no array '{name}'; {_nearest(file, name)}")
                if isinstance(link, h5py.SoftLink):
                    self.step(name)
                    start = "" if link.path.startswith("/") else group.name
                    return self.find(path, _joined(start, link.path, rest))
                if isinstance(link, h5py.ExternalLink):
                    self.step(name)
                    target = self.inside(name, path, link.filename)
                    return self.find(target, _joined(link.path, rest))
                if group.get(part, getclass=True) is not h5py.Group:
                    break
                group = group[part]
            else:
                raise UserError(f"{path}: there is no array '{name}'; {_nearest(file, name)}")
            if rest or group.get(part, getclass=True) is not h5py.Dataset:
                raise UserError(f"{path}: there is no array '{name}'; {_nearest(file, name)}")
            return self.checked(path, _open(group, part))

    def checked(self, path: Path, array: h5py.Dataset) -> StoredArray:
        """Checks that an array is numeric and complete, and records the files that store it."""
        name = _joined(array.name)
        self.files.append(path)
        outside = array.external or ()
        if outside and self.in_virtual:  # HDF5 would search the working folder
            raise self.error(
                name,
                "is a source of a virtual array and has external storage, which is not supported; "
                "copy it into its file",
            )
        held = 0
        for file, offset, size in outside:
            self.files.append(self.inside(name, path, file))
            held += max(0, min(size, self.files[-1].stat().st_size - offset))
        if array.is_virtual:
            self.in_virtual = True
            for file, source in {(s.file_name, s.dset_name) for s in array.virtual_sources()}:
                self.step(name)
                self.find(path if file == "." else self.inside(name, path, file), source)
        if array.dtype.kind not in "biuf":
            raise self.error(name, f"is of type {array.dtype}; convert it to numbers")
        if array.shape is None:
            raise self.error(name, "has no shape and no values; export it again")
        size = array.size * array.dtype.itemsize
        if held < size if outside else not array.is_virtual and not _is_written(array, size):
            raise self.error(
                name,
                f"is declared with the shape {array.shape} and not all of it was written; "
                "export it again",
            )
        found = StoredArray(path, name, array.shape, array.dtype, array.chunks)
        found.compressed = array.id.get_create_plist().get_nfilters() > 0
        return found

    def step(self, name: str) -> None:
        self.steps += 1
        if self.steps > MOST_LINKS:
            raise self.error(
                name,
                f"is reached through more than {MOST_LINKS} links, which may be circular; copy the "
                "array into the file",
            )

    def inside(self, name: str, path: Path, file: str) -> Path:
        """The target of a reference, if it is in the folder of the user's file."""
        try:
            target = (path.resolve().parent / file).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise self.error(name, f"refers to a file that cannot be found ({error})") from None
        if not target.is_relative_to(self.folder):
            raise self.error(
                name,
                f"is stored in {file}, outside the folder of the file, and is not read; copy it "
                "into that folder",
            )
        if not target.is_file():
            raise self.error(
                name, f"is stored in {file}, and there is no such file in its folder; copy it there"
            )
        return target


def _joined(*parts: str) -> str:
    """Joins the parts of a path in a file, without `//`, `.`, or `/` at its ends."""
    return "/".join(part for part in "/".join(parts).split("/") if part not in ("", "."))


def _open(group: h5py.Group, name: str) -> h5py.Dataset:
    """Opens an array; HDF5 searches for external storage in the folder of the file."""
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_efile_prefix(b"${ORIGIN}")
    access.set_virtual_prefix(b"${ORIGIN}")
    return h5py.Dataset(h5py.h5d.open(group.id, name.encode(), access))


def _is_written(array: h5py.Dataset, size: int) -> bool:
    if array.chunks is None:
        return bool(array.id.get_storage_size() >= size)
    wanted = np.prod(
        [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)],
        dtype=float,
    )
    return bool(array.id.get_num_chunks() >= wanted)


def _nearest(file: h5py.File, name: str) -> str:
    known: list[str] = []
    file.visititems(
        lambda path, item: known.append(path) if isinstance(item, h5py.Dataset) else None
    )
    return nearest(name, known)


def _of_old_matlab(path: Path, name: str) -> StoredArray:
    from scipy.io import loadmat, whosmat

    with _reading(path):
        try:
            known = [variable for variable, _, _ in whosmat(path)]
            values = loadmat(path, variable_names=[name]).get(name)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # scipy raises various exceptions for a damaged file
            raise UserError(
                f"{path} cannot be read as a MATLAB file ({error}); copy or export it again"
            ) from None
    if name not in known or values is None:
        raise UserError(f"{path}: there is no array '{name}'; {nearest(name, known)}")
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        raise UserError(f"{path}: '{name}' is not a numeric array; convert it to one")
    return StoredArray(path, name, values.shape, values.dtype, values=values)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Converts the exceptions of the file system and of HDF5 to a UserError."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file; check the path")
        yield
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the path") from None
    except MemoryError:
        raise UserError(f"{path}: there is not enough memory to read it") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        text = " ".join(str(error).split())
        reason = text.rpartition("(")[2].rstrip(")'\"") or type(error).__name__
        raise UserError(
            f"{path} cannot be read as HDF5 ({reason}); it may be truncated or of another "
            "format: copy or export it again"
        ) from None
