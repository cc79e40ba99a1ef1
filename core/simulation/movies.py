"""Movies of natural scenes: photographs that move and change, with objects that swim across."""

from dataclasses import dataclass
from typing import Any, Self

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

CLIP = 1.0
"""Contrast of white. Black is the negative of it."""

SHADE = 0.4
"""Mean contrast by which an object differs from its texture: half of them are darker."""

WIDTH, BENDS, TURNING = 0.3, 1.5, 1.5
"""Objects: width relative to the length, bends per second, and standard deviation of the turning
in radians per second."""


@dataclass(frozen=True)
class Motion:
    """How the scenes and the objects of a movie move.

    Attributes:
        cut: mean time between two cuts in s; 0 for a single scene.
        saccade: mean time between two saccades in s; 0 for none.
        saccade_size: standard deviation of a saccade along each axis, as a fraction of the field.
        drift: standard deviation of the velocity of the drift, in fields per second.
        objects: the number of objects.
        object_size: length of an object, as a fraction of the field.
        object_speed: in fields per second.

    Example:
        >>> Motion(objects=0).drift
        0.2
    """

    cut: float = 5.0
    saccade: float = 0.4
    saccade_size: float = 0.15
    drift: float = 0.2
    objects: int = 3
    object_size: float = 0.4
    object_speed: float = 0.3


