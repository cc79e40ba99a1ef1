"""Frames of the stimuli with which tuning is measured: gratings, bars, spots and chirps.

Positions are in checks from the middle of the field, x to the right and y down. Directions of
motion are in degrees: 0 is rightward, and 90 is upward (counter-clockwise).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

PARTS = 8
"""Parts along each side into which a check is divided to find how much of it a spot covers."""

DARK, BRIGHT, GREY = -1.0, 1.0, 0.0


def grating(
    time: ArrayLike,
    height: int,
    width: int,
    *,
    direction: float,
    spatial_frequency: float,
    temporal_frequency: float = 0.0,
    contrast: float = 1.0,
    phase: float = 0.0,
    square: bool = False,
    radius: float | None = None,
) -> NDArray[np.float32]:
    """A drifting grating, contrast · cos(2π (f_s u - f_t t) + phase), where u is along its motion.

    Args:
        time: (frame,) in seconds.
        height, width: of the field, in checks.
        direction: of motion, in degrees; the stripes are perpendicular to it.
        spatial_frequency: f_s, in cycles per check.
        temporal_frequency: f_t, in Hz; the speed is f_t / f_s checks per second.
        contrast: the amplitude.
        phase: in degrees, of the middle of the field at time 0.
        square: whether only the sign of the cosine is used.
        radius: of a circular window in the middle, in checks; by default the whole field.

    Returns:
        (frame, y, x) float32, 0 outside the window.

    Example:
        >>> still = grating([0.0], 1, 9, direction=0, spatial_frequency=0.25)
        >>> (still[0, 0].round(3) + 0).tolist()  # the fifth of nine checks is the middle
        [1.0, 0.0, -1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0]
    """
    along = 2 * np.pi * spatial_frequency * _along(height, width, direction)
    moment = 2 * np.pi * temporal_frequency * np.asarray(time, float) - np.radians(phase)
    # cos(a - b), from the cosines and sines of space and of time
    wave = np.cos(moment)[:, None, None] * np.cos(along)
    wave += np.sin(moment)[:, None, None] * np.sin(along)
    if square:
        wave = np.where(wave >= 0, 1.0, -1.0)
    if radius is not None:
        wave *= spot(height, width, radius=radius)
    return (contrast * wave).astype(np.float32)


def moving_bar(
    time: ArrayLike,
    height: int,
    width: int,
    *,
    direction: float,
    speed: float,
    bar_width: float,
    contrast: float = 1.0,
) -> NDArray[np.float32]:
    """A long bar that crosses the field; its middle is at u(t) = speed · t - (D + bar_width) / 2.

    D is the diagonal of the field and u is along the motion, from the middle of the field. So the
    bar enters after time 0 and has left at (D + bar_width) / speed, see `crossing_time`. A check
    that is covered in part has a part of the contrast; this is exact for bars along an axis.

    Args:
        time: (frame,) in seconds.
        height, width: of the field, in checks.
        direction: of motion, in degrees; the bar is perpendicular to it.
        speed: in checks per second.
        bar_width: along the motion, in checks.
        contrast: of the bar, on grey 0.

    Returns:
        (frame, y, x) float32.

    Example:
        >>> import numpy as np
        >>> centre = crossing_time(1, 8, speed=10, bar_width=2) / 2
        >>> bar = moving_bar(
        ...     [centre, centre + 0.2], 1, 8, direction=0, speed=10, bar_width=2, contrast=0.5
        ... )
        >>> bar[:, 0].round(3).tolist()
        [[0.0, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0]]
    """
    reach = (np.hypot(height, width) + bar_width) / 2
    middle = speed * np.asarray(time, float)[:, None, None] - reach
    along = _along(height, width, direction)
    # the part of a check from along - 1/2 to along + 1/2 that lies in the bar
    last = np.minimum(along + 0.5, middle + bar_width / 2)
    first = np.maximum(along - 0.5, middle - bar_width / 2)
    return (contrast * np.clip(last - first, 0, 1)).astype(np.float32)


def crossing_time(height: int, width: int, *, speed: float, bar_width: float) -> float:
    """The time in seconds in which a `moving_bar` crosses the field, equal for all directions.

    Args:
        height, width: of the field, in checks.
        speed: in checks per second.
        bar_width: in checks.

    Example:
        >>> crossing_time(3, 4, speed=10, bar_width=2)
        0.7
    """
    return float((np.hypot(height, width) + bar_width) / speed)


def spot(
    height: int,
    width: int,
    *,
    radius: float,
    centre: Sequence[float] | None = None,
    inner_radius: float = 0.0,
) -> NDArray[np.float32]:
    """The fraction of each check that is covered by a disc or a ring.

    Args:
        height, width: of the field, in checks.
        radius: in checks; inf covers everything outside `inner_radius`.
        centre: (y, x), in indices of checks; by default the middle of the field.
        inner_radius: of a ring.

    Returns:
        (y, x) float32, 0 to 1. The sum is the area π (radius² - inner_radius²) if the field is
        large enough.

    Example:
        >>> import numpy as np
        >>> float((spot(40, 40, radius=10).sum() / np.pi).round(1))
        100.0
    """
    middle = ((height - 1) / 2, (width - 1) / 2) if centre is None else centre
    fine = (np.arange(PARTS) + 0.5) / PARTS - 0.5
    y, x = (
        (np.arange(length)[:, None] + fine).ravel() - at
        for length, at in zip((height, width), middle, strict=True)
    )
    square = y[:, None] ** 2 + x**2
    covered = (square <= radius**2) & (square >= inner_radius**2)
    checks = covered.reshape(height, PARTS, width, PARTS)
    return checks.mean((1, 3)).astype(np.float32)


def chirp_contrast(
    time: ArrayLike,
    *,
    step: float = 3.0,
    steady: float = 2.0,
    sweep: float = 8.0,
    frequencies: tuple[float, float] = (0.0, 8.0),
    contrast_frequency: float = 2.0,
) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """The course of the full-field chirp of Baden et al. (2016): step, frequency and contrast.

    Dark for `steady`, bright and dark for `step` each, grey for `steady`; a sinusoid whose
    frequency rises linearly during `sweep`; grey; a sinusoid of `contrast_frequency` whose
    contrast rises from 0 to 1 during `sweep`; grey; dark. The defaults last 32 s.

    Args:
        time: (frame,) in seconds.
        step, steady, sweep: durations in seconds.
        frequencies: at the beginning and at the end of the frequency sweep, in Hz.
        contrast_frequency: in Hz.

    Returns:
        The contrast (frame,), -1 dark to 1 bright and 0 before and after the chirp, and the name of
        the part (frame,): "dark", "bright", "grey", "frequency" or "contrast".

    Example:
        >>> contrast, part = chirp_contrast([1.0, 3.0, 6.0, 9.0, 12.0, 31.0])
        >>> (contrast.round(2) + 0).tolist(), part[4].item()
        ([-1.0, 1.0, -1.0, 0.0, 0.0, -1.0], 'frequency')
    """
    lasts = [
        ("dark", steady),
        ("bright", step),
        ("dark", step),
        ("grey", steady),
        ("frequency", sweep),
        ("grey", steady),
        ("contrast", sweep),
        ("grey", steady),
        ("dark", steady),
    ]
    time = np.asarray(time, float)
    # A frame at the end of a part, up to rounding errors, is the first of the next one.
    ends = np.cumsum([seconds for _, seconds in lasts]) - 1e-9
    index = np.searchsorted(ends, time, side="right")
    names = np.array([*(name for name, _ in lasts), "grey"])
    part = np.where(time < -1e-9, "grey", names[index])
    after = time - np.r_[0.0, ends + 1e-9][index]
    low, high = frequencies
    rising = np.sin(2 * np.pi * (low * after + (high - low) * after**2 / (2 * sweep)))
    growing = after / sweep * np.sin(2 * np.pi * contrast_frequency * after)
    known = {"dark": DARK, "bright": BRIGHT, "frequency": rising, "contrast": growing}
    course = np.full(time.shape, GREY)
    for name, value in known.items():
        course = np.where(part == name, value, course)
    return course.astype(np.float32), part


def chirp_duration(*, step: float = 3.0, steady: float = 2.0, sweep: float = 8.0) -> float:
    """The duration in seconds of a chirp, see `chirp_contrast`.

    Args:
        step, steady, sweep: durations in seconds.

    Example:
        >>> chirp_duration()
        32.0
    """
    return 2 * step + 5 * steady + 2 * sweep


def _along(height: int, width: int, direction: float) -> NDArray[np.float64]:
    """The positions (y, x) along a direction, in checks from the middle of the field."""
    y = np.arange(height)[:, None] - (height - 1) / 2
    x = np.arange(width) - (width - 1) / 2
    angle = np.radians(direction)
    # Rounded, so that the cosine of 90 degrees is 0.
    place: NDArray[np.float64] = x * np.cos(angle).round(12) - y * np.sin(angle).round(12)
    return place
