"""Salamander retinal ganglion cells under white noise (Liu et al. 2017, Nat. Commun. 8:149).

This is the recording that Yan et al. (2020) model. It has 219 trials of 1500 frames of running
noise, which differ between trials, each followed by the same 300 frames of frozen noise. The
stimulus has 200 x 150 checks (x by y) at 30 Hz.
"""

import hashlib
import json
import logging
import os
import uuid
from pathlib import Path
from typing import Any

import h5py
import numba
import numpy as np
import platformdirs
import xarray as xr
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import Field
from scipy.io import loadmat
from xarray.backends import BackendArray
from xarray.core import indexing

from retinakit.contracts import Config, Dataset, InputPath, UserError, make_recording, make_split
from retinakit.spikes import receptive_field, sta

WIDTH, HEIGHT = 200, 150
TRIALS, RUNNING, FROZEN = 219, 1500, 300
RUNNING_SEED, FROZEN_SEED = 10_000, 20_000
FRAME_RATE = 30.0
CHECK = 30.0
LAGS = 20
SPIKES, FROZEN_STIMULUS = "cell_data_01_NC.mat", "stim_frz.h5"

logger = logging.getLogger("retinakit")


class Liu2017Config(Config):
    """Options of the cells and of the part of the screen."""

    root: InputPath | None = Field(
        None, description=f"Folder that contains {SPIKES}; by default $RETINAKIT_DATA/liu2017."
    )
    cell: int | None = Field(
        None,
        description="Index of one cell, counted from 0; the stimulus is cropped around its "
        "receptive field. Usually swept.",
    )
    cells: list[int] | None = Field(
        None, description="Indices of several cells, counted from 0; all by default."
    )
    crop: int = Field(
        25,
        ge=3,
        le=HEIGHT,
        description="With cell: side of the square crop around its receptive field.",
    )
    region: tuple[int, int, int, int] | None = Field(
        None,
        description="Part of the screen without cell: first column, last column + 1, first row, "
        "last row + 1, in checks; the whole screen by default.",
    )
    validation_every: int = Field(
        10, ge=2, description="One of this many consecutive trials is held out for validation."
    )


