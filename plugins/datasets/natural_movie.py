"""Natural movies shown to a simulated population of ganglion cells (for Zheng et al. 2021)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, model_validator

from retinakit.contracts import (
    SPIKES_PER_BIN,
    Dataset,
    InputPath,
    MovieSplitConfig,
    UserError,
    lag_coordinate,
    make_recording,
    make_split,
    split_movie,
)
from retinakit.simulation import (
    TYPES,
    FileMovie,
    GanglionCells,
    Motion,
    SceneMovie,
    area_average,
    binomial_spikes,
    dead_leaves,
    drawn_frames,
    photographs,
    pink_noise,
)

CALIBRATION = 6000
"""Frames of the movie for which thresholds and gains of the cells are set."""

TEXTURES, LEAVES = 4, 8
"""Number of images with a spectrum of 1/f, and of dead-leaves images for the calibration."""

RATE_SPREAD, LOWEST_RATE, HIGHEST_RATE = 0.5, 0.5, 8.0
"""Mean rates: spread of their logarithm between cells, and their range in Hz."""

SLOTS = 3
"""Largest number of spikes of a cell in one bin."""

IN_MEMORY = 2**30
"""Bytes up to which a stimulus is held in memory. A larger one is drawn when it is used."""

WHITE = 3
"""Number of the random stream of white noise."""

Draw = Callable[[NDArray[np.int64]], NDArray[Any]]


class NaturalMovieConfig(MovieSplitConfig):
    """Options of the movie, of the cells and of the splits."""

    stimulus: Literal["movie", "white_noise"] = Field(
        "movie",
        description="'white_noise': the same cells see checks of -1 and 1, from which receptive "
        "fields are computed.",
    )
    movie: InputPath | None = Field(
        None,
        description="File of your own movie, in place of the simulated one: .npy, HDF5, NetCDF-4 "
        "or MATLAB (frame, y, x), or a movie or image stack that imageio reads. Its central square "
        "is rescaled to the field.",
    )
    movie_array: str = Field("movie", description="Path of the array within an HDF5 file.")
    number: int = Field(
        1,
        ge=1,
        description="Number of the movie: movies of different numbers are shown to the same cells.",
    )
    frames: int | None = Field(
        None,
        ge=30,
        description="Number of frames; by default 9000 (300 s), or all frames of your own movie.",
    )
    frame_interval: float = Field(0.033, gt=0, description="Duration of a frame, in seconds.")
    size: int = Field(30, ge=8, description="Side of a frame, in pixels; 90 in the paper.")
    field: float = Field(2700.0, ge=500, description="Side of the field on the retina, in µm.")
    contrast: float = Field(
        0.5,
        gt=0,
        description="Standard deviation of the images, where black is -1 and white 1; values "
        "beyond are clipped.",
    )
    scenes: Literal["photographs", "pink_noise", "mixed"] = Field(
        "mixed",
        description="Images of the simulated movie: photographs of scikit-image "
        "(retinakit[natural]), images with a spectrum of 1/f, or both.",
    )
    cut: float = Field(5.0, ge=0, description="Mean time between cuts, in seconds; 0 for no cuts.")
    saccade: float = Field(
        0.4, ge=0, description="Mean time between saccades, in seconds; 0 for no saccades."
    )
    drift: float = Field(
        0.2, ge=0, description="Standard deviation of the drift's velocity, in fields per second."
    )
    objects: int = Field(3, ge=0, description="Number of objects that swim across the scene.")
    noise_check: int = Field(
        1, ge=1, description="Side of a check of white noise, in pixels of the frame."
    )
    cells: int = Field(80, ge=1, description="Number of cells.")
    mean_rate: float = Field(
        3.1,
        gt=0,
        description="Median of the cells' mean rates in Hz, for the movie for which thresholds and "
        "gains are set; other movies have other rates.",
    )
    silent: float = Field(
        0.83,
        ge=0,
        lt=1,
        description="Fraction of the frames of that movie in which the rate of a cell is 0.",
    )
    adaptation: float = Field(
        2.0, ge=0, description="Strength of the slow divisive gain; 0 for none."
    )
    gain_frames: float = Field(30.0, ge=1, description="Time constant of the gain, in frames.")
    feedback: float = Field(0.3, ge=0, description="Strength of amacrine feedback; 0 for none.")
    amacrine_frames: float = Field(
        3.0, ge=1, description="Time constant of amacrine feedback, in frames."
    )
    repeats: int = Field(30, ge=1, description="Number of presentations of the whole movie.")

    @model_validator(mode="after")
    def _possible(self) -> "NaturalMovieConfig":
        if self.movie is not None and self.stimulus == "white_noise":
            raise ValueError("white noise replaces the movie; give stimulus or movie, not both")
        return self


class NaturalMovie(Dataset):
    """A natural movie and the repeated responses of a simulated population of ganglion cells.

    The simulated movie is made of photographs and images with a spectrum of 1/f, with drift,
    saccades and cuts, and objects that swim across. Its pixels are contrast, black -1 and white 1.
    It stands in for the movies of Zheng et al. (2021), and `movie` is your own movie instead.

    The cells are of three types (`retinakit.simulation.GanglionCells`): bipolar cells are filtered
    in space and time and rectified, a ganglion cell pools about a dozen of them, its sensitivity is
    divided by its own mean excitation of the last 30 frames, which is longer than the history of 20
    frames of the models, and amacrine cells inhibit their neighbourhood. Spike counts are binomial,
    at most three in a bin, and each presentation is a repeat. Thresholds and gains are set for
    another movie, of dead-leaves and 1/f images: datasets with the same `seed` and options of the
    cells (`size`, `field`, `cells` ...) have the same cells, whatever they are shown.

    With `split: random_frames`, every split has the whole movie, and responses and rates are NaN in
    the frames of the other splits. Its scores are too high, because the histories of test frames
    overlap with those of training frames.

    The group `truth` has for each cell `location_y` and `location_x` in pixels, `cell_type`, its
    `receptive_field (cell, y, x)`, which is negative in the middle of OFF cells, the Gaussian of
    its centre in the form of `retinakit.spikes.fit_ellipse` (`centre_y`, `centre_x`, `sd_major`,
    `sd_minor` in µm and `angle`), `threshold` and `gain`; and the subunits: `pooling (cell,
    bipolar)`, `bipolar_field (bipolar, y, x)` and `temporal (type, lag)`. Gaussians fitted to
    spike-triggered averages are about 0.8 times as wide, because of the surround.

    Raises:
        UserError: if the movie cannot be read or is too short, or a photograph is smaller than the
            field.

    Example:
        >>> options = {"size": 12, "cells": 5, "frames": 600, "repeats": 3}
        >>> movie = NaturalMovie.with_options(**options, scenes="pink_noise").load()
        >>> dict(movie["train"]["response"].sizes), movie["test"].sizes["frame"]
        ({'repeat': 3, 'frame': 400, 'cell': 5}, 100)
    """

    Config = NaturalMovieConfig
    quick: ClassVar[dict[str, Any]] = {"size": 12, "cells": 5, "frames": 600, "repeats": 3}
    volatile = True

    def files(self) -> list[Path]:
        return [] if self.config.movie is None else [self.config.movie]

    def load(self) -> xr.DataTree:
        c = self.config
        draw, frames, dtype = self._movie()
        cells = self._cells()
        stimulus = drawn_frames(draw, (frames, c.size, c.size), dtype)
        if stimulus.nbytes <= IN_MEMORY:
            stimulus = stimulus.load()
            draw = stimulus.values.__getitem__
        rate = cells.rate(cells.drive(draw, frames))
        random = np.random.default_rng([self.seed, 4, self._stream()])
        response = binomial_spikes(rate, SLOTS, c.repeats, random)
        splits = self._splits(stimulus, response if c.repeats > 1 else response[0], rate, cells)
        splits["truth"] = self._truth(cells)
        title = "simulated ganglion cells, " + c.stimulus.replace("_", " ")
        return make_recording(splits, {"title": title})

    def _stream(self) -> int:
        """A number of the random stream of the stimulus and of the spikes."""
        return 0 if self.config.stimulus == "white_noise" else self.config.number

    def _cells(self) -> GanglionCells:
        c = self.config
        random = np.random.default_rng([self.seed, 0])
        cells = GanglionCells.drawn(
            c.cells,
            c.size,
            c.frame_interval,
            random,
            c.field,
            adaptation=c.adaptation,
            gain_frames=c.gain_frames,
            feedback=c.feedback,
            amacrine_frames=c.amacrine_frames,
        )
        rate = c.mean_rate * np.exp(RATE_SPREAD * random.standard_normal(c.cells))
        rate = rate.clip(LOWEST_RATE, HIGHEST_RATE) * c.frame_interval
        # Independent of the movie that is shown, so that several can be shown to the same cells.
        leaves = [dead_leaves(3 * c.size, random) for _ in range(LEAVES)]
        scenes = [_contrast(image, 0.5) for image in leaves + self._textures()]
        movie = SceneMovie.drawn(scenes, c.size, CALIBRATION, c.frame_interval, random)
        return cells.calibrated(movie, CALIBRATION, rate, c.silent)

    def _movie(self) -> tuple[Draw, int, Any]:
        """The stimulus, its number of frames and its type."""
        c = self.config
        if c.movie is None:
            frames = c.frames or 9000
            if c.stimulus == "white_noise":
                return WhiteNoise(c.size, c.noise_check, [self.seed, WHITE]), frames, np.int8
            return self._scene_movie(c.number, frames), frames, np.float32
        movie = FileMovie(c.movie, c.size, c.movie_array, c.contrast)
        frames = c.frames or movie.frames
        if not 30 <= frames <= movie.frames:
            raise UserError(
                f"{c.movie} has {movie.frames} frames, and {max(frames, 30)} are needed; "
                "make frames smaller, or give a longer movie"
            )
        return movie, frames, np.float32

    def _scene_movie(self, number: int, frames: int) -> SceneMovie:
        c = self.config
        motion = Motion(cut=c.cut, saccade=c.saccade, drift=c.drift, objects=c.objects)
        random = np.random.default_rng([self.seed, 1, number])
        return SceneMovie.drawn(self._scenes(), c.size, frames, c.frame_interval, random, motion)

    def _scenes(self) -> list[NDArray[np.float32]]:
        """The images, in contrast, with one pixel for each pixel of a frame."""
        c = self.config
        images: list[NDArray[Any]] = []
        if c.scenes != "pink_noise":
            pixels = max(1, 180 // c.size)  # the field shows a third of a photograph
            for name, scene in photographs().items():
                height, width = (length // pixels for length in scene.shape)
                if min(height, width) <= c.size:
                    raise UserError(
                        f"a field of {c.size} pixels does not fit into the photograph '{name}' of "
                        f"{height} x {width}; make size smaller, or use scenes: pink_noise"
                    )
                images.append(area_average(scene.clip(-3, 3), height, width))
        if c.scenes != "photographs":
            images += self._textures()
        return [_contrast(image, c.contrast) for image in images]

    def _textures(self) -> list[NDArray[np.float64]]:
        random = np.random.default_rng([self.seed, 2])
        return [pink_noise(3 * self.config.size, random) for _ in range(TEXTURES)]

    def _splits(
        self,
        stimulus: xr.Variable,
        response: NDArray[np.uint8],
        rate: NDArray[np.float32],
        cells: GanglionCells,
    ) -> dict[str, xr.Dataset]:
        c = self.config
        place = np.arange(c.size) * cells.pixel
        whole = make_split(
            stimulus, response, frame_interval=c.frame_interval, rate=rate, y=place, x=place
        )
        return split_movie(whole, c, self.seed)

    def _truth(self, cells: GanglionCells) -> xr.Dataset:
        c = self.config
        check, micron = {"units": "check"}, {"units": "µm"}
        major, minor = cells.ellipse_axes()
        place = ("y", np.arange(c.size) * cells.pixel, micron)
        return xr.Dataset(
            {
                "location_y": ("cell", cells.location[:, 0], check),
                "location_x": ("cell", cells.location[:, 1], check),
                "cell_type": ("cell", cells.cell_type),
                "receptive_field": (("cell", "y", "x"), cells.receptive_fields()),
                "centre_y": ("cell", cells.location[:, 0] * cells.pixel, micron),
                "centre_x": ("cell", cells.location[:, 1] * cells.pixel, micron),
                "sd_major": ("cell", major * cells.pixel, micron),
                "sd_minor": ("cell", minor * cells.pixel, micron),
                "angle": ("cell", cells.axes[:, 2], {"units": "radian"}),
                "threshold": ("cell", cells.threshold),
                "gain": ("cell", cells.gain, {"units": SPIKES_PER_BIN}),
                "pooling": (("cell", "bipolar"), cells.pooling),
                "bipolar_field": (("bipolar", "y", "x"), cells.bipolar_fields()),
                "temporal": (("type", "lag"), cells.temporal),
            },
            coords={
                "cell": np.arange(c.cells),
                "bipolar": np.arange(len(cells.bipolar)),
                "type": list(TYPES),
                "y": place,
                "x": ("x", *place[1:]),
                **lag_coordinate(np.arange(cells.temporal.shape[1]), c.frame_interval),
            },
            attrs={
                "adaptation": c.adaptation,
                "gain_frames": c.gain_frames,
                "feedback": c.feedback,
                "amacrine_frames": c.amacrine_frames,
                "highest": cells.highest,
                "slots": SLOTS,
            },
        )


def _contrast(image: NDArray[Any], deviation: float) -> NDArray[np.float32]:
    """A standardised image in contrast, clipped to black and white."""
    contrast: NDArray[np.float32] = (deviation * image).clip(-1, 1).astype(np.float32)
    return contrast


class WhiteNoise:
    """White noise of -1 and 1, any frame of which can be drawn.

    Args:
        size: side of a frame, in pixels.
        check: side of a check, in pixels.
        seed: of the generator.

    Example:
        >>> noise = WhiteNoise(size=6, check=2, seed=[0])
        >>> frames = noise(np.array([5, 1000]))
        >>> frames.shape, bool((frames[1] == noise(np.array([1000]))[0]).all())
        ((2, 6, 6), True)
    """

    BLOCK = 256

    def __init__(self, size: int, check: int, seed: list[int]):
        self.size, self.check, self.seed = size, check, seed

    def __call__(self, frames: NDArray[np.int64]) -> NDArray[np.int8]:
        """The frames (n, y, x) with the given numbers (n,)."""
        side = -(-self.size // self.check)
        checks = np.empty((len(frames), side, side), np.int8)
        block = frames // self.BLOCK
        for number in np.unique(block):
            random = np.random.default_rng([*self.seed, int(number)])
            drawn = random.integers(0, 2, (self.BLOCK, side, side), dtype=np.int8)
            own = block == number
            checks[own] = 2 * drawn[frames[own] % self.BLOCK] - 1
        for axis in (1, 2):
            checks = checks.repeat(self.check, axis) if self.check > 1 else checks
        return checks[:, : self.size, : self.size]
