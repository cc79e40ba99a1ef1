"""Salamander ganglion cells under two natural movies, from published files (Onken et al. 2016)."""

import os
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from scipy.io import loadmat

from retinakit.contracts import (
    Dataset,
    InputPath,
    MovieSplitConfig,
    UserError,
    make_recording,
    make_split,
    split_movie,
)
from retinakit.simulation import area_average

SIDE = 360
"""Side of a published frame, in pixels."""

FIELD = 2700.0
"""Side of a frame on the retina, in µm (Zheng et al. 2021)."""


class Onken2016Config(MovieSplitConfig):
    """Where the files are, and what is read from them."""

    root: InputPath | None = Field(
        None,
        description="Folder that contains NeuralData and Stimuli; by default "
        "$RETINAKIT_DATA/onken2016.",
    )
    movie: int = Field(1, ge=1, le=2, description="Number of the movie, as in the file names.")
    recording: int = Field(
        1, ge=1, le=2, description="Number of the recording, Exp1 or Exp2 in the file names."
    )
    cells: list[int] | None = Field(
        None, description="Indices of the cells, counted from 0; all by default."
    )
    size: int = Field(
        90, ge=1, le=SIDE, description="Side to which the frames of 360 pixels are rescaled."
    )
    frame_interval: float = Field(
        1 / 30,
        gt=0,
        description="Duration of a frame in seconds, which the description of the files does not "
        "give; Zheng et al. (2021) use bins of 33 ms.",
    )
    transposed: bool = Field(
        False, description="Swap the rows and columns of the frames, and of the receptive fields."
    )


class Onken2016(Dataset):
    """Repeated responses of salamander ganglion cells to a natural movie.

    The files are those of the data of Onken et al. (PLOS Computational Biology 12(11): e1005189;
    doi:10.5061/dryad.4ch10), which Zheng et al. (2021) model:

    - `NeuralData/Spikes/Movie1Exp1.mat` has the cell array `Spikes (cell, trial)` of spike times in
      ms after the start of the movie;
    - `NeuralData/ReceptiveFields/Movie1Exp1.mat`, which may be missing, has the cell array
      `ReceptiveFields` of outlines (2, point), columns and rows of the frame counted from 1;
    - `Stimuli/Movie1` has a file of 360 x 360 bytes for each frame, column by column. The frames
      are in the order of the numbers in their names.

    Their description calls Movie2Exp2 movie 1 and Movie1Exp2 movie 2 of recording 2; here the
    number in the name of the file is the movie.

    Each frame is a bin of the response, and each trial a repeat. The stimulus is rescaled by
    averaging over areas and converted to contrast, (value - mean) / standard deviation. `y` and
    `x` are in µm. The group `receptive_fields` has the published outlines `outline_y` and
    `outline_x (cell, point)`, NaN after the last point, and their middle `centre_y` and `centre_x
    (cell)`, in the same coordinates.

    Raises:
        UserError: if the files are not found, cannot be read, or are not of this form.

    Example:
        >>> dataset = Onken2016.with_options(root="onken2016", movie=2)
        >>> dataset.files()[0].as_posix()
        'onken2016/NeuralData/Spikes/Movie2Exp1.mat'
    """

    Config = Onken2016Config
    quick: ClassVar[dict[str, Any]] = {"size": 10}

    def files(self) -> list[Path]:
        root, name = self._root(), f"Movie{self.config.movie}Exp{self.config.recording}.mat"
        outlines = root / "NeuralData" / "ReceptiveFields" / name
        spikes = root / "NeuralData" / "Spikes" / name
        return [spikes, *([outlines] if outlines.is_file() else []), *self._frames()]

    def load(self) -> xr.DataTree:
        c = self.config
        spikes, *others = self.files()
        trains = _cell_array(spikes, "Spikes")
        frames = self._frames()
        if not frames:
            raise UserError(
                f"there are no frames in {self._root() / 'Stimuli' / f'Movie{c.movie}'}; set root "
                "to the folder that contains NeuralData and Stimuli"
            )
        known = np.arange(len(trains))
        chosen = known if c.cells is None else np.array(c.cells)
        if not np.isin(chosen, known).all():
            raise UserError(
                f"there is no cell {chosen[~np.isin(chosen, known)][0]}; the {len(trains)} cells "
                "are counted from 0"
            )
        place = np.arange(c.size) * FIELD / c.size
        whole = make_split(
            self._stimulus(frames),
            _counts(spikes, trains[chosen], len(frames), c.frame_interval),
            frame_interval=c.frame_interval,
            cell=chosen,
            y=place,
            x=place,
        )
        splits = split_movie(whole, c, self.seed)
        if others[0].suffix == ".mat":
            splits["receptive_fields"] = self._outlines(others[0], chosen, len(trains))
        title = f"Onken et al. 2016, salamander, movie {c.movie}, recording {c.recording}"
        return make_recording(splits, {"title": title})

    def _root(self) -> Path:
        root: Path | None = self.config.root
        if root is not None:
            return root
        data = os.environ.get("RETINAKIT_DATA")
        if not data:
            raise UserError(
                "the folder of the recording is not set; set the option root to the folder that "
                "contains NeuralData and Stimuli, or RETINAKIT_DATA to the folder that contains it "
                "as onken2016"
            )
        return (Path(data) / "onken2016").resolve()

    def _frames(self) -> list[Path]:
        """The files of the frames, in the order of the numbers in their names."""
        folder = self._root() / "Stimuli" / f"Movie{self.config.movie}"

        def number(path: Path) -> tuple[list[int], str]:
            return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.name

        return sorted(folder.glob("*.raw"), key=number)

    def _stimulus(self, frames: list[Path]) -> NDArray[np.float32]:
        """The rescaled movie (frame, y, x), in contrast."""
        size = self.config.size
        movie = np.empty((len(frames), size, size), np.float32)
        for image, path in zip(movie, frames, strict=True):
            pixels = np.fromfile(path, np.uint8)
            if pixels.size != SIDE**2:
                raise UserError(
                    f"{path} has {pixels.size} bytes, and a published frame has {SIDE**2}; "
                    "download it again"
                )
            square = pixels.reshape(SIDE, SIDE)
            # A file lists columns, as MATLAB's arrays do.
            image[:] = area_average(square if self.config.transposed else square.T, size, size)
        spread = movie.std()
        if not spread > 0:
            raise UserError(f"all frames in {frames[0].parent} are the same and without contrast")
        movie -= movie.mean()
        movie /= spread
        return movie

    def _outlines(self, path: Path, chosen: NDArray[Any], cells: int) -> xr.Dataset:
        """The published outlines of the receptive fields, in µm."""
        array = _cell_array(path, "ReceptiveFields").ravel()
        outlines = [np.asarray(outline, float) for outline in array]
        if len(outlines) != cells or any(
            outline.ndim != 2 or len(outline) != 2 for outline in outlines if outline.size
        ):
            raise UserError(
                f"{path}: 'ReceptiveFields' has not one outline (2, point) for each of {cells} "
                "cells; download the file again"
            )
        points = max([1, *(outline.shape[-1] for outline in outlines)])
        padded = np.full((cells, 2, points), np.nan)
        for row, outline in zip(padded, outlines, strict=True):
            if outline.size:
                row[:, : outline.shape[1]] = outline
        if self.config.transposed:
            padded = padded[:, ::-1]
        # Pixels are counted from 1. The origin is the middle of the first rescaled pixel.
        padded = ((padded - 0.5) / SIDE - 0.5 / self.config.size) * FIELD
        x, y = padded[chosen, 0], padded[chosen, 1]
        number = np.maximum(np.isfinite(x).sum(1), 1)
        empty = ~np.isfinite(x).any(1)
        units = {"units": "µm"}
        return xr.Dataset(
            {
                "outline_y": (("cell", "point"), y, units),
                "outline_x": (("cell", "point"), x, units),
                "centre_y": ("cell", np.where(empty, np.nan, np.nansum(y, 1) / number), units),
                "centre_x": ("cell", np.where(empty, np.nan, np.nansum(x, 1) / number), units),
            },
            coords={"cell": chosen, "point": np.arange(points)},
        )


