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
from retinakit.simulation import biphasic, cells_of, simulate

ZHENG = {"cells": 2, "subunits": 4, "subunit_size": 2, "height": 8, "width": 8}
PRESETS: dict[str, dict[str, Any]] = {
    "yan": {},
    "ln": {"subunits": 1, "subunit_size": 4, "nonlinearity": "identity"},
    "zheng1": ZHENG,
    "zheng2": ZHENG,
}
"""Default options of each preset. The layout of the cells of Zheng et al. cannot be changed."""

# Maps of the checks of the four subunits of each cell, numbered from 1 as in the paper.
CELL_A = """
    ........
    ..11....
    ..11....
    ..34444.
    .23.....
    .2333...
    .2......
    .2......
"""
CELL_A_II = """
    ....1...
    ...1....
    ..1.....
    .134444.
    .23.....
    .2333...
    .2......
    .2......
"""
CELL_B = """
    ........
    ...6..7.
    ....6777
    .....67.
    ...88.6.
    ...8855.
    ...8855.
    ...88...
"""


class SubunitRGCConfig(Config):
    """Options of the simulation. The defaults are the cell of Yan et al.'s public code."""

    preset: Literal["yan", "ln", "zheng1", "zheng2"] = Field(
        "yan",
        description="Set of default options, which other options override. 'yan': the cell of Yan "
        "et al. 2020; 'ln': a linear-nonlinear cell of the same size; 'zheng1' and 'zheng2': the "
        "two overlapping cells of model I and of model II of Zheng et al. 2021.",
    )
    frames: int = Field(600_000, ge=100, description="Number of training frames of white noise.")
    validation_frames: int = Field(
        60_000, ge=100, description="Number of additional frames for validation."
    )
    test_frames: int = Field(
        10_000, ge=100, description="Number of additional frames for the test."
    )
    repeats: int = Field(20, ge=1, description="Number of presentations of the test frames.")
    cells: int = Field(
        1, ge=1, description="Number of cells; the first is in the middle of the stimulus."
    )
    subunits: int = Field(
        4, ge=1, description="Number of subunits of each cell, side by side in a block."
    )
    subunit_size: int = Field(2, ge=1, description="Side of a subunit, in checks.")
    height: int = Field(8, ge=2, description="Height of the stimulus, in checks.")
    width: int = Field(8, ge=2, description="Width of the stimulus, in checks.")
    nonlinearity: Literal["identity", "rectify", "softplus", "exponential"] = Field(
        "rectify", description="Nonlinearity of the subunits."
    )
    output_nonlinearity: Literal["rectify", "softplus", "exponential"] = Field(
        "rectify", description="Nonlinearity of the cell, after the threshold is subtracted."
    )
    contrast: float = Field(
        0.5,
        gt=0,
        description="Factor on the stimulus, which is ±1 in the recording, before the subunits.",
    )
    weight_spread: float = Field(
        0.0,
        ge=0,
        description="Standard deviation of the logarithm of the subunits' output weights.",
    )
    threshold: float = Field(
        2.5,
        description="Threshold of the cell, in units of the summed subunits (1 in the text of Yan "
        "et al.).",
    )
    gain: float = Field(
        2.0, gt=0, description="Rate in Hz per unit of the summed subunits above the threshold."
    )
    polarity: Literal["off", "on"] = Field("off", description="Sign of the temporal filter.")
    frame_rate: float = Field(30.0, gt=0, description="Frames per second.")
    lags: int = Field(20, ge=3, description="Length of the temporal filter, in frames.")
    spikes: Literal["binary", "poisson"] = Field(
        "binary",
        description="'binary': at most one spike per bin, as in Yan et al.; 'poisson': Poisson "
        "counts.",
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
                    raise ValueError(
                        f"the preset {self.preset} has {name} {value}; leave out {name}"
                    )
        return self


def _two_cells(second_model: bool) -> NDArray[np.float32]:
    """Subunits (cell, subunit, y, x) of Zheng et al.'s models, of the norm of a 2 x 2 square."""
    maps = np.zeros((2, 4, 8, 8), np.float32)
    for cell, drawing in enumerate([CELL_A_II if second_model else CELL_A, CELL_B]):
        checks = np.array([list(row) for row in drawing.split()])
        for subunit in range(4):
            maps[cell, subunit] = checks == str(4 * cell + subunit + 1)
    norm: NDArray[np.float32] = np.sqrt((maps**2).sum((2, 3), keepdims=True))
    return 2 * maps / norm


class SubunitRGC(Dataset):
    """Simulated ganglion cells that sum rectified subunits and fire above a threshold.

    The rate of a cell in Hz is gain · g(Σ_i w_i f(Σ_{lag,y,x} temporal · subunit_i · contrast ·
    stimulus) - threshold) with the nonlinearities f of the subunits and g of the cell, which are
    rectifiers by default (Yan et al. 2020, section II-A). `rate` and `response` are in spikes per
    bin. The stimulus is white noise of ±1.

    The group `truth` has `subunit_weight (cell, subunit, y, x)`, `output_weight (cell, subunit)`,
    `temporal (lag)`, `threshold` and `gain (cell)`, from which `retinakit.simulation.cells_of`
    makes the cells again for another stimulus.

    Zheng et al. (2021) do not publish the shapes of their subunits. The presets have two
    overlapping cells of four OFF subunits each, all of the same norm. As in the paper, subunits 1
    and 5 are squares at different positions in model I, and subunit 1 is another shape, a diagonal
    here, in model II. The other subunits are bars, an L, a diagonal, a cross and a block. The
    cosine of any two of them but 1 and 5 is at most 0.71 at every shift, so that each subunit is
    recovered by a convolutional filter of its own. They have one temporal filter; `weight_spread`
    makes their weights unequal.

    Raises:
        UserError: if the subunits do not fit into the stimulus.

    Example:
        >>> options = {"frames": 500, "validation_frames": 100, "test_frames": 100, "repeats": 3}
        >>> recording = SubunitRGC.with_options(**options, cells=2).load()
        >>> dict(recording["truth"]["subunit_weight"].sizes)
        {'cell': 2, 'subunit': 4, 'y': 8, 'x': 8}
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
        """Subunits (cell, subunit, y, x): squares of ones, side by side in a block."""
        c = self.config
        if c.preset in ("zheng1", "zheng2"):
            return _two_cells(c.preset == "zheng2")
        columns = math.ceil(math.sqrt(c.subunits))
        rows = math.ceil(c.subunits / columns)
        block = (rows * c.subunit_size, columns * c.subunit_size)
        room = (c.height - block[0], c.width - block[1])
        if min(room) < 0:
            raise UserError(
                f"{c.subunits} subunits of {c.subunit_size} x {c.subunit_size} checks need a "
                f"stimulus of {block[0]} x {block[1]} checks; make height and width larger"
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
        """The temporal filter (lag,): a difference of two gamma functions, of unit norm."""
        c = self.config
        kernel = biphasic(c.lags, 1 / c.frame_rate, tau=0.05, delay=2 / 30)
        return -kernel if c.polarity == "off" else kernel
