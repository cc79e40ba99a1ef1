"""Your own recording, from arrays in one HDF5, NetCDF-4 or MATLAB file."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from xarray.core import indexing

from retinakit.contracts import (
    Config,
    Dataset,
    InputPath,
    StoredArray,
    UserError,
    find_array,
    frame_blocks,
    is_matlab,
    make_recording,
    make_split,
)

IN_MEMORY = 2**30
"""Bytes up to which a stimulus is held; a larger one is read from the file when it is wanted."""
STIMULUS = ("frame", "channel", "y", "x")
RESPONSE = ("repeat", "frame", "cell")

logger = logging.getLogger("retinakit")


class HDF5Config(Config):
    """Where the arrays are in the file, and how they are split."""

    path: InputPath = Field(Path("recording.h5"), description="The file: HDF5, NetCDF-4 or MATLAB.")
    stimulus: str = Field("stimulus", description="Path of the stimulus in the file.")
    response: str = Field("response", description="Path of the spike counts (or rates).")
    stimulus_dims: list[str] | None = Field(
        None,
        description="Order of its dimensions: frame, channel, y, x. By default frame, y, x; of a "
        "MATLAB file also y, x, frame, where the last is as long as the response.",
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
        """The file, and those that links in it lead to. Looks at the form of what is in it."""
        c = self.config
        if not os.path.exists(c.path):  # noqa: PTH110 (Path.exists raises for a long name)
            return [c.path]
        arrays = [*self._pair(c.stimulus, c.response, c.response_dims)]
        if c.test_stimulus is not None and c.test_response is not None:
            arrays += self._pair(c.test_stimulus, c.test_response, c.test_response_dims)
        if c.segment is not None:
            arrays.append(find_array(c.path, c.segment))
        return list(dict.fromkeys(file for array in arrays for file in array.files))

    def load(self) -> xr.DataTree:
        c = self.config
        shown, answers = self._pair(c.stimulus, c.response, c.response_dims)
        stimulus, response = self._movie(shown), _values(answers)
        segment = self._segments(len(stimulus))
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
            shown, answers = self._pair(c.test_stimulus, c.test_response, c.test_response_dims)
            test, answer = self._movie(shown), _values(answers)
            length = c.test_segment_frames or len(test)
            frame = np.arange(len(test))
            splits["test"] = self._split(test, answer, frame // length)
            if c.test_segment_frames is not None:
                onset = (frame % length) / c.frame_rate - c.test_onset
                splits["test"].coords["from_onset"] = ("frame", onset, {"units": "s"})
        return make_recording(splits, {"title": c.path.stem, "source": c.path.name})

    def _pair(
        self, stimulus: str, response: str, response_dims: list[str]
    ) -> tuple[StoredArray, StoredArray]:
        """A stimulus and the response to it, with their dimensions in the contract's order.

        Raises:
            UserError: if one of them is not there, or they do not fit together.
        """
        path = self.config.path
        answers = self._ordered(find_array(path, response), response, response_dims, RESPONSE)
        frames = answers.shape[-2]
        array = find_array(path, stimulus)
        dims = self.config.stimulus_dims
        if dims is None:
            dims = ["frame", "y", "x"]
            if is_matlab(path) and array.shape[-1:] == (frames,):
                if array.shape[0] == frames:
                    raise UserError(
                        f"{path}: the first and the last dimension of '{stimulus}' are as long as "
                        "the response; say with stimulus_dims which is 'frame'"
                    )
                dims = ["y", "x", "frame"]
        shown = self._ordered(array, stimulus, dims, STIMULUS)
        if shown.shape[0] != frames:
            raise UserError(
                f"{path}: '{response}' has {frames} frames and '{stimulus}' has "
                f"{shown.shape[0]} (dimension 'frame'); cut them to the same frames, one bin of "
                "the response for each frame shown"
            )
        return shown, answers

    def _ordered(
        self, array: StoredArray, name: str, given: list[str], order: tuple[str, ...]
    ) -> StoredArray:
        optional = {"channel", "repeat"}
        if (
            len(array.shape) != len(given)
            or not set(order) - optional <= set(given) <= set(order)
            or len(set(given)) != len(given)
        ):
            raise UserError(
                f"{self.config.path}: '{name}' is of shape {array.shape} and its dimensions are "
                f"given as {given}; give one of {list(order)} for each"
            )
        return array.transposed([given.index(dim) for dim in order if dim in given])

    def _movie(self, array: StoredArray) -> xr.Variable:
        """A stimulus, which is held if it is small."""
        c = self.config
        dims = [dim for dim in STIMULUS if dim != "channel" or len(array.shape) == len(STIMULUS)]
        encoding: dict[str, Any] = {}
        if array.chunks is not None:
            encoding["preferred_chunks"] = dict(zip(dims, array.chunks, strict=True))
            encoding["zlib"] = array.compressed
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
        layer = array.chunks[0] if array.chunks is not None else 0
        if layer * movie[0].nbytes > frame_blocks.LAYER * frame_blocks.BYTES:
            logger.warning(
                "%s: '%s' is stored in chunks of %d frames, too many to be held, so that each is "
                "decompressed several times; store it in chunks of some hundred frames",
                c.path,
                array.name,
                layer,
            )
        return movie

    def _segments(self, frames: int) -> NDArray[Any]:
        c = self.config
        if c.segment is None:
            return np.arange(frames) // (c.segment_frames or frames)
        values = _values(find_array(c.path, c.segment)).reshape(-1)
        if len(values) != frames:
            raise UserError(
                f"{c.path}: '{c.segment}' has {len(values)} values and '{c.stimulus}' has {frames} "
                "frames; give one integer for each"
            )
        if values.dtype.kind == "f":  # MATLAB's usual type
            if not np.array_equal(values, np.round(values)):
                raise UserError(f"{c.path}: '{c.segment}' holds numbers that are no integers")
            values = values.astype(np.int64)
        return values

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


def _values(array: StoredArray) -> NDArray[Any]:
    values = np.asarray(array.get_duck_array())
    # The sum of a response in half precision overflows.
    return values.astype(np.float32) if values.dtype == np.float16 else values
