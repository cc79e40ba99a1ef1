"""Images with the statistics of natural scenes: photographs and two kinds of synthetic images."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from retinakit.contracts.errors import UserError

PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "rocket")
"""The photographs that scikit-image includes without a download."""

SMALLEST_LEAF = 2.0
"""Smallest radius of a disc of `dead_leaves`, in pixels."""


def photographs() -> dict[str, NDArray[np.float64]]:
    """Grey-scale photographs, standardised to mean 0 and standard deviation 1.

    Returns:
        The photographs (y, x) by name.

    Raises:
        UserError: if scikit-image is not installed.

    Example:
        >>> scenes = photographs()
        >>> scenes["camera"].shape, round(float(scenes["camera"].std()), 6)
        ((512, 512), 1.0)
    """
    try:
        from skimage import color, data
    except ImportError:
        raise UserError(
            "the photographs are part of scikit-image, which is not installed; install "
            "retinakit[natural]"
        ) from None
    scenes = {}
    for name in PHOTOGRAPHS:
        scene = getattr(data, name)()
        scenes[name] = standardised(color.rgb2gray(scene) if scene.ndim == 3 else scene)
    return scenes


def dead_leaves(size: int, random: np.random.Generator) -> NDArray[np.float64]:
    """A dead-leaves image: occluding discs of random grey levels (Lee, Mumford & Huang 2001).

    The density of their radii is proportional to r⁻³, so that the image has edges and is
    approximately scale-invariant, as natural scenes are.

    Args:
        size: side in pixels.
        random: generator of the discs.

    Returns:
        (y, x), with mean 0 and standard deviation 1.

    Example:
        >>> import numpy as np
        >>> dead_leaves(32, np.random.default_rng(0)).shape
        (32, 32)
    """
    image = np.full((size, size), np.nan)
    _cover(image, size / 4, random)
    return standardised(image)


@numba.njit(cache=True)
def _cover(image: NDArray[np.float64], largest: float, random: np.random.Generator) -> None:
    """Adds discs from front to back until every pixel is covered."""
    size = len(image)
    hidden = image.size
    while hidden:
        u = random.random()
        radius = (u / largest**2 + (1 - u) / SMALLEST_LEAF**2) ** -0.5
        y = random.uniform(-radius, size + radius)
        x = random.uniform(-radius, size + radius)
        grey = random.uniform(-1, 1)
        for row in range(max(0, int(y - radius)), min(size, int(y + radius) + 1)):
            for column in range(max(0, int(x - radius)), min(size, int(x + radius) + 1)):
                inside = (row - y) ** 2 + (column - x) ** 2 <= radius**2
                if inside and np.isnan(image[row, column]):
                    image[row, column] = grey
                    hidden -= 1


def pink_noise(size: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Gaussian noise with the amplitude spectrum 1/f of natural scenes.

    Args:
        size: side in pixels; the image is periodic.
        random: generator of the noise.

    Returns:
        (y, x), with mean 0 and standard deviation 1.

    Example:
        >>> import numpy as np
        >>> image = pink_noise(32, np.random.default_rng(0))
        >>> image.shape, round(float(image.std()), 6)
        ((32, 32), 1.0)
    """
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    frequency[0, 0] = np.inf
    waves = np.fft.rfft2(random.standard_normal((size, size))) / frequency
    return standardised(np.fft.irfft2(waves, s=(size, size)))


def standardised(image: NDArray[Any]) -> NDArray[np.float64]:
    """Standardises an image to mean 0 and standard deviation 1."""
    centred = image - image.mean()
    result: NDArray[np.float64] = centred / centred.std()
    return result
