"""A recording from arrays in one HDF5, NetCDF-4 or MATLAB file."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, model_validator
from xarray.core import indexing

from retinakit.contracts import (
    Config,
    Dataset,
    InputPath,
    StoredArray,
    UserError,
    find_array,
    first_frames,
    frame_blocks,
    is_matlab,
    make_recording,
    make_split,
)

IN_MEMORY = 2**30
"""Bytes up to which a stimulus is held in memory. A larger one is read from the file in blocks."""
FAR = 1.5
"""A stimulus whose mean is this many standard deviations from 0 is not contrast."""
STIMULUS = ("frame", "channel", "y", "x")
RESPONSE = ("repeat", "frame", "cell")

logger = logging.getLogger("retinakit")


class HDF5Config(Config):
    """Where the arrays are in the file, and how they are split."""

    path: InputPath = Field(
        Path("recording.h5"), description="Path of the HDF5, NetCDF-4 or MATLAB file."
    )
    stimulus: str = Field("stimulus", description="Path of the stimulus array within the file.")
    response: str = Field(
        "response", description="Path of the array of spike counts (or rates) within the file."
    )
    stimulus_dims: list[str] | None = Field(
        None,
        description="Order of the stimulus's dimensions: frame, channel, y, x. By default frame, "
        "y, x, or frame, x for an array of two dimensions (bars), or frame (a full field); in a "
        "MATLAB file with frame last if the last dimension is as long as the response.",
    )
    response_dims: list[str] = Field(
        ["frame", "cell"],
        description="Order of the response's dimensions: repeat, frame, cell. An array of one "
        "dimension is the response of one cell.",
    )
    response_units: str = Field("spikes per bin", description="Units of the response.")
    frame_rate: float = Field(30.0, gt=0, description="Frames per second.")
    segment: str | None = Field(
        None,
        description="Path, within the file, of an integer array (frame) that changes from trial "
        "to trial.",
    )
    segment_frames: int | None = Field(
        None, ge=1, description="Length of every trial in frames, if segment is not given."
    )
    validation: float = Field(
        0.1, gt=0, lt=1, description="Fraction of the frames (or trials) used for validation."
    )
    test: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Fraction of the frames (or trials) used for the test; ignored if "
        "test_stimulus is given.",
    )
    test_stimulus: str | None = Field(
        None, description="Path, within the file, of a test stimulus, such as frozen noise."
    )
    test_response: str | None = Field(
        None, description="Path, within the file, of the response to test_stimulus."
    )
    test_response_dims: list[str] = Field(
        ["repeat", "frame", "cell"], description="Order of the dimensions of test_response."
    )
    test_segment_frames: int | None = Field(
        None,
        ge=1,
        description="Length, in frames, of the trials of test_stimulus, such as flashed images.",
    )
    test_onset: float = Field(
        0.0,
        ge=0,
        description="Seconds from the start of each trial of test_stimulus to the onset of its "
        "image; used with test_segment_frames.",
    )
    cells: list[int] | None = Field(
        None, description="Indices of the cells to keep, counted from 0; all by default."
    )
    check_size: float | None = Field(None, gt=0, description="Side of a check or pixel, in µm.")
    contrast: bool = Field(
        False,
        description="Whether to convert the stimulus, such as images of 0 to 255, to contrast: "
        "(value - mean) / standard deviation, of the first training frames.",
    )
    chunks: int | None = Field(
        None,
        ge=1,
        description="Frames per dask chunk. Spike-triggered averages are then distributed over "
        "dask's workers (--workers, --scheduler). Use several times the file's own chunk length.",
    )

    @model_validator(mode="after")
    def _used(self) -> Self:
        """Refuses options that would be ignored."""
        if self.segment is not None and self.segment_frames is not None:
            raise ValueError("segment and segment_frames both say where trials begin; keep one")
        if self.test_stimulus is None and self.test_response is None:
            for name in ("test_segment_frames", "test_onset"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs test_stimulus and test_response; add them")
        if self.test_onset and self.test_segment_frames is None:
            raise ValueError("test_onset needs test_segment_frames, the length of a trial; add it")
        return self


class HDF5(Dataset):
    """A recording from a user's arrays.

    The first frames are the training frames, the next ones the validation frames and the last ones
    the test frames. If there are trials (`segment` or `segment_frames`), whole trials go to each
    split. A stimulus of more than 1 GB stays in the file and is read in blocks, so that it may be
    larger than memory.

    Raises:
        UserError: if the file or an array is missing, or the arrays do not fit together.

    Example:
        >>> import tempfile
        >>> import h5py
        >>> path = Path(tempfile.mkdtemp()) / "recording.h5"
        >>> with h5py.File(path, "w") as file:
        ...     file["stimulus"] = np.ones((1000, 8, 8), np.int8)  # (frame, y, x)
        ...     file["response"] = np.ones((1000, 3), np.uint8)  # (frame, cell)
        >>> recording = HDF5.with_options(path=path, frame_rate=60).load()
        >>> [recording[split].sizes["frame"] for split in ("train", "validation", "test")]
        [800, 100, 100]
    """

    Config = HDF5Config
    volatile = True

    def files(self) -> list[Path]:
        """The file, and the files that its external links and virtual datasets refer to.

        Raises:
            UserError: if an array is missing or its shape does not fit.
        """
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
        to_contrast = self._contrast(stimulus[: ends[0]])
        stimulus = to_contrast(stimulus)
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
            test, answer = to_contrast(self._movie(shown)), _values(answers)
            length = c.test_segment_frames or len(test)
            frame = np.arange(len(test))
            splits["test"] = self._split(test, answer, frame // length)
            if c.test_segment_frames is not None:
                onset = (frame % length) / c.frame_rate - c.test_onset
                splits["test"].coords["from_onset"] = ("frame", onset, {"units": "s"})
        for name in ("train", "validation", "test"):
            if name not in splits:
                raise UserError(
                    f"{c.path}: validation ({c.validation:g}) and test ({c.test:g}) of "
                    f"{len(segment)} frames in {len(np.unique(segment))} segments leave none for "
                    f"{name}; change these parts, or take shorter segments"
                )
        return make_recording(splits, {"title": c.path.stem, "source": c.path.name})

    def _pair(
        self, stimulus: str, response: str, response_dims: list[str]
    ) -> tuple[StoredArray, StoredArray]:
        """A stimulus and its response, with their dimensions in the order of the contract.

        Raises:
            UserError: if an array is missing, or the two do not fit together.
        """
        path = self.config.path
        answers = find_array(path, response)
        if len(answers.shape) == 1:
            response_dims = ["frame"]
        answers = self._ordered(answers, response, response_dims, RESPONSE)
        frames = answers.shape[-2]
        array = find_array(path, stimulus)
        dims = self.config.stimulus_dims
        if dims is None:
            dims = ["frame", "y", "x"]
            if len(array.shape) < len(dims):
                dims = ["frame", "x"][: len(array.shape)]
            if is_matlab(path) and array.shape[-1:] == (frames,) and len(dims) > 1:
                if array.shape[0] == frames:
                    raise UserError(
                        f"{path}: the first and the last dimension of '{stimulus}' are both as "
                        "long as the response; give the order in stimulus_dims"
                    )
                dims = [*dims[1:], "frame"]
        shown = self._ordered(array, stimulus, dims, STIMULUS)
        if shown.shape[0] != frames:
            swapped = frames in array.shape and self.config.stimulus_dims is None
            raise UserError(
                f"{path}: '{response}' has {frames} frames and '{stimulus}' has "
                f"{shown.shape[0]} (dimension 'frame'); "
                + (
                    f"it is of shape {array.shape}, so give the order of its dimensions in "
                    "stimulus_dims"
                    if swapped
                    else "cut them to the same frames, one bin of the response for each frame shown"
                )
            )
        return shown, answers

    def _ordered(
        self, array: StoredArray, name: str, given: list[str], order: tuple[str, ...]
    ) -> StoredArray:
        optional = {"channel", "repeat", "y", "x"}
        if len(array.shape) == 1:
            optional |= {"cell"}
        if (
            len(array.shape) != len(given)
            or not set(order) - optional <= set(given) <= set(order)
            or len(set(given)) != len(given)
        ):
            raise UserError(
                f"{self.config.path}: '{name}' is of shape {array.shape} and its dimensions are "
                f"given as {given}; give one of {list(order)} for each dimension"
            )
        array = array.transposed([given.index(dim) for dim in order if dim in given])
        # Bars and full fields have no y, or neither y nor x.
        kept = [dim for dim in order if dim in given or dim not in ("channel", "repeat")]
        for place, dim in enumerate(kept):
            if dim not in given:
                array = array.expanded(place)
        return array

    def _movie(self, array: StoredArray) -> xr.Variable:
        """A stimulus as a variable: in memory if it is small, else lazy or as a dask array."""
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
                    "chunks needs dask; install retinakit[distributed], or leave out chunks"
                ) from None
        if movie.nbytes <= IN_MEMORY:
            return movie.load()
        layer = array.chunks[0] if array.chunks is not None else 0
        if layer * movie[0].nbytes > frame_blocks.LAYER * frame_blocks.BYTES:
            logger.warning(
                "%s: '%s' is stored in chunks of %d frames, which are too large for the memory of "
                "a block, so each chunk is decompressed several times; store it in chunks of a "
                "few hundred frames",
                c.path,
                array.name,
                layer,
            )
        return movie

    def _contrast(self, training: xr.Variable) -> Callable[[xr.Variable], xr.Variable]:
        """The conversion of a movie to contrast; without the option, it changes nothing.

        Warns of a stimulus that is not contrast, because models then start far from a solution.
        """
        c = self.config
        sample = first_frames(xr.DataArray(training)).astype(float) if len(training) else np.ones(1)
        mean, spread = float(sample.mean()), float(sample.std())
        if not c.contrast:
            if spread > 0 and abs(mean) > FAR * spread:
                logger.warning(
                    "%s: '%s' has mean %.3g and standard deviation %.3g, and receptive fields and "
                    "models need contrast, with a mean near 0; set contrast: true",
                    c.path,
                    c.stimulus,
                    mean,
                    spread,
                )
            return lambda movie: movie
        if not spread > 0:
            raise UserError(f"{c.path}: '{c.stimulus}' is constant, so it has no contrast")

        def convert(movie: xr.Variable) -> xr.Variable:
            if c.chunks is None and movie.nbytes > IN_MEMORY:
                raise UserError(
                    f"{c.path}: with contrast, a stimulus of more than 1 GB is read in chunks; set "
                    "chunks, or store the stimulus as contrast"
                )
            converted: xr.Variable = (movie.astype(np.float32) - np.float32(mean)) / spread
            return converted.astype(np.float32)

        return convert

    def _segments(self, frames: int) -> NDArray[Any]:
        c = self.config
        if c.segment is None:
            return np.arange(frames) // (c.segment_frames or frames)
        values = _values(find_array(c.path, c.segment)).reshape(-1)
        if len(values) != frames:
            raise UserError(
                f"{c.path}: '{c.segment}' has {len(values)} values and '{c.stimulus}' has {frames} "
                "frames; give one integer for each frame"
            )
        if values.dtype.kind == "f":  # MATLAB's usual type
            if not np.array_equal(values, np.round(values)):
                raise UserError(
                    f"{c.path}: '{c.segment}' has values that are not integers; give one integer "
                    "for each frame"
                )
            values = values.astype(np.int64)
        return values

    def _ends(self, segment: NDArray[Any], test: float) -> tuple[int, int, int]:
        """The end frames (exclusive) of train, validation and test.

        With several trials, each is the end of the trial nearest to the requested fraction.
        """
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
                raise UserError(
                    f"cells: there is no cell {min(unknown)}; the {len(cell)} cells are counted "
                    "from 0"
                )
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
    # Sums of a response in half precision would overflow.
    return values.astype(np.float32) if values.dtype == np.float16 else values
