"""A simulated population of linear neurons at random locations (Klindt et al. 2017, section 4)."""

from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts import Dataset, UserError
from retinakit.simulation import PopulationConfig, show

SURROUND_VARIANCE = 8.0
"""Variance of the surround Gaussian, in squared checks."""
CENTRE = 0.25
"""Variance of the centre Gaussian, relative to that of the surround."""
SURROUND_WEIGHT = 2.0
TILT = 0.3
"""Largest covariance of y and x in a heterogeneous field, relative to the smaller variance."""


class LinearPopulationConfig(PopulationConfig):
    """Options of the simulation."""

    cells: int = Field(100, ge=1, description="Number of neurons, divided equally among the types.")
    types: list[float] = Field(
        [1.0],
        min_length=1,
        description="Factor on the variances of each type's receptive field; below 1, the field is "
        "smaller.",
    )
    heterogeneity: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Variation v of the receptive fields within a type: aspect ratio, centre size "
        "and centre weight are multiplied by uniform random numbers in 1 ± v, and the field is "
        "tilted; 0: the fields of a type are equal.",
    )
    centred: bool = Field(
        True,
        description="Centre each receptive field on a check; otherwise up to half a check away "
        "from its middle.",
    )
    kernel: int = Field(17, ge=3, description="Side of a receptive field, in checks.")
    height: int = Field(48, ge=3, description="Height of the stimulus, in checks.")
    width: int = Field(48, ge=3, description="Width of the stimulus, in checks.")
    mean_magnitude: float = Field(
        0.1, gt=0, description="Mean absolute rate, in spikes per bin; rates may be negative."
    )


class LinearPopulation(Dataset):
    """Linear neurons with ON-centre receptive fields, under Gaussian white noise.

    The rates are r_n = a_n · s for stimuli s of variance 1, and the responses are y_n ~ N(r_n, SD
    √|r_n|) (Klindt et al. 2017, eq 1), both in spikes per bin. |a_n| is such that the mean of |r_n|
    is `mean_magnitude`. Rates and responses may be negative. A receptive field is a difference of
    Gaussian densities, N(0, C/4) - 2 N(0, C) with C = 8 t checks² for a type of scale t, as in the
    authors' code. Its location is random, and it lies completely within the stimulus.

    The group `truth` has the `kernel (type, kernel_y, kernel_x)` of each type, the
    `receptive_field (cell, kernel_y, kernel_x)`, its centre `location_y` and `location_x (cell)` in
    checks, and the `cell_type (cell)`.

    Raises:
        UserError: if a receptive field is larger than the stimulus.

    Example:
        >>> options = {"cells": 4, "types": [0.6, 1.0], "samples": 50, "test": 20}
        >>> recording = LinearPopulation.with_options(**options).load()
        >>> recording["truth"]["cell_type"].values.tolist()
        [0, 0, 1, 1]
    """

    Config = LinearPopulationConfig
    quick: ClassVar[dict[str, Any]] = {"samples": 50, "test": 20, "cells": 4, "types": [0.6, 1.0]}
    volatile = True

    def load(self) -> xr.DataTree:
        c = self.config
        room = (c.height - c.kernel, c.width - c.kernel)
        if min(room) < 0:
            raise UserError(
                f"receptive fields of {c.kernel} x {c.kernel} checks do not fit into a stimulus of "
                f"{c.height} x {c.width} checks; make kernel smaller"
            )
        random = np.random.default_rng([self.seed, 0])
        corners = np.stack([random.integers(0, r + 1, c.cells) for r in room], 1)
        types = np.sort(np.arange(c.cells) % len(c.types))
        fields = np.stack([self._field(c.types[t], random) for t in types])
        weights = np.zeros((c.cells, c.height, c.width), np.float32)
        for weight, field, (top, left) in zip(weights, fields, corners, strict=True):
            weight[top : top + c.kernel, left : left + c.kernel] = field
        flat = weights.reshape(c.cells, -1).T

        def stimulus(_: str, frames: int, random: np.random.Generator) -> NDArray[np.float32]:
            return random.standard_normal((frames, c.height, c.width), np.float32)

        def rate(images: NDArray[np.float32]) -> NDArray[np.float32]:
            return images.reshape(len(images), -1) @ flat

        axes, middle = ("kernel_y", "kernel_x"), corners + c.kernel // 2
        truth = xr.Dataset(
            {
                "kernel": (("type", *axes), np.stack([self._field(t) for t in c.types])),
                "receptive_field": (("cell", *axes), fields),
                "location_y": ("cell", middle[:, 0], {"units": "check"}),
                "location_x": ("cell", middle[:, 1], {"units": "check"}),
                "cell_type": ("cell", types),
            },
            coords={
                "cell": np.arange(c.cells),
                "type": np.arange(len(c.types)),
                "scale": ("type", c.types),
                **dict.fromkeys(axes, np.arange(c.kernel)),
            },
        )
        return show(c, self.seed, stimulus, rate, truth, "simulated linear population")

    def _field(self, scale: float, random: np.random.Generator | None = None) -> NDArray[Any]:
        """The receptive field (y, x) of a type, or of a random cell of it if `random` is given."""
        c = self.config
        draw = random.uniform if random is not None else lambda low, high: (low + high) / 2
        spread = (1 - c.heterogeneity, 1 + c.heterogeneity)
        aspect, centre_size, centre_weight = (draw(*spread) for _ in range(3))
        tilt = draw(-TILT, TILT) if c.heterogeneity else 0.0
        shift = [0.0, 0.0] if c.centred else [draw(-0.5, 0.5) for _ in range(2)]
        width = SURROUND_VARIANCE * scale * aspect
        height = width / aspect**2
        across = tilt * min(width, height)
        covariance = np.array([[height, across], [across, width]])
        side = np.arange(c.kernel) - c.kernel // 2
        at = np.stack(np.meshgrid(side - shift[0], side - shift[1], indexing="ij"), -1)
        field = centre_weight * _gaussian(at, CENTRE * centre_size * covariance)
        field -= SURROUND_WEIGHT * _gaussian(at, covariance)
        # r is normal with SD |a|, and the mean of |r| is √(2/π) |a|.
        return field * c.mean_magnitude / (np.linalg.norm(field) * np.sqrt(2 / np.pi))


def _gaussian(at: NDArray[Any], covariance: NDArray[Any]) -> NDArray[Any]:
    """The density of N(0, covariance) at points (..., 2)."""
    distance = np.einsum("...i,ij,...j->...", at, np.linalg.inv(covariance), at)
    density: NDArray[Any] = np.exp(-distance / 2) / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))
    return density
