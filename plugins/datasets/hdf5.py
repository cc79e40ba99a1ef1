"""Your own recording, from arrays in one HDF5 or NetCDF-4 file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from xarray.backends import BackendArray
from xarray.core import indexing

from retinakit.contracts import (
    Config,
    Dataset,
    InputPath,
    UserError,
    frame_blocks,
    make_recording,
    make_split,
    nearest,
)

IN_MEMORY = 2**30
"""Bytes up to which a stimulus is held; a larger one is read from the file when it is wanted."""
STIMULUS = ("frame", "channel", "y", "x")
RESPONSE = ("repeat", "frame", "cell")

logger = logging.getLogger("retinakit")


class HDF5Config(Config):
    """Where the arrays are in the file, and how they are split."""

    path: InputPath = Field(Path("recording.h5"), description="The file, HDF5 or NetCDF-4.")
    stimulus: str = Field("stimulus", description="Path of the stimulus in the file.")
    response: str = Field("response", description="Path of the spike counts (or rates).")
    stimulus_dims: list[str] = Field(
        ["frame", "y", "x"], description="Order of its dimensions: frame, channel, y, x."
    )
    response_dims: list[str] = Field(
        ["frame", "cell"], description="Order of its dimensions: repeat, frame, cell."
    )
    response_units: str = Field("spikes per bin", description="What the response is.")
    frame_rate: float = Field(30.0, gt=0, description="Frames per second.")
    segment: str | None = Field(
        None, description="Path of an integer for each frame that changes between trials."
    )
    segment_frames: int | None = Field(
        None, ge=1, description="Or: the length of every trial, in frames."
    )
    validation: float = Field(
        0.1, gt=0, lt=1, description="Part of the frames (or trials) for validation."
    )
    test: float = Field(
        0.1, ge=0, lt=1, description="Part for the test; not used if there is a test_stimulus."
    )
    test_stimulus: str | None = Field(
        None, description="Path of the test stimulus, such as frozen noise."
    )
    test_response: str | None = Field(None, description="Path of the response to it.")
    test_response_dims: list[str] = Field(
        ["repeat", "frame", "cell"], description="Order of its dimensions."
    )
    test_segment_frames: int | None = Field(
        None, ge=1, description="The length of its trials, such as flashed images."
    )
    test_onset: float = Field(
        0.0, ge=0, description="Seconds from the start of such a trial to the onset of its image."
    )
    cells: list[int] | None = Field(None, description="Which cells to keep, counted from 0.")
    check_size: float | None = Field(None, gt=0, description="Side of a check or pixel, in µm.")
    chunks: int | None = Field(
        None,
        ge=1,
        description="Frames of a dask chunk: averages are then shared among dask's workers "
        "(--workers, --scheduler). Best several times the chunks of the file.",
    )


class HDF5(Dataset):
    """Arrays of a user's file as a recording.

    The training frames come first, then those for validation, then those for the test; where there
    are trials (`segment`), whole trials go to each. The stimulus stays in the file, and may be
    larger than memory.
    """

    Config = HDF5Config
    volatile = True

    def files(self) -> list[Path]:
        return [self.config.path]

    def load(self) -> xr.DataTree:
        with _reading(self.config.path) as file:
            return self._read(file)

    def _read(self, file: h5py.File) -> xr.DataTree:
        c = self.config
        stimulus = self._movie(file, c.stimulus)
        response = self._values(file, c.response, c.response_dims, RESPONSE)
        segment = self._segments(file, len(stimulus))
        frames = response.shape[-2]
        if frames != len(stimulus):
            raise UserError(
                f"{c.path}: '{c.response}' has {frames} frames and '{c.stimulus}' has "
                f"{len(stimulus)} (dimension 'frame'); cut them to the same frames, one bin of the "
                "response for each frame shown"
            )
        own_test = c.test_stimulus is not None and c.test_response is not None
        if not own_test and (c.test_stimulus or c.test_response):
            raise UserError("give both test_stimulus and test_response, or neither")
        ends = self._ends(segment, 0.0 if own_test else c.test)
        splits = {}
        start = 0
        for name, end in zip(("train", "validation", "test"), ends, strict=True):
            if end > start:
                splits[name] = self._split(
                    stimulus[start:end], response[..., start:end, :], segment[start:end]
                )
            start = end
        if c.test_stimulus is not None and c.test_response is not None:
            test = self._movie(file, c.test_stimulus)
            answer = self._values(file, c.test_response, c.test_response_dims, RESPONSE)
            length = c.test_segment_frames or len(test)
            frame = np.arange(len(test))
            splits["test"] = self._split(test, answer, frame // length)
            if c.test_segment_frames is not None:
                onset = (frame % length) / c.frame_rate - c.test_onset
                splits["test"].coords["from_onset"] = ("frame", onset, {"units": "s"})
        return make_recording(splits, {"title": c.path.stem, "source": c.path.name})

    def _movie(self, file: h5py.File, name: str) -> xr.Variable:
        """A stimulus, which is held if it is small."""
        c = self.config
        array = self._array(file, name, c.stimulus_dims, STIMULUS)
        dims = [dim for dim in STIMULUS if dim in c.stimulus_dims]
        encoding = {}
        if array.chunks is not None:
            encoding["preferred_chunks"] = dict(zip(dims, array.chunks, strict=True))
        movie = xr.Variable(dims, indexing.LazilyIndexedArray(array), encoding=encoding)
        if c.chunks is not None:
            try:
                return movie.chunk(frame=c.chunks)
            except ImportError:
                raise UserError(
                    "chunks need dask; install retinakit[distributed], or leave out chunks"
                ) from None
        if movie.nbytes <= IN_MEMORY:
            return movie.load()
        layer = array.chunks and array.chunks[0] * movie[0].nbytes
        if layer and layer > frame_blocks.LAYER * frame_blocks.BYTES:
            logger.warning(
                "%s: '%s' is stored in chunks of %d frames, too many to be held, so that each is "
                "decompressed several times; store it in chunks of some hundred frames",
                c.path,
                name,
                array.chunks[0],
            )
        return movie

    def _array(
        self, file: h5py.File, name: str, given: list[str], order: tuple[str, ...]
    ) -> "StoredArray":
        """The array at a path, with its dimensions in the contract's order."""
        if name not in file or not isinstance(file[name], h5py.Dataset):
            known: list[str] = []
            file.visititems(
                lambda path, item: known.append(path) if isinstance(item, h5py.Dataset) else None
            )
            raise UserError(
                f"{self.config.path}: there is no array '{name}'; {nearest(name, known)}"
            )
        array = file[name]
        if (
            array.ndim != len(given)
            or not set(given) <= set(order)
            or len(set(given)) != len(given)
        ):
            raise UserError(
                f"{self.config.path}: '{name}' is of shape {array.shape} and its dimensions are "
                f"given as {given}; give one of {list(order)} for each"
            )
        return StoredArray(
            self.config.path, array, [given.index(dim) for dim in order if dim in given]
        )

    def _values(
        self, file: h5py.File, name: str, given: list[str], order: tuple[str, ...]
    ) -> NDArray[Any]:
        return np.asarray(self._array(file, name, given, order).get_duck_array())

    def _segments(self, file: h5py.File, frames: int) -> NDArray[Any]:
        c = self.config
        if c.segment is not None:
            return self._values(file, c.segment, ["frame"], ("frame",))
        return np.arange(frames) // (c.segment_frames or frames)

    def _ends(self, segment: NDArray[Any], test: float) -> tuple[int, int, int]:
        """Where train, validation and test end; between trials, if there are several."""
        frames = len(segment)
        starts = np.r_[np.flatnonzero(segment[1:] != segment[:-1]) + 1, frames]

        def cut(part: float) -> int:
            wanted = round(frames * part)
            return int(starts[np.abs(starts - wanted).argmin()]) if len(starts) > 2 else wanted

        return cut(1 - self.config.validation - test), cut(1 - test), frames

    def _split(
        self, stimulus: xr.Variable, response: NDArray[Any], segment: NDArray[Any]
    ) -> xr.Dataset:
        c = self.config
        cell = np.arange(response.shape[-1])
        if c.cells is not None:
            unknown = set(c.cells) - set(cell.tolist())
            if unknown:
                raise UserError(f"cells: there is no cell {min(unknown)}; there are {len(cell)}")
            cell, response = np.array(c.cells), response[..., c.cells]
        space = {}
        if c.check_size is not None:
            space = {
                dim: np.arange(size) * c.check_size
                for dim, size in zip(("y", "x"), stimulus.shape[-2:], strict=True)
            }
        return make_split(
            stimulus,
            response,
            frame_interval=1 / c.frame_rate,
            segment=segment,
            cell=cell,
            units=c.response_units,
            **space,
        )


