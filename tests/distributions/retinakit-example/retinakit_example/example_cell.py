"""A dataset: linear-nonlinear Poisson cells under white noise."""

from typing import Any, ClassVar

import numpy as np
import xarray as xr
from pydantic import Field
from scipy.signal import lfilter

from retinakit import Config, Dataset
from retinakit.contracts import make_recording, make_split


class ExampleCellConfig(Config):
    """Every option has a default and a description; retinakit refuses any other."""

    frames: int = Field(2000, ge=100, description="Frames of training.")
    cells: int = Field(2, ge=1, description="How many cells.")
    size: int = Field(6, ge=2, description="Checks along y and along x.")
    lags: int = Field(4, ge=1, description="Length of the temporal filter, in frames.")
    frame_rate: float = Field(30.0, gt=0, description="Frames per second.")


class ExampleCell(Dataset):
    """Cells with a random spatial filter, a decaying temporal one, and a rectifier."""

    Config = ExampleCellConfig
    # The checks of retinakit.testing run with these options: small ones, to take seconds.
    quick: ClassVar[dict[str, Any]] = {"frames": 500, "size": 4}

    def load(self) -> xr.DataTree:
        c = self.config
        # Everything random follows from the seed.
        random = np.random.default_rng(self.seed)
        space = random.normal(size=(c.cells, c.size * c.size))
        space /= np.linalg.norm(space, axis=1, keepdims=True)
        temporal = np.exp(-np.arange(c.lags) / 1.5)

        def split(frames: int, repeats: int | None = None) -> xr.Dataset:
            # Contrasts of -1 and 1 are stored as one byte each.
            stimulus = (2 * random.integers(0, 2, (frames, c.size, c.size)) - 1).astype(np.int8)
            drive = lfilter(temporal, 1, stimulus.reshape(frames, -1) @ space.T, axis=0)
            rate = np.maximum(drive, 0)
            spikes = random.poisson(rate if repeats is None else np.stack([rate] * repeats))
            return make_split(
                stimulus, spikes.astype(np.int16), rate=rate, frame_interval=1 / c.frame_rate
            )

        return make_recording(
            {
                "train": split(c.frames),
                "validation": split(c.frames // 5),
                "test": split(c.frames // 5, repeats=5),
            }
        )