class Liu2017(Dataset):
    """Spike counts of 78 cells: running noise for fitting, frozen noise for the test.

    Each trial of running noise is a segment, and one of every `validation_every` trials is used for
    validation. The test is the 300 frozen frames with 219 repeats. The stimulus is ±1 and the
    responses are spikes per bin of 1/30 s. With `cell`, the stimulus is cropped around the cell's
    receptive field, which is located by a Gaussian fit to the spike-triggered average of the
    training trials, and `y` and `x` are in µm from the middle of the crop. Otherwise `region` is
    the part of the screen that is kept, and `y` and `x` are in µm on the screen. The whole screen
    is read in blocks, because it is larger than memory.

    The running noise is generated from its published seed on first use (about a minute), and kept
    as a file of bits (1.2 GB) in $RETINAKIT_CACHE or the user's cache folder.

    Raises:
        UserError: if the files are not found or not the published ones, or a cell or region does
            not exist.

    Example:
        >>> dataset = Liu2017.with_options(root="liu2017", cell=14)
        >>> [path.as_posix() for path in dataset.files()]
        ['liu2017/cell_data_01_NC.mat', 'liu2017/stim_frz.h5']
    """

    Config = Liu2017Config
    volatile = True

    def files(self) -> list[Path]:
        return [self._root() / SPIKES, self._root() / FROZEN_STIMULUS]

    def load(self) -> xr.DataTree:
        c = self.config
        running, frozen = self._spikes()
        if c.cell is not None and (c.cells is not None or c.region is not None):
            raise UserError(
                "'cell' crops around one cell and cannot be combined with 'cells' or 'region'; "
                "give one of them"
            )
        chosen = [c.cell] if c.cell is not None else c.cells
        for cell in chosen or []:
            if not 0 <= cell < len(running):
                raise UserError(
                    f"there is no cell {cell}; the {len(running)} cells are counted from 0"
                )
        cells = np.arange(len(running)) if chosen is None else np.array(chosen)
        noise = np.load(running_noise(), mmap_mode="r")
        if c.cell is not None:
            left, top = _corner(self._centre(noise, running[c.cell], c.cell), c.crop)
            region = (left, left + c.crop, top, top + c.crop)
            middle = c.crop // 2
        else:
            region = c.region or (0, WIDTH, 0, HEIGHT)
            left, right, top, bottom = region
            if not (0 <= left < right <= WIDTH and 0 <= top < bottom <= HEIGHT):
                raise UserError(
                    f"region {list(region)} is not within {WIDTH} x {HEIGHT} checks; give first "
                    "column, last column + 1, first row, last row + 1"
                )
            middle = None
        splits = self._running(noise, region, running[cells], cells, middle)
        movie = self._frozen_noise()[:, region[2] : region[3], region[0] : region[1]]
        splits["test"] = make_split(
            movie,
            frozen[cells].transpose(2, 1, 0),
            frame_interval=1 / FRAME_RATE,
            cell=cells,
            **_space(region, middle),
        )
        if c.cell is not None:  # a crop fits in memory
            for name in ("train", "validation"):
                splits[name] = splits[name].load()
        origin = {"column_of_first_check": region[0], "row_of_first_check": region[2]}
        return make_recording(splits, {"title": "Liu et al. 2017, salamander", **origin})

    def _root(self) -> Path:
        if self.config.root is not None:
            root: Path = self.config.root
            return root
        data = os.environ.get("RETINAKIT_DATA")
        if not data:
            raise UserError(
                f"the folder of {SPIKES} is not set; set the option root to it, or RETINAKIT_DATA "
                "to the folder that contains it as liu2017"
            )
        return (Path(data) / "liu2017").resolve()

    def _spikes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Spike counts under running and under frozen noise, each (cell, frame, trial)."""
        path = self._root() / SPIKES
        try:
            content = loadmat(path)
            running, frozen = content["spk1"], content["spk2"]
        except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
            raise UserError(
                f"{path} cannot be read as the published file ({error}); download it again"
            ) from None
        if running.shape[1:] != (RUNNING, TRIALS) or frozen.shape[1:] != (FROZEN, TRIALS):
            raise UserError(
                f"{path}: spk1 is of shape {running.shape} and spk2 of {frozen.shape}, and the "
                f"published ones are (cells, {RUNNING}, {TRIALS}) and (cells, {FROZEN}, {TRIALS}); "
                "download the file again"
            )
        return running, frozen

    def _frozen_noise(self) -> NDArray[np.int8]:
        """The frozen noise (frame, y, x)."""
        path = self._root() / FROZEN_STIMULUS
        try:
            with h5py.File(path) as file:
                movie = np.asarray(file["stim_frz"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read as the published file ({error}); download it again"
            ) from None
        if movie.shape != (WIDTH, HEIGHT, FROZEN):
            raise UserError(
                f"{path}: stim_frz is of shape {movie.shape}, and the published one is of "
                f"{(WIDTH, HEIGHT, FROZEN)}; download the file again"
            )
        return movie.transpose(2, 1, 0)

    def _running(
        self,
        noise: NDArray[np.uint8],
        region: tuple[int, int, int, int],
        counts: NDArray[np.uint8],
        cells: NDArray[Any],
        middle: int | None,
    ) -> dict[str, xr.Dataset]:
        """The training and validation splits, with a lazily read stimulus."""
        movie = xr.Variable(
            ("frame", "y", "x"), indexing.LazilyIndexedArray(PackedMovie(noise, region))
        )
        trial = np.repeat(np.arange(TRIALS), RUNNING)
        # Running and frozen frames alternate in the recording; `time` counts both.
        time = (trial * (RUNNING + FROZEN) + np.tile(np.arange(RUNNING), TRIALS)) / FRAME_RATE
        whole = make_split(
            movie,
            counts.transpose(2, 1, 0).reshape(TRIALS * RUNNING, len(counts)),
            frame_interval=1 / FRAME_RATE,
            segment=trial,
            time=time,
            cell=cells,
            **_space(region, middle),
        )
        every = self.config.validation_every
        held_out = trial % every == every // 2
        return {
            "train": whole.isel(frame=np.flatnonzero(~held_out)),
            "validation": whole.isel(frame=np.flatnonzero(held_out)),
        }

    def _centre(
        self, noise: NDArray[np.uint8], counts: NDArray[np.uint8], cell: int
    ) -> tuple[float, float]:
        """Column and row of a receptive field in the training trials, from the cache if there."""
        every = self.config.validation_every
        spikes = hashlib.sha256(counts.tobytes()).hexdigest()[:16]
        path = cache_folder() / f"liu2017-centres-{every}" / f"{cell}-{spikes}.json"
        if path.exists():
            column, row = json.loads(path.read_text())
            return column, row
        whole = (0, WIDTH, 0, HEIGHT)
        train = self._running(noise, whole, counts[None], np.array([cell]), None)["train"]
        average = sta(train, LAGS)["sta"].isel(cell=0)
        column, row = find_centre(average)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{uuid.uuid4().hex}")
        unfinished.write_text(json.dumps([column, row]))
        unfinished.replace(path)
        return column, row


def find_centre(average: xr.DataArray) -> tuple[float, float]:
    """Column and row of the centre of a receptive field, in checks.

    This is the centre of the outline, or the peak if no Gaussian can be fitted.

    Args:
        average: spike-triggered average (lag, y, x).

    Example:
        >>> from retinakit.spikes import gaussian
        >>> image = gaussian(np.arange(40.0), np.arange(40.0), [1, 25, 12, 3, 2, 0])
        >>> movie = np.multiply.outer([0.1, 1.0, 0.2], image)
        >>> average = xr.DataArray(movie, dims=("lag", "y", "x"))
        >>> [round(value) for value in find_centre(average)]
        [12, 25]
    """
    checks = {dim: np.arange(average.sizes[dim]) for dim in ("y", "x")}
    field = receptive_field(average.assign_coords(checks), false_positive=1)
    where = "centre" if np.isfinite(field["centre_x"]) else "peak"
    return float(field[f"{where}_x"]), float(field[f"{where}_y"])


def _corner(centre: tuple[float, float], crop: int) -> tuple[int, int]:
    """The first column and row of a crop around a centre, shifted to lie on the screen."""
    left = min(max(round(centre[0]) - crop // 2, 0), WIDTH - crop)
    top = min(max(round(centre[1]) - crop // 2, 0), HEIGHT - crop)
    return left, top


def _space(region: tuple[int, int, int, int], middle: int | None) -> dict[str, Any]:
    """Coordinates y and x in µm, from the screen's corner, or from the middle of a crop."""
    left, right, top, bottom = region
    if middle is not None:
        left, right, top, bottom = -middle, right - left - middle, -middle, bottom - top - middle
    return {"y": np.arange(top, bottom) * CHECK, "x": np.arange(left, right) * CHECK}