class StoredArray(BackendArray):
    """An array of an HDF5 file, read where it is indexed.

    Args:
        path: of the file.
        array: in the open file.
        axes: those of the array, in the order that they are to have.
    """

    def __init__(self, path: Path, array: h5py.Dataset, axes: list[int]):
        self.path, self.name, self.axes = path, array.name, axes
        self.shape = tuple(array.shape[axis] for axis in axes)
        self.chunks = array.chunks and tuple(array.chunks[axis] for axis in axes)
        self.dtype = array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> Any:
        stored = [key[self.axes.index(axis)] for axis in range(len(self.axes))]
        # An axis that is indexed with a number is not in the result.
        number = (int, np.integer)
        left = [axis for axis, k in zip(self.axes, key, strict=True) if not isinstance(k, number)]
        with _reading(self.path) as file:
            values = file[self.name][tuple(stored)]
        return np.asarray(values.transpose([sorted(left).index(axis) for axis in left]), order="C")


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """An open file; turns what the file system or HDF5 objects to into a sentence."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; check the path") from None
    except OSError as error:
        reason = str(error).rpartition("(")[2].rstrip(")")
        raise UserError(
            f"{path} cannot be read as HDF5 ({reason}); it may be truncated or of another "
            "format: copy or export it again"
        ) from None
