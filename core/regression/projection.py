"""Projection of a stimulus onto the images of lowest frequency of the cosine basis."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.fft import idct

from retinakit.contracts.frame_blocks import Reader, blocks
from retinakit.contracts.progress import Progress, silent
from retinakit.regression.smooth_prior import squared_frequencies

Region = tuple[slice, slice]
"""The rows and the columns of a rectangle of the stimulus."""


MEMORY = 2**30
"""Size in bytes from which the projections for one more cell are not computed in the same pass."""

TOGETHER = 512
"""Number of frames that are projected together."""

SMALL = 200
"""Number of pixels up to which one matrix product is faster than one along each dimension."""


def order_of_frequencies(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The flat indices of the spatial coefficients ([channel,] y, x), lowest frequencies first.

    Example:
        >>> order_of_frequencies((2, 3)).tolist()
        [0, 1, 3, 4, 2, 5]
    """
    return np.argsort(squared_frequencies(shape).ravel().round(9), kind="stable")


@dataclass(frozen=True)
class Images:
    """Images that are products of functions of y and of x, such as a basis in two dimensions.

    Attributes:
        over_y: (y, i) and `over_x`: (x, j), the functions as columns.
        chosen: (image,) the flat indices ([channel,] i, j) of the products.
        shape: of an image, ([channel,] y, x).

    Example:
        >>> images = Images(np.eye(2), np.ones((3, 1)), np.array([1]), (2, 3))
        >>> images.matrix().ravel().tolist()
        [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    """

    over_y: NDArray[np.float64]
    over_x: NDArray[np.float64]
    chosen: NDArray[np.int64]
    shape: tuple[int, ...]

    @property
    def number(self) -> int:
        return len(self.chosen)

    def matrix(self) -> NDArray[np.float64]:
        """The flattened images as columns (pixel, image)."""
        channels = np.eye(int(np.prod(self.shape[:-2])))
        return np.kron(channels, np.kron(self.over_y, self.over_x))[:, self.chosen]

    def first(self, number: int) -> "Images":
        """The first of these images."""
        return replace(self, chosen=self.chosen[:number])

    def project(self, frames: NDArray[Any]) -> NDArray[np.float32]:
        """The scalar products (image, frame) of frames ([channel,] y, x) with the images."""
        if frames[0].size <= SMALL:
            flat = frames.reshape(len(frames), -1).astype(np.float32)
            return self.matrix().T.astype(np.float32) @ flat.T
        high, wide = self.over_y.shape[1], self.over_x.shape[1]
        over_y, over_x = (f.T.astype(np.float32) for f in (self.over_y, self.over_x))
        channel, i, j = np.unravel_index(self.chosen, (int(np.prod(self.shape[:-2])), high, wide))
        result = np.empty((self.number, len(frames)), np.float32)
        channels = frames.reshape(len(frames), -1, *self.shape[-2:])
        for c in range(channels.shape[1]):
            # Few large matrix products are faster than one for each frame.
            by_row = np.ascontiguousarray(channels[:, c].swapaxes(0, 1), np.float32)
            along_y = (over_y @ by_row.reshape(len(by_row), -1)).reshape(high, len(frames), -1)
            for row in range(high):
                here = np.flatnonzero((channel == c) & (i == row))
                result[here] = over_x[j[here]] @ along_y[row].T
        return result


def cosine_images(shape: tuple[int, ...], number: int) -> Images:
    """The first orthonormal images of the cosine basis.

    Args:
        shape: of an image, ([channel,] y, x).
        number: of images, by increasing frequency.

    Example:
        >>> basis = cosine_images((3, 4), 12).matrix()
        >>> bool(np.allclose(basis.T @ basis, np.eye(12)))
        True
    """
    chosen = order_of_frequencies(shape)[:number]
    *channel, i, j = np.unravel_index(chosen, shape)
    high, wide = int(i.max()) + 1, int(j.max()) + 1
    numbers = np.ravel_multi_index((*channel, i, j), (*shape[:-2], high, wide))
    over_y, over_x = (
        idct(np.eye(size)[:, :most], axis=0, norm="ortho")
        for size, most in zip(shape[-2:], (high, wide), strict=True)
    )
    return Images(over_y, over_x, numbers, shape)


def project(
    stimulus: xr.DataArray,
    centre: NDArray[np.float64],
    bases: Sequence[tuple[Region, Images]],
    progress: Progress = silent,
) -> list[NDArray[np.float32]]:
    """Projects each frame onto images, for several regions in one pass over the stimulus.

    Args:
        stimulus: (frame, [channel,] y, x), of any numeric dtype; it is read in blocks.
        centre: ([channel,] y, x), subtracted from each frame.
        bases: for each projection the region and its images.
        progress: is called with the number of projected frames.

    Returns:
        (frame, image) for each of the bases, in single precision, image by image in memory.

    Example:
        >>> frames = xr.DataArray(np.ones((5, 2, 2)), dims=("frame", "y", "x"))
        >>> whole = (slice(None), slice(None))
        >>> project(frames, np.zeros((2, 2)), [(whole, cosine_images((2, 2), 1))])[0].shape
        (5, 1)
    """
    projected = [np.empty((of.number, len(stimulus)), np.float32) for _, of in bases]
    reader = Reader(stimulus, 0)
    for part in blocks(stimulus, itemsize=4):
        frames = reader[part]
        for (region, images), result in zip(bases, projected, strict=True):
            for begin in range(0, len(frames), TOGETHER):
                values = frames[begin : begin + TOGETHER][..., *region]
                first = part.start + begin
                result[:, first : first + len(values)] = images.project(values)
        progress(part.stop, len(stimulus), "projection of the stimulus")
    for (region, images), result in zip(bases, projected, strict=True):
        result -= images.project(centre[None][..., *region])
    return [result.T for result in projected]


def project_cells(
    stimuli: Sequence[xr.DataArray],
    centre: NDArray[np.float64],
    bases: Mapping[int, tuple[Region, Images]],
) -> Iterator[tuple[int, list[NDArray[np.float32]]]]:
    """Projects stimuli for each cell, for as many cells in one pass as fit into memory.

    Args:
        stimuli: of several splits, as for `project`.
        centre: as for `project`.
        bases: the region and the images of each cell.

    Yields:
        The cell, and the projections (frame, image) of its stimuli.

    Example:
        >>> frames = xr.DataArray(np.ones((5, 2, 2)), dims=("frame", "y", "x"))
        >>> whole = (slice(None), slice(None))
        >>> bases = {7: (whole, cosine_images((2, 2), 3))}
        >>> (cell, [seen]), = project_cells([frames], np.zeros((2, 2)), bases)
        >>> cell, seen.shape
        (7, (5, 3))
    """
    frames = sum(len(stimulus) for stimulus in stimuli)
    waiting: list[int] = []
    for number, cell in enumerate(bases, 1):
        waiting.append(cell)
        columns = sum(bases[some][1].number for some in waiting)
        if 4 * columns * frames < MEMORY and number < len(bases):
            continue
        chosen = [bases[some] for some in waiting]
        seen = [project(stimulus, centre, chosen) for stimulus in stimuli]
        yield from zip(waiting, map(list, zip(*seen, strict=True)), strict=True)
        waiting = []