def _cell_array(path: Path, name: str) -> NDArray[Any]:
    """A cell array of a MATLAB file, as an array of objects."""
    if not path.is_file():
        raise UserError(
            f"there is no file {path}; set root to the folder that contains NeuralData and Stimuli"
        )
    try:
        array: NDArray[Any] = loadmat(path)[name]
    except NotImplementedError:
        raise UserError(
            f"{path} is in the format of MATLAB 7.3; save it in MATLAB with the option -v7"
        ) from None
    except Exception as error:  # loadmat raises many types for a damaged file
        raise UserError(
            f"{path} cannot be read as a MATLAB file with '{name}' ({error}); download it again"
        ) from None
    if array.dtype != object or array.ndim != 2:
        raise UserError(
            f"{path}: '{name}' is an array of {array.dtype} and shape {array.shape}, and the "
            "published one is a cell array; download the file again"
        )
    return array


def _counts(
    path: Path, trains: NDArray[Any], frames: int, interval: float
) -> NDArray[np.unsignedinteger]:
    """Spike counts (trial, frame, cell) from the spike times (cell, trial) in ms."""
    counts = np.zeros((trains.shape[1], frames, trains.shape[0]), np.int64)
    for (cell, trial), train in np.ndenumerate(trains):
        times = np.asarray(train, float).ravel()
        if not np.isfinite(times).all():
            raise UserError(f"{path}: a spike time of cell {cell} in trial {trial} is not finite")
        bins = np.floor(times / (1000 * interval)).astype(np.int64)
        inside = (bins >= 0) & (bins < frames)
        counts[trial, :, cell] = np.bincount(bins[inside], minlength=frames)
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))