class PackedMovie(BackendArray):
    """A ±1 movie (frame, y, x) stored with one bit per check, unpacked when it is read.

    Args:
        bits: (frame, HEIGHT, WIDTH / 8) uint8, such as a memory map.
        region: first column, last column + 1, first row, last row + 1.
    """

    def __init__(self, bits: NDArray[np.uint8], region: tuple[int, int, int, int]):
        self.bits, self.region = bits, region
        left, right, top, bottom = region
        self.shape = (len(bits), bottom - top, right - left)
        self.dtype = np.dtype(np.int8)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> Any:
        left, right, top, bottom = self.region
        frame, y, x = key
        first, last = left // 8, -(-right // 8)
        bits = np.asarray(self.bits[frame, top:bottom, first:last])
        values = np.unpackbits(bits, axis=-1)[..., left - 8 * first : right - 8 * first]
        values = values.view(np.int8)
        values *= 2
        values -= 1
        rows = values[..., y, :] if not isinstance(frame, int | np.integer) else values[y]
        return rows[..., x]


def cache_folder() -> Path:
    """The folder of large intermediate files: $RETINAKIT_CACHE, or the user's cache folder."""
    return Path(os.environ.get("RETINAKIT_CACHE") or platformdirs.user_cache_dir("retinakit"))


def running_noise() -> Path:
    """The file of the running noise as bits, (frame, HEIGHT, WIDTH / 8), generated if missing."""
    path = cache_folder() / "liu2017-running-noise.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            logger.warning(
                "generating the running noise, on first use only (about a minute, 1.2 GB): %s", path
            )
            unfinished = path.with_suffix(".writing")
            shape = (TRIALS * RUNNING, HEIGHT, WIDTH // 8)
            bits = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
            draw = _start(RUNNING_SEED)
            for trial in range(TRIALS):
                _draw_frames(draw, bits[trial * RUNNING : (trial + 1) * RUNNING])
            bits.flush()
            del bits
            unfinished.replace(path)
    return path


# The stimulus program draws its bits from the generator "ran1": the multiplicative congruential
# generator of Park & Miller (1988) with the shuffle of Bays & Durham (1976). A bit is 1 where the
# number is above one half. Frames are drawn one after another, each column by column.
_MODULUS = 2**31 - 1


def _start(seed: int) -> NDArray[np.int64]:
    """The generator's state: 32 shuffled numbers, the last of them, and the last draw."""
    state = np.empty(34, np.int64)
    number = seed
    for slot in range(39, -1, -1):
        number = 16807 * number % _MODULUS
        if slot < 32:
            state[slot] = number
    state[32], state[33] = number, state[0]
    return state


@numba.njit(cache=True, nogil=True)
def _draw_frames(state: NDArray[np.int64], bits: NDArray[np.uint8]) -> None:
    """Fills frames (frame, y, x / 8) with the next bits, and advances the state."""
    number, last = state[32], state[33]
    for frame in range(bits.shape[0]):
        bits[frame] = 0
        for x in range(8 * bits.shape[2]):
            mask = np.uint8(128 >> (x % 8))
            for y in range(bits.shape[1]):
                # 16807 · number modulo 2³¹ - 1, without a division.
                product = np.uint64(number) * np.uint64(16807)
                number = np.int64((product & np.uint64(_MODULUS)) + (product >> np.uint64(31)))
                if number >= _MODULUS:
                    number -= _MODULUS
                slot = last >> 26
                last = state[slot]
                state[slot] = number
                if 2 * last > _MODULUS:
                    bits[frame, y, x // 8] |= mask
    state[32], state[33] = number, last