@dataclass(frozen=True, eq=False)
class SceneMovie:
    """A movie that is drawn frame by frame from scenes and the tracks of the eye and of objects.

    A frame is the window of a scene at the position of the eye, by bilinear interpolation. The
    position drifts as a velocity with a memory of about 0.3 s, jumps in saccades, and starts anew
    in another scene after a cut. Objects are ellipses with the texture of a scene, which swim along
    smooth tracks in front of it and bend as they swim.

    Attributes:
        scenes: images (y, x) of contrast, each at least as large as the field.
        size: side of a frame.
        scene: (frame,) the number of the scene.
        position: (frame, 2), row and column of the corner of the window in the scene.
        body: (frame, object, 4), row and column of the middle of an object in the frame, its
            direction in radians and the phase of its bending.
        shape: (object, 2), half the length and half the width in checks.
        texture: (frame, object), the number of the scene that textures an object.

    Example:
        >>> random = np.random.default_rng(0)
        >>> scenes = [random.standard_normal((40, 50)).astype(np.float32)]
        >>> movie = SceneMovie.drawn(scenes, 16, 100, 1 / 30, random)
        >>> movie(np.array([0, 99])).shape
        (2, 16, 16)
    """

    scenes: list[NDArray[np.float32]]
    size: int
    scene: NDArray[np.int64]
    position: NDArray[np.float32]
    body: NDArray[np.float32]
    shape: NDArray[np.float32]
    texture: NDArray[np.int64]

    @classmethod
    def drawn(
        cls,
        scenes: list[NDArray[np.float32]],
        size: int,
        frames: int,
        frame_interval: float,
        random: np.random.Generator,
        motion: Motion = Motion(),
    ) -> Self:
        """A movie with random tracks.

        The first frames of a movie are those of a shorter one with the same generator.

        Args:
            scenes: images (y, x) of contrast, each larger than the field.
            size: side of a frame, in checks.
            frames: the number of frames.
            frame_interval: in seconds.
            random: generator of the tracks.
            motion: how scenes and objects move.
        """
        m, step, objects = motion, frame_interval, motion.objects
        starts, draws, numbers = random.spawn(3)
        uniform = draws.random((frames, 6 + objects))
        normal = numbers.standard_normal((frames, 4 + objects))
        memory = np.exp(-step / 0.3)

        def wandering(noise: NDArray[Any]) -> NDArray[np.float64]:
            """Noise (frame, ...) of unit variance with a memory of 0.3 s."""
            smooth: NDArray[np.float64] = lfilter([np.sqrt(1 - memory**2)], [1, -memory], noise, 0)
            return smooth

        move = m.drift * size * step * wandering(normal[:, :2])
        if m.saccade:
            move += m.saccade_size * size * normal[:, 2:4] * (uniform[:, 4:5] < step / m.saccade)
        cuts = np.flatnonzero(uniform[:, 0] < (step / m.cut if m.cut else 0))
        begins = np.r_[0, cuts[cuts > 0]]
        scene, position = np.empty(frames, np.int64), np.empty((frames, 2))
        texture = np.empty((frames, objects), np.int64)
        last = -1
        for begin, end in zip(begins, [*begins[1:], frames], strict=True):
            others = [n for n in range(len(scenes)) if n != last] or [0]
            last = others[int(uniform[begin, 1] * len(others))]
            room = np.array(scenes[last].shape) - size
            path = uniform[begin, 2:4] * room + move[begin:end].cumsum(0)
            scene[begin:end], position[begin:end] = last, _reflected(path, room)
            texture[begin:end] = uniform[begin, 6:] * len(scenes)

        half = 0.5 * m.object_size * size * starts.uniform(0.5, 1.0, objects)
        body = np.empty((frames, objects, 4))
        direction = starts.uniform(0, 2 * np.pi, objects) + (
            TURNING * step * wandering(normal[:, 4:]).cumsum(0)
        )
        way = np.stack([np.sin(direction), np.cos(direction)], 2) * m.object_speed * size * step
        # An object that has left the field on one side comes back on the other.
        around = (size + 2 * half)[:, None]
        place = starts.uniform(0, size, (objects, 2)) + way.cumsum(0)
        body[:, :, :2] = (place + half[:, None]) % around - half[:, None]
        body[:, :, 2] = direction
        phase = 2 * np.pi * BENDS * step * np.arange(frames)[:, None]
        body[:, :, 3] = starts.uniform(0, 2 * np.pi, objects) + phase
        return cls(
            scenes,
            size,
            scene,
            position.astype(np.float32),
            body.astype(np.float32),
            np.stack([half, WIDTH * half], 1).astype(np.float32),
            texture,
        )

    def __call__(self, frames: NDArray[np.int64]) -> NDArray[np.float32]:
        """The frames (n, y, x) in contrast of -1 to 1, with the given numbers (n,)."""
        out = np.empty((len(frames), self.size, self.size), np.float32)
        for number in np.unique(self.scene[frames]):
            self._draw(number, frames, out)
        return out

    def _draw(self, number: int, frames: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Draws the frames that show one scene."""
        place = np.flatnonzero(self.scene[frames] == number)
        shown = frames[place]
        _window(self.scenes[number], self.position[shown], place, out)
        for thing in range(len(self.shape)):
            for texture in np.unique(self.texture[shown, thing]):
                chosen = self.texture[shown, thing] == texture
                shade = np.float32(SHADE if thing % 2 else -SHADE)
                _object(
                    self.scenes[texture],
                    self.body[shown[chosen], thing],
                    self.shape[thing],
                    shade,
                    place[chosen],
                    out,
                )
        out[place] = out[place].clip(-CLIP, CLIP)


def _reflected(place: NDArray[np.float64], room: NDArray[Any]) -> NDArray[np.float64]:
    """A position folded into 0 to `room`, as by reflection at the borders of a scene."""
    folded: NDArray[np.float64] = np.abs((place + room) % np.maximum(2 * room, 1e-9) - room)
    return folded.clip(0, room)


@numba.njit(cache=True, nogil=True, inline="always")
def _value(image: NDArray[np.float32], y: Any, x: Any) -> Any:
    """The image at a position between its pixels, by bilinear interpolation."""
    top = min(max(int(y), 0), image.shape[0] - 2)
    left = min(max(int(x), 0), image.shape[1] - 2)
    down, right = y - np.float32(top), x - np.float32(left)
    upper = image[top, left] + right * (image[top, left + 1] - image[top, left])
    lower = image[top + 1, left] + right * (image[top + 1, left + 1] - image[top + 1, left])
    return upper + down * (lower - upper)


@numba.njit(cache=True, nogil=True)
def _window(
    image: NDArray[np.float32],
    position: NDArray[np.float32],
    place: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    size = out.shape[1]
    for n in range(len(place)):
        for row in range(size):
            y = position[n, 0] + np.float32(row)
            for column in range(size):
                x = position[n, 1] + np.float32(column)
                out[place[n], row, column] = _value(image, y, x)


@numba.njit(cache=True, nogil=True)
def _object(
    image: NDArray[np.float32],
    body: NDArray[np.float32],
    shape: NDArray[np.float32],
    shade: np.float32,
    place: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Draws one object: an ellipse whose rear bends from side to side, with a soft border."""
    size, one, half = out.shape[1], np.float32(1), np.float32(0.5)
    length, width = shape[0], shape[1]
    middle_y, middle_x = np.float32(image.shape[0] // 2), np.float32(image.shape[1] // 2)
    reach = int(length) + 2
    for n in range(len(place)):
        y, x = body[n, 0], body[n, 1]
        cos, sin = np.cos(body[n, 2]), np.sin(body[n, 2])
        for row in range(max(0, int(y) - reach), min(size, int(y) + reach + 1)):
            for column in range(max(0, int(x) - reach), min(size, int(x) + reach + 1)):
                down, right = np.float32(row) - y, np.float32(column) - x
                along, across = right * cos + down * sin, down * cos - right * sin
                rear = max(half * (one - along / length), np.float32(0))
                bend = np.float32(1.2) * width * rear * rear
                across -= bend * np.sin(body[n, 3] + np.float32(2) * along / length)
                distance = np.sqrt((along / length) ** 2 + (across / width) ** 2)
                cover = min(max((one - distance) * width + half, np.float32(0)), one)
                if cover > 0:
                    inside = half * _value(image, middle_y + across, middle_x + along) + shade
                    old = out[place[n], row, column]
                    out[place[n], row, column] = old + cover * (inside - old)


def area_average(images: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
    """Images rescaled by averaging over the area of each new pixel.

    Args:
        images: (..., y, x).
        height, width: of the result.

    Returns:
        (..., y, x) float32.

    Example:
        >>> area_average(np.array([[0.0, 6.0, 12.0]]), 1, 2).tolist()
        [[2.0, 10.0]]
    """
    down, across = (
        _overlap(old, new) for old, new in zip(images.shape[-2:], (height, width), strict=True)
    )
    averaged: NDArray[np.float32] = down @ images.astype(np.float32) @ across.T
    return averaged


def _overlap(old: int, new: int) -> NDArray[np.float32]:
    """The weights (new, old) of the old pixels of a row in the mean over each new one."""
    ends = np.arange(new + 1) * (old / new)
    low, high = (
        np.maximum.outer(ends[:-1], np.arange(old)),
        np.minimum.outer(ends[1:], np.arange(1, old + 1)),
    )
    return (np.maximum(high - low, 0) * (new / old)).astype(np.float32)
