"""Simulated retinal ganglion cells made of subunits (Yan et al. 2020, II-A; Zheng et al. 2021)."""

import math
from typing import Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, model_validator

from retinakit.contracts import (
    Config,
    Dataset,
    UserError,
    lag_coordinate,
    make_recording,
    make_split,
)
from retinakit.simulation import cells_of, simulate

ZHENG = {"cells": 2, "subunits": 4, "subunit_size": 2, "height": 8, "width": 8}
PRESETS: dict[str, dict[str, Any]] = {
    "yan": {},
    "ln": {"subunits": 1, "subunit_size": 4, "nonlinearity": "identity"},
    "zheng1": ZHENG,
    "zheng2": ZHENG,
}
"""What the options are where they are not given. The layout of Zheng et al.'s models is fixed."""


class SubunitRGCConfig(Config):
    """Options of the simulation. The defaults are the cell of Yan et al.'s public code."""

    preset: Literal["yan", "ln", "zheng1", "zheng2"] = Field(
        "yan",
        description="The options of a published cell (Yan et al. 2020), of a linear-nonlinear "
        "cell as large, or of the two cells of models I and II of Zheng et al. 2021, which "
        "overlap; other options change it.",
    )
    frames: int = Field(600_000, ge=100, description="Frames of white noise for training.")
    validation_frames: int = Field(60_000, ge=100, description="More frames, for validation.")
    test_frames: int = Field(10_000, ge=100, description="More frames, for the test.")
    repeats: int = Field(20, ge=1, description="How often the test frames are shown.")
    cells: int = Field(1, ge=1, description="Cells; the first is in the middle of the field.")
    subunits: int = Field(4, ge=1, description="Subunits of a cell, side by side in a block.")
    subunit_size: int = Field(2, ge=1, description="Side of a subunit, in checks.")
    height: int = Field(8, ge=2, description="Height of the field, in checks.")
    width: int = Field(8, ge=2, description="Width of the field, in checks.")
    nonlinearity: Literal["identity", "rectify", "softplus", "exponential"] = Field(
        "rectify", description="Of a subunit."
    )
    output_nonlinearity: Literal["rectify", "softplus", "exponential"] = Field(
        "rectify", description="Of the cell, over its threshold."
    )
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

    @model_validator(mode="before")
    @classmethod
    def _of_the_preset(cls, options: Any) -> Any:
        if not isinstance(options, dict):
            return options
        return PRESETS.get(str(options.get("preset", "yan")), {}) | options

    @model_validator(mode="after")
    def _layout_of_zheng(self) -> "SubunitRGCConfig":
        if self.preset in ("zheng1", "zheng2"):
            for name, value in ZHENG.items():
                if getattr(self, name) != value:
                    raise ValueError(f"the preset {self.preset} has {name} {value}; leave it out")
        return self


def _two_cells(second_model: bool) -> NDArray[np.float32]:
    """(cell, subunit, y, x) of Zheng et al.'s models: two blocks of squares that overlap."""
    maps = np.zeros((2, 4, 8, 8), np.float32)
    for cell, corner in enumerate([(1, 0), (2, 3)]):
        for subunit in range(4):
            y, x = corner[0] + 2 * (subunit // 2), corner[1] + 2 * (subunit % 2)
            maps[cell, subunit, y : y + 2, x : x + 2] = 1
    if second_model:
        maps[0, 0] = 0
        maps[0, 0, :3, 0] = maps[0, 0, 2, 1] = 1
    return maps


class SubunitRGC(Dataset):
    """Ganglion cells that sum rectified subunits and fire above a threshold.

    A subunit sums its checks, filters them in time, and rectifies; the cell sums its subunits,
    subtracts a threshold, rectifies, and fires (`retinakit.simulation` has the equation). The
    recording has the true `rate`, and in `truth` the subunits' `subunit_weight (cell, subunit, y,
    x)`, their `output_weight` and the `temporal` filter, and the rest of what
    `retinakit.simulation.cells_of` needs to show the cells another stimulus.

    The paper of Zheng et al. does not give the shapes of its subunits: those of the presets, four
    squares of 2 × 2 checks for each of two overlapping cells, are ours. As in the paper, model II
    is model I with another first subunit, here an L.
    """

    Config = SubunitRGCConfig
    quick: ClassVar[dict[str, Any]] = {
        "frames": 500,
        "validation_frames": 100,
        "test_frames": 100,
        "repeats": 3,
        "cells": 2,
        "lags": 5,
        "threshold": 0.5,
        "gain": 20.0,
    }

    def load(self) -> xr.DataTree:
        c = self.config
        truth = self._truth()
        cells = cells_of(truth)
        splits = {}
        lengths = {"train": c.frames, "validation": c.validation_frames, "test": c.test_frames}
        for stream, (name, frames) in enumerate(lengths.items()):
            random = np.random.default_rng([self.seed, 2, stream])
            bits = random.integers(0, 2, (frames, c.height, c.width), dtype=np.int8)
            stimulus = 2 * bits - 1
            repeats = c.repeats if name == "test" else 1
            simulated = simulate(
                cells,
                stimulus,
                spikes=c.spikes,
                seed=int(random.integers(2**63)),
                repeats=repeats,
            )
            splits[name] = make_split(
                stimulus,
                simulated.spikes if repeats > 1 else simulated.spikes[0],
                frame_interval=1 / c.frame_rate,
                rate=simulated.rate,
            )
        splits["truth"] = truth.assign_coords(
            {dim: splits["train"][dim] for dim in ("cell", "y", "x")}
        )
        return make_recording(splits, {"title": "simulated subunit cells"})

    def _truth(self) -> xr.Dataset:
        c = self.config
        weights = np.ones((c.cells, c.subunits))
        if c.weight_spread:
            random = np.random.default_rng([self.seed, 1])
            weights = np.exp(c.weight_spread * random.standard_normal(weights.shape))
        return xr.Dataset(
            {
                "subunit_weight": (("cell", "subunit", "y", "x"), self._subunits()),
                "output_weight": (("cell", "subunit"), weights),
                "temporal": ("lag", self._temporal()),
                "threshold": ("cell", np.full(c.cells, c.threshold)),
                "gain": ("cell", np.full(c.cells, c.gain / c.frame_rate)),
            },
            coords={
                "subunit": np.arange(c.subunits),
                **lag_coordinate(np.arange(c.lags), 1 / c.frame_rate),
            },
            attrs={
                "contrast": c.contrast,
                "nonlinearity": c.nonlinearity,
                "output_nonlinearity": c.output_nonlinearity,
                "spikes": c.spikes,
            },
        )

    def _subunits(self) -> NDArray[np.float32]:
        """(cell, subunit, y, x): ones in each subunit's square, the squares in a block."""
        c = self.config
        if c.preset in ("zheng1", "zheng2"):
            return _two_cells(c.preset == "zheng2")
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
