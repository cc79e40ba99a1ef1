"""Simulated retinal ganglion cells made of subunits (Yan et al. 2020, II-A)."""

import math
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.config import Config
from retinakit.dataset import Dataset
from retinakit.errors import UserError
from retinakit.recording import lag_coordinate, make_recording, make_split
from retinakit.temporal import filter_in_time


class SubunitRGCConfig(Config):
    """Options of the simulation. The defaults are the cell of Yan et al.'s public code."""

    frames: int = Field(600_000, ge=100, description="Frames of white noise for training.")
    validation_frames: int = Field(60_000, ge=100, description="More frames, for validation.")
    test_frames: int = Field(10_000, ge=100, description="More frames, for the test.")
    repeats: int = Field(20, ge=1, description="How often the test frames are shown.")
    cells: int = Field(1, ge=1, description="Cells; the first is in the middle of the field.")
    subunits: int = Field(4, ge=1, description="Subunits of a cell, side by side in a block.")
    subunit_size: int = Field(2, ge=1, description="Side of a subunit, in checks.")
    height: int = Field(8, ge=2, description="Height of the field, in checks.")
    width: int = Field(8, ge=2, description="Width of the field, in checks.")
    contrast: float = Field(0.5, gt=0, description="The stimulus is ±1, the cell sees ±contrast.")
    weight_spread: float = Field(
        0.0, ge=0, description="Standard deviation of the logarithm of the subunits' weights."
    )
    threshold: float = Field(
        2.5, description="Of the output, in units of the summed subunits (the paper's text says 1)."
    )
    gain: float = Field(2.0, gt=0, description="Hz for a unit of summed subunits over threshold.")
    polarity: Literal["off", "on"] = Field("off", description="Sign of the temporal filter.")
    frame_rate: float = Field(30.0, gt=0, description="Frames per second.")
    lags: int = Field(20, ge=3, description="Length of the temporal filter, in frames.")
    spikes: Literal["binary", "poisson"] = Field(
        "binary", description="One spike at most in a bin, as in the paper, or Poisson counts."
    )


class SubunitRGC(Dataset):
    """Ganglion cells that sum rectified subunits and fire above a threshold.

    A subunit sums its checks, filters them in time, and rectifies; the cell sums its subunits,
    subtracts a threshold, rectifies, and fires. The recording has the true `rate`, and in `truth`
    the subunits' `subunit_weight (cell, subunit, y, x)`, their `output_weight` and the
    `temporal` filter.
    """

    Config = SubunitRGCConfig

    def load(self) -> xr.DataTree:
        c = self.config
        subunits = self._subunits()
        weights = np.ones((c.cells, c.subunits))
        if c.weight_spread:
            random = np.random.default_rng([self.seed, 1])
            weights = np.exp(c.weight_spread * random.standard_normal(weights.shape))
        splits = {}
        lengths = {"train": c.frames, "validation": c.validation_frames, "test": c.test_frames}
        for stream, (name, frames) in enumerate(lengths.items()):
            random = np.random.default_rng([self.seed, 2, stream])
            bits = random.integers(0, 2, (frames, c.height, c.width), dtype=np.int8)
            stimulus = (2 * bits - 1).astype(np.int8)
            rate = self._rate(stimulus, subunits, weights)
            repeats = (c.repeats,) if name == "test" and c.repeats > 1 else ()
            splits[name] = make_split(
                stimulus,
                self._spikes(random, rate, repeats),
                frame_interval=1 / c.frame_rate,
                rate=rate,
            )
        splits["truth"] = xr.Dataset(
            {
                "subunit_weight": (("cell", "subunit", "y", "x"), subunits),
                "output_weight": (("cell", "subunit"), weights),
                "temporal": ("lag", self._temporal()),
            },
            coords={
                **{dim: splits["train"][dim] for dim in ("cell", "y", "x")},
                "subunit": np.arange(c.subunits),
                **lag_coordinate(np.arange(c.lags), 1 / c.frame_rate),
            },
        )
        return make_recording(splits, {"title": "simulated subunit cells"})

    def _subunits(self) -> NDArray[np.float32]:
        """(cell, subunit, y, x): ones in each subunit's square, the squares in a block."""
        c = self.config
        columns = math.ceil(math.sqrt(c.subunits))
        rows = math.ceil(c.subunits / columns)
        block = (rows * c.subunit_size, columns * c.subunit_size)
        room = (c.height - block[0], c.width - block[1])
        if min(room) < 0:
            raise UserError(
                f"{c.subunits} subunits of {c.subunit_size} checks need a field of "
                f"{block[0]} x {block[1]} checks; make height and width larger"
            )
        random = np.random.default_rng([self.seed, 0])
        maps = np.zeros((c.cells, c.subunits, c.height, c.width), np.float32)
        for cell in range(c.cells):
            corner = [r // 2 for r in room]
            if cell:
                corner = [int(random.integers(0, r + 1)) for r in room]
            for subunit in range(c.subunits):
                row, column = divmod(subunit, columns)
                y = corner[0] + row * c.subunit_size
                x = corner[1] + column * c.subunit_size
                maps[cell, subunit, y : y + c.subunit_size, x : x + c.subunit_size] = 1
        return maps

    def _temporal(self) -> NDArray[np.float64]:
        """(lag,): the difference of two gamma functions, of unit norm."""
        c = self.config
        t = np.arange(c.lags) / c.frame_rate - 2 / 30
        after = np.clip(t, 0, None)

        def gamma(n: int, tau: float) -> NDArray[np.float64]:
            scaled = after / tau
            value: NDArray[np.float64] = (
                scaled ** (n - 1) * np.exp(-scaled) / (tau * math.factorial(n - 1))
            )
            return value

        kernel = np.where(t > 0, gamma(4, 0.05) - gamma(5, 0.05), 0)
        kernel /= np.linalg.norm(kernel)
        return -kernel if c.polarity == "off" else kernel

    def _rate(
        self,
        stimulus: NDArray[np.int8],
        subunits: NDArray[np.float32],
        weights: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """(frame, cell), spikes per bin."""
        c = self.config
        frames = stimulus.reshape(len(stimulus), -1)
        kernels = subunits.reshape(-1, frames.shape[1]).T * c.contrast
        drive = np.concatenate(
            [
                frames[i : i + 65536].astype(np.float32) @ kernels
                for i in range(0, len(frames), 65536)
            ]
        )
        drive = filter_in_time(drive, self._temporal(), [slice(0, len(drive))])
        rectified = np.maximum(drive, 0).reshape(len(frames), c.cells, c.subunits)
        summed = np.einsum("tcs,cs->tc", rectified, weights.astype(np.float32))
        rate: NDArray[np.float32] = (
            c.gain / c.frame_rate * np.maximum(summed - c.threshold, 0)
        ).astype(np.float32)
        return rate

    def _spikes(
        self, random: np.random.Generator, rate: NDArray[np.float32], repeats: tuple[int, ...]
    ) -> NDArray[np.uint8]:
        if self.config.spikes == "poisson":
            return random.poisson(rate, (*repeats, *rate.shape)).astype(np.uint8)
        return (random.random((*repeats, *rate.shape), np.float32) < rate).astype(np.uint8)
