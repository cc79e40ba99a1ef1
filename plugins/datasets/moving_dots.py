"""Dots that move left and right at different speeds: a task (Murray et al., section 2.1)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numba
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, model_validator

from retinakit.contracts import SPLITS, Config, Dataset, make_recording, make_split
from retinakit.simulation import drawn_frames

ENVIRONMENTS = {
    "full": (0.5, 1.5),
    "top": (1.0, 1.5),
    "upper": (0.75, 1.5),
    "lower": (0.5, 0.75),
    "bottom": (0.55, 0.675),
}
"""The ranges of the slow speed S, in pixels per frame."""

CLASSES = ("left", "right")
DEGREES = {"left": 180.0, "right": 0.0}

MOST_NUMBERS = 10_000
"""Largest number of values of `Steps`."""

Environment = Literal["full", "top", "upper", "lower", "bottom"] | tuple[float, float]


class Steps(Config):
    """Equally spaced numbers, with both ends.

    Example:
        >>> Steps(start=0.5, stop=0.65, step=0.05).numbers()
        [0.5, 0.55, 0.6, 0.65]
    """

    start: float = Field(0.0, ge=0, description="First number.")
    stop: float = Field(4.0, ge=0, description="Last number.")
    step: float = Field(0.1, gt=0, description="Difference between two numbers.")

    def numbers(self) -> list[float]:
        """The numbers, rounded to 9 decimals so that 3 · 0.1 is 0.3."""
        count = int((self.stop - self.start) / self.step + 1e-6) + 1
        return [round(self.start + self.step * index, 9) for index in range(max(0, count))]

    @model_validator(mode="after")
    def _in_order(self) -> "Steps":
        if self.stop < self.start:
            raise ValueError(f"stop {self.stop:g} is less than start {self.start:g}")
        if (self.stop - self.start) / self.step >= MOST_NUMBERS:
            raise ValueError(
                f"from {self.start:g} to {self.stop:g} in steps of {self.step:g} are more than "
                f"{MOST_NUMBERS} numbers; make step larger"
            )
        return self


Numbers = list[float] | Steps


class MovingDotsConfig(Config):
    """Options of the clips. The defaults are those of Murray et al. and their public code."""

    clips: int = Field(1000, ge=1, description="Number of training clips.")
    validation_clips: int = Field(100, ge=1, description="Number of validation clips.")
    test_clips: int = Field(
        100,
        ge=1,
        description="Number of test clips for each test environment (or speed) and alpha.",
    )
    alpha: float = Field(
        2.0,
        ge=0,
        description="Speed of the dots in the direction of the class, relative to the others (F = "
        "alpha · S).",
    )
    environment: Environment = Field(
        "full",
        description="Distribution of the speed S in training and validation, uniform in a range of "
        "pixels per frame: 'full' 0.5 to 1.5, 'top' 1 to 1.5, 'upper' 0.75 to 1.5, 'lower' 0.5 to "
        "0.75, 'bottom' 0.55 to 0.675, or a range [low, high].",
    )
    test_environments: list[Environment] | None = Field(
        None, min_length=1, description="Environments of the test; by default `environment`."
    )
    test_alpha: Numbers | None = Field(
        None,
        description="Values of alpha in the test, for a psychometric curve: a list, or {start: 0, "
        "stop: 4, step: 0.1}; by default `alpha`.",
    )
    test_speed: Numbers | None = Field(
        None,
        description="Fixed speeds S in the test, in place of its environments: a list, or {start: "
        "0.5, stop: 1.49, step: 0.03}.",
    )
    test_directions: Literal["both", "right", "left"] = Field(
        "both",
        description="'both': half of the dots in each direction, and the class is drawn; 'right' "
        "or 'left': all dots of the test clips move in this direction at the speed alpha · S, and "
        "it is the class.",
    )
    balanced: bool = Field(
        True,
        description="Exactly half of the dots move in each direction, as in the authors' code; "
        "otherwise each dot draws its direction, as in the text of the paper.",
    )
    field: int = Field(255, ge=2, description="Side of the clip, in pixels.")
    frames: int = Field(51, ge=2, description="Number of frames of a clip.")
    world: float = Field(
        3.0,
        ge=1,
        le=1000,
        description="Side of the square in which the dots start and move, relative to the field in "
        "its middle. A dot that leaves it is gone.",
    )
    dots: int = Field(150, ge=1, description="Number of dots in the world.")
    radius: int | None = Field(
        None, ge=0, description="Radius of a dot in pixels; by default int(field / 50)."
    )
    frame_rate: float = Field(30.0, gt=0, description="Frames per second.")

    @model_validator(mode="after")
    def _possible(self) -> "MovingDotsConfig":
        if self.dots > self.side:
            raise ValueError(
                f"{self.dots} dots start in different rows and columns, and the world has "
                f"{self.side}; use fewer dots, or a larger field or world"
            )
        if self.radius is not None and self.radius > self.side:
            raise ValueError(
                f"a dot of radius {self.radius} covers the world of {self.side} pixels; make "
                "radius smaller"
            )
        for environment in (self.environment, *(self.test_environments or ())):
            low, high = limits(environment)
            if not 0 <= low <= high:
                raise ValueError(
                    f"[{low:g}, {high:g}] is no range of speeds; give [low, high] with 0 <= low <= "
                    "high"
                )
        if self.test_speed is not None and self.test_environments is not None:
            raise ValueError("test_speed replaces test_environments; give one of them")
        for name in ("test_alpha", "test_speed"):
            given = getattr(self, name)
            if given is not None and (not numbers(given) or min(numbers(given)) < 0):
                raise ValueError(f"{name} is {numbers(given)}; give numbers that are not negative")
        return self

    @property
    def side(self) -> int:
        """Side of the world, in pixels."""
        return round(self.world * self.field)


def limits(environment: Environment) -> tuple[float, float]:
    """The range of the speed S in an environment, in pixels per frame.

    Example:
        >>> limits("top"), limits((0.2, 0.4))
        ((1.0, 1.5), (0.2, 0.4))
    """
    return ENVIRONMENTS[environment] if isinstance(environment, str) else environment


def numbers(given: Numbers) -> list[float]:
    """The numbers of a list or of steps.

    Example:
        >>> numbers([1, 2.5]), numbers(Steps(start=0, stop=2, step=1))
        ([1, 2.5], [0.0, 1.0, 2.0])
    """
    return given.numbers() if isinstance(given, Steps) else given


class MovingDots(Dataset):
    """Clips of dots of which some move left and some right; the class is the scaled direction.

    All dots of a direction have one speed. That of one direction is S, drawn uniformly from the
    range of the environment, and that of the other is F = alpha · S. The class is the direction of
    F, and with alpha > 1 that of the faster dots (Murray et al., section 2.1). Dots start in
    different rows and columns of a world that is larger than the field. Their positions are
    truncated to pixels; a dot is a filled disc of 1 on 0, and discs may overlap.

    A clip is a segment. The response is known in its last frame: 1 for the cell of the class,
    `left` or `right`, and 0 for the other. Coordinates along `frame`, constant in a clip: `speed`
    (S) in pixels per frame, `alpha`, `direction` of F (degrees, 0 right, 180 left), `environment`
    and `trial`, the number of the clip. The tracks are in each split as `dot_y`, `dot_x` (start in
    the field's pixels; those outside are in the world) and `dot_velocity (clip, dot)` (pixels per
    frame, positive to the right), from which frames are drawn when they are used.

    The first clips of a recording are those of a shorter one with the same seed.

    Example:
        >>> dots = MovingDots.with_options(clips=4, field=60, dots=50, test_alpha=[1, 2, 3])
        >>> recording = dots.load()
        >>> dict(recording["train"]["stimulus"].sizes)
        {'frame': 204, 'y': 60, 'x': 60}
        >>> recording["train"]["response"].dropna("frame").sum("cell").values.tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    Config = MovingDotsConfig
    quick: ClassVar[dict[str, Any]] = {
        "clips": 6,
        "validation_clips": 4,
        "test_clips": 3,
        "test_alpha": [1.0, 2.0],
        "field": 40,
        "dots": 40,
        "frames": 12,
        "radius": 2,
    }
    volatile = True

    def load(self) -> xr.DataTree:
        c = self.config
        alone = [(c.environment, c.alpha)]
        conditions: dict[str, list[tuple[Environment, float]]] = {
            "train": alone,
            "validation": alone,
            "test": self._test_conditions(),
        }
        clips = {"train": c.clips, "validation": c.validation_clips, "test": c.test_clips}
        splits = {
            name: self._split(stream, conditions[name], clips[name])
            for stream, name in enumerate(SPLITS)
        }
        return make_recording(splits, {"title": "moving dots"})

    def _test_conditions(self) -> list[tuple[Environment, float]]:
        """The environment and alpha of each condition of the test."""
        c = self.config
        environments: list[Environment] = c.test_environments or [c.environment]
        if c.test_speed is not None:
            environments = [(speed, speed) for speed in numbers(c.test_speed)]
        alphas = [c.alpha] if c.test_alpha is None else numbers(c.test_alpha)
        return [(environment, alpha) for environment in environments for alpha in alphas]

    def _split(
        self, stream: int, conditions: list[tuple[Environment, float]], clips: int
    ) -> xr.Dataset:
        c = self.config
        directions = c.test_directions if SPLITS[stream] == "test" else "both"
        drawn = [
            self._clip(
                np.random.default_rng([self.seed, stream, index, clip]), directions, *condition
            )
            for index, condition in enumerate(conditions)
            for clip in range(clips)
        ]
        count = len(drawn)
        y, x, velocity = (np.stack([clip[part] for clip in drawn]) for part in range(3))
        speed, right = (np.array([clip[part] for clip in drawn]) for part in (3, 4))
        of_clip = [condition for condition in conditions for _ in range(clips)]
        response = np.full((count, c.frames, len(CLASSES)), np.nan, np.float32)
        response[:, -1] = np.stack([~right, right], 1)
        radius = c.field // 50 if c.radius is None else c.radius
        margin = (c.side - c.field) // 2
        draw = Dots(y - margin, x - margin, velocity, c.frames, c.field, radius, margin, c.side)
        trial = np.arange(count)
        named = [one if isinstance(one, str) else "{:g} to {:g}".format(*one) for one, _ in of_clip]
        along: dict[str, Any] = {
            "speed": speed,
            "alpha": [alpha for _, alpha in of_clip],
            "direction": np.where(right, DEGREES["right"], DEGREES["left"]),
            "environment": named,
            "trial": trial,
        }
        split = make_split(
            drawn_frames(draw, (count * c.frames, c.field, c.field), np.uint8),
            response.reshape(-1, len(CLASSES)),
            frame_interval=1 / c.frame_rate,
            segment=trial.repeat(c.frames),
            cell=CLASSES,
            units="class",
            trial={name: np.repeat(values, c.frames) for name, values in along.items()},
        )
        split["speed"].attrs["units"] = "pixel/frame"
        split["direction"].attrs["units"] = "degree"
        dims, place = ("clip", "dot"), {"units": "pixel"}
        return split.assign(
            dot_y=(dims, draw.y, place),
            dot_x=(dims, draw.x, place),
            dot_velocity=(dims, draw.velocity, {"units": "pixel/frame"}),
        ).assign_coords(clip=trial, dot=np.arange(c.dots))

    def _clip(
        self, random: np.random.Generator, directions: str, environment: Environment, alpha: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], float, bool]:
        """Start rows and columns (dot,) in the world, velocities, the speed S and the class."""
        c = self.config
        right = bool(random.integers(2)) if directions == "both" else directions == "right"
        speed = random.uniform(*limits(environment))
        y, x = (random.permutation(c.side)[: c.dots] for _ in range(2))
        scaled = np.arange(c.dots) < c.dots // 2
        if not c.balanced:
            scaled = random.random(c.dots) < 0.5
        if directions != "both":
            scaled[:] = True
        sign = 1 if right else -1
        return y, x, np.where(scaled, sign * alpha * speed, -sign * speed), speed, right


