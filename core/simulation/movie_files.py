"""Movies in files, rescaled to a field and converted to contrast."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from xarray.core import indexing

from retinakit.contracts.array_file import find_array
from retinakit.contracts.errors import UserError
from retinakit.simulation.movies import CLIP, area_average

HDF5_SUFFIXES = (".h5", ".hdf5", ".nc", ".mat")
LUMINANCE = np.array([0.2125, 0.7154, 0.0721], np.float32)
"""Weights of red, green and blue in the luminance."""

SAMPLE = 300
"""Number of frames from which mean and standard deviation of a movie are computed."""


class FileMovie:
    """A movie in a file, whose frames are read, rescaled and converted to contrast when needed.

    The largest central square of a frame is averaged over the area of each new pixel. Contrast is
    (value - mean) · contrast / standard deviation, clipped to -1 to 1, where mean and standard
    deviation are those of the rescaled frames (300 of them, evenly spaced, if there are more).

    Args:
        path: a NumPy file (.npy), which is mapped to memory, an HDF5, NetCDF-4 or MATLAB file, or a
            movie or image stack that imageio reads, whose rescaled frames are kept in memory.
        size: side of a frame, in pixels.
        array: path of the array within an HDF5 file.
        contrast: standard deviation of the result.

    Attributes:
        frames: the number of frames.

    Raises:
        UserError: if the file cannot be read, or has no frames (frame, y, x) or, in colour,
            (frame, y, x, 3).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mine.npy"
        >>> np.save(path, np.random.default_rng(0).integers(0, 255, (50, 40, 60), np.uint8))
        >>> movie = FileMovie(path, size=10)
        >>> movie.frames, movie(np.arange(20, 30)).shape
        (50, (10, 10, 10))
    """

    def __init__(self, path: Path, size: int, array: str = "movie", contrast: float = 0.5):
        self.size = size
        if path.suffix.lower() == ".npy":
            self._source = _variable(path, _mapped(path))
        elif path.suffix.lower() in HDF5_SUFFIXES:
            stored = find_array(path, array)
            self._source = _variable(path, stored, indexing.LazilyIndexedArray(stored))
        else:
            self._source = _variable(path, _with_imageio(path, size))
        self.frames = int(self._source.shape[0])
        every = np.unique(np.linspace(0, self.frames - 1, SAMPLE).astype(int))
        sample = np.concatenate([self._rescaled(every[n : n + 1]) for n in range(len(every))])
        self._mean, spread = float(sample.mean()), float(sample.std())
        if not 0 < spread < np.inf:
            raise UserError(f"{path}: the frames are constant or not finite, so without contrast")
        self._scale = contrast / spread

    def __call__(self, frames: NDArray[np.int64]) -> NDArray[np.float32]:
        """The frames (n, y, x) in contrast, with the given numbers (n,)."""
        shown = self._rescaled(np.asarray(frames))
        shown -= np.float32(self._mean)
        shown *= np.float32(self._scale)
        return shown.clip(-CLIP, CLIP, out=shown)

    def _rescaled(self, frames: NDArray[Any]) -> NDArray[np.float32]:
        consecutive = len(frames) > 0 and (np.diff(frames) == 1).all()
        key: Any = slice(int(frames[0]), int(frames[-1]) + 1) if consecutive else frames
        return _square(self._source[key].values, self.size)


def _square(frames: NDArray[Any], size: int) -> NDArray[np.float32]:
    """The central squares of frames (n, y, x[, colour]), grey and rescaled (n, size, size)."""
    if frames.ndim == 4:
        colours = frames.shape[-1]
        weights = LUMINANCE if colours >= 3 else np.eye(colours, 1, dtype=np.float32)[:, 0]
        frames = frames[..., : len(weights)].astype(np.float32) @ weights
    side = min(frames.shape[1:])
    top, left = ((length - side) // 2 for length in frames.shape[1:])
    return area_average(frames[:, top : top + side, left : left + side], size, size)


def _variable(path: Path, array: Any, lazy: Any = None) -> xr.Variable:
    shape = array.shape
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[-1] > 4) or 0 in shape:
        raise UserError(
            f"{path}: the movie is of shape {tuple(shape)}; give it as (frame, y, x), or in colour "
            "as (frame, y, x, 3)"
        )
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: the movie is of type {array.dtype}; convert it to numbers")
    dims = ("frame", "y", "x", "colour")[: len(shape)]
    return xr.Variable(dims, array if lazy is None else lazy)


def _mapped(path: Path) -> NDArray[Any]:
    try:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a NumPy array ({error})") from None
    return mapped


def _with_imageio(path: Path, size: int) -> NDArray[np.float32]:
    """The rescaled frames of a movie or image stack."""
    try:
        import imageio.v3 as imageio
    except ImportError:
        raise UserError(
            f"{path} is read with imageio, which is not installed; install retinakit[natural], or "
            "save the movie as .npy or HDF5"
        ) from None
    frames = []
    try:
        for image in imageio.imiter(path):
            stack = image[None] if image.ndim == 2 or image.shape[-1] <= 4 else image
            frames.append(_square(stack, size))
    except Exception as error:  # each format raises its own types
        raise UserError(
            f"{path} cannot be read by imageio ({error}); save the movie as .npy or HDF5, or "
            "install imageio's plugin for this format, such as imageio[pyav]"
        ) from None
    if not frames:
        raise UserError(f"{path} has no frames")
    return np.concatenate(frames)
