"""Smoothing of maps over several widths, with which receptive fields of any size are found."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

KERNEL = np.exp(-0.5 * np.arange(-3, 4) ** 2)
KERNEL /= KERNEL.sum()


def widths(height: int, width: int) -> list[float]:
    """Standard deviations of the smoothing in checks: 0, 1, 2.2, 4.6, … up to 1/8 of a map's side.

    A Gaussian field has the largest signal-to-noise ratio if it is smoothed with its own width, and
    at least 90 % of that with the closest of these widths.

    Args:
        height, width: of the map, in checks. The longer side limits the widths.

    Example:
        >>> [round(width, 1) for width in widths(150, 200)]
        [0.0, 1.0, 2.2, 4.6, 9.2, 18.5]
    """
    found, square, step = [0.0], 1.0, 1
    while square**0.5 <= max(height, width) / 8:
        found.append(square**0.5)
        step *= 2
        square += step**2
    return found


class Level(NamedTuple):
    """A smoothed map.

    Attributes:
        width: standard deviation of the smoothing in checks.
        rows, columns: the checks at which it is evaluated.
        values: (..., row, column).
    """

    width: float
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[Any]


def pyramid(maps: NDArray[Any]) -> Iterator[Level]:
    """Maps smoothed over the `widths`, each of them evaluated every half width.

    Each level is the one before at every second check, smoothed with a standard deviation of 1 of
    its checks (Burt & Adelson 1983). The values are normalised such that white noise has the same
    standard deviation in all levels and at the borders.

    Args:
        maps: (..., y, x), floating-point numbers.

    Example:
        >>> noise = np.random.default_rng(0).standard_normal((50, 40, 60))
        >>> for level in pyramid(noise):
        ...     print(round(level.width, 1), level.values.shape, f"{level.values.std():.2f}")
        0.0 (50, 40, 60) 1.00
        1.0 (50, 40, 60) 1.00
        2.2 (50, 20, 30) 1.01
        4.6 (50, 10, 15) 1.01
    """
    sides = maps.shape[-2:]
    for index, width in enumerate(widths(*sides)):
        step = 2 ** max(index - 1, 0)
        if index == 0:
            values, level = maps, maps
        else:
            if index > 1:
                level = level[..., ::2, ::2]
            for axis in (-2, -1):
                level = correlate1d(level, KERNEL, axis, mode="constant")
            scale = np.outer(*(_deviation(side, index) for side in sides)).astype(maps.dtype)
            values = level / scale
        rows, columns = (np.arange(0, side, step) for side in sides)
        yield Level(width, rows, columns, values)


@lru_cache(64)
def _deviation(size: int, index: int) -> NDArray[np.float64]:
    """Standard deviation of white noise along one side, smoothed to a level of the pyramid."""
    weights = np.eye(size)
    for repeat in range(index):
        if repeat:
            weights = weights[::2]
        weights = correlate1d(weights, KERNEL, 0, mode="constant")
    deviation: NDArray[np.float64] = np.linalg.norm(weights, axis=1)
    return deviation
