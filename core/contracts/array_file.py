"""Arrays of a user's file (HDF5, NetCDF-4, MATLAB), read where they are indexed.

An HDF5 file can hold, in place of an array, the way to another file: an external link, external
storage or the sources of a virtual array. They are followed inside the folder of the user's file
only, and each file that is reached counts as a part of the array.
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
"""Links and virtual sources that are followed from one array."""


def find_array(path: Path, name: str) -> "StoredArray":
    """An array of numbers in a file.

    The axes of an array in a MATLAB file are in the order in which MATLAB shows them.

    Args:
        path: of the file.
        name: the path of the array in it.

    Raises:
        UserError: if there is none, it is no array of numbers, only a part of it has been written,
            or it lies outside the folder of the file. Nothing outside has been read then.
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
    """Whether MATLAB wrote a file, as its first bytes or its name say."""
    with _reading(path), path.open("rb") as file:
        return file.read(6) == b"MATLAB" or path.suffix == ".mat"


def is_old_matlab(path: Path) -> bool:
    """Whether a file is of one of MATLAB's formats before version 7.3."""
    return is_matlab(path) and not h5py.is_hdf5(path)


class StoredArray(BackendArray):
    """An array of a file, read where it is indexed.

    Attributes:
        path: of the file that the array is in.
        name: its path in that file.
        axes: the stored axes in the order of this array's.
        shape, chunks, dtype: of this array; `chunks` is None where the file has none.
        compressed: whether the chunks are compressed.
        files: every file that holds a part of it.
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
        self.dtype = dtype.newbyteorder("=")
        self.axes = tuple(range(len(shape)))
        self.files: tuple[Path, ...] = (path,)
        self.compressed = False
        self._values = values

    def transposed(self, axes: Any) -> "StoredArray":
        """The array with its axes in another order."""
        other = StoredArray(self.path, self.name, self.shape, self.dtype, values=self._values)
        other.files, other.compressed = self.files, self.compressed
        other.shape = tuple(self.shape[axis] for axis in axes)
        other.chunks = self.chunks and tuple(self.chunks[axis] for axis in axes)
        other.axes = tuple(self.axes[axis] for axis in axes)
        return other

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> Any:
        stored = tuple(key[self.axes.index(axis)] for axis in range(len(self.axes)))
        # An axis that is indexed with a number is not in the result.
        number = (int, np.integer)
        left = [axis for axis, k in zip(self.axes, key, strict=True) if not isinstance(k, number)]
        if self._values is not None:
            values = self._values[stored]
        else:
            with _reading(self.path), h5py.File(self.path, "r") as file:
                values = _open(file, self.name)[stored]
        order = [sorted(left).index(axis) for axis in left]
        return np.asarray(values.transpose(order), dtype=self.dtype, order="C")


class _Search:
    """Goes from links to the array that is meant, and from a virtual array to its sources."""

    def __init__(self, path: Path):
        self.path, self.folder = path, path.resolve().parent
        self.files: list[Path] = []
        self.steps, self.in_virtual = 0, False

    def error(self, name: str, problem: str) -> UserError:
        return UserError(f"{self.path}: '{name}' {problem}")

    def find(self, path: Path, name: str) -> StoredArray:
        """The array at a path in a file, wherever links lead."""
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
        """An array of numbers that is written as a whole, with the files that it lies in noted."""
        name = _joined(array.name)
        self.files.append(path)
        outside = array.external or ()
        if outside and self.in_virtual:  # HDF5 would look for it in the working folder
            raise self.error(name, "is a source of a virtual array and lies outside its file")
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
                f"leads over more than {MOST_LINKS} links, perhaps in a circle; copy the "
                "array into the file",
            )

    def inside(self, name: str, path: Path, file: str) -> Path:
        """The file that a link names, if it is in the folder of the user's file."""
        try:
            target = (path.resolve().parent / file).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise self.error(name, f"leads to a file that cannot be found ({error})") from None
        if not target.is_relative_to(self.folder):
            raise self.error(
                name,
                f"lies in {file}, outside the folder of the file, which is not read; copy it there",
            )
        if not target.is_file():
            raise self.error(name, f"lies in {file}, and there is no such file in its folder")
        return target


def _joined(*parts: str) -> str:
    """A path in a file without what means nothing in it: `//`, `.`, and `/` at its ends."""
    return "/".join(part for part in "/".join(parts).split("/") if part not in ("", "."))


def _open(group: h5py.Group, name: str) -> h5py.Dataset:
    """Opens an array; external storage is looked for in the folder of the file."""
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
        except Exception as error:  # scipy raises whatever a damaged file leads to
            raise UserError(
                f"{path} cannot be read as a MATLAB file ({error}); copy or export it again"
            ) from None
    if name not in known or values is None:
        raise UserError(f"{path}: there is no array '{name}'; {nearest(name, known)}")
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        raise UserError(f"{path}: '{name}' is no array of numbers; convert it to one")
    return StoredArray(path, name, values.shape, values.dtype, values=values)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what the file system or HDF5 objects to into a sentence."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; check the path")
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