@dataclass(frozen=True)
class Dots:
    """Draws frames of clips of dots that move along rows.

    Attributes:
        y, x: (clip, dot) integers, the positions in the first frame; (0, 0) is the first pixel.
        velocity: (clip, dot), in pixels per frame along x.
        frames: the number of frames of a clip.
        field: side of a frame in pixels.
        radius: of a dot, in pixels: pixels at a distance of at most the radius are 1.
        margin: the number of pixels of the world on the left of the field.
        side: side of the world in pixels. A dot whose position is outside is not drawn.

    Example:
        >>> one = np.array([[4]])
        >>> draw = Dots(one, one, np.array([[1.5]]), 5, field=12, radius=1, margin=12, side=36)
        >>> frames = draw(np.array([0, 1, 3]))
        >>> frames.sum((1, 2)).tolist(), frames[:, 4].argmax(1).tolist()
        ([5, 5, 5], [3, 4, 7])
    """

    y: NDArray[np.int64]
    x: NDArray[np.int64]
    velocity: NDArray[np.float64]
    frames: int
    field: int
    radius: int
    margin: int
    side: int

    def __call__(self, frames: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The frames (n, y, x), 0 and 1, with the given numbers (n,)."""
        reach = np.arange(-self.radius, self.radius + 1)
        half = np.sqrt(self.radius**2 - reach**2).astype(np.int64)
        out = np.zeros((len(frames), self.field, self.field), np.uint8)
        clip, time = np.divmod(frames, self.frames)
        _draw(self.y, self.x, self.velocity, clip, time, half, self.margin, self.side, out)
        return out


@numba.njit(cache=True, nogil=True)
def _draw(
    y: NDArray[np.int64],
    x: NDArray[np.int64],
    velocity: NDArray[np.float64],
    clip: NDArray[np.int64],
    time: NDArray[np.int64],
    half: NDArray[np.int64],
    margin: int,
    side: int,
    out: NDArray[np.uint8],
) -> None:
    """Draws discs; `half` (row,) is half the length of each row of a disc."""
    radius, field = len(half) // 2, out.shape[1]
    for frame in range(len(out)):
        of = clip[frame]
        for dot in range(y.shape[1]):
            row = y[of, dot]
            place = x[of, dot] + margin + velocity[of, dot] * time[frame]
            if place < 0 or place >= side:
                continue
            column = int(place) - margin  # truncated in the world, where it is positive
            if column < -radius or column >= field + radius:
                continue
            for step in range(max(0, radius - row), min(2 * radius + 1, field + radius - row)):
                first, last = column - half[step], column + half[step]
                for pixel in range(max(0, first), min(field - 1, last) + 1):
                    out[frame, row + step - radius, pixel] = 1
