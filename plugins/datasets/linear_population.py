"""A population of linear neurons at many places (Klindt et al. 2017, section 4)."""

from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from retinakit.contracts import Dataset, UserError
from retinakit.simulation import PopulationConfig, show

SURROUND_VARIANCE = 8.0
"""Of the surround, in squared checks; that of the centre is a quarter of it."""
CENTRE = 0.25
SURROUND_WEIGHT = 2.0
TILT = 0.3
"""Largest covariance of y and x in a field that is not round, of the smaller variance."""


class LinearPopulationConfig(PopulationConfig):
    """Options of the simulation."""

    cells: int = Field(100, ge=1, description="Neurons, shared out among the types.")
    types: list[float] = Field(
        [1.0],
        min_length=1,
        description="For each type, the scale of its variances: 0.6 is a smaller field.",
    )
    heterogeneity: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Spread v of the fields within a type: aspect, centre size and centre weight "
        "are multiplied by uniform numbers in 1 ± v, and the field is tilted; 0: all the same.",
    )
    centred: bool = Field(
        True, description="Whether fields are centred on a check, or up to half a check beside it."
    )
    kernel: int = Field(17, ge=3, description="Side of a receptive field, in checks.")
    height: int = Field(48, ge=3, description="Height of the stimulus, in checks.")
    width: int = Field(48, ge=3, description="Width of the stimulus, in checks.")
    mean_magnitude: float = Field(0.1, gt=0, description="Mean |rate|, in spikes per bin.")


class LinearPopulation(Dataset):
    """Linear neurons with ON-centre fields that see Gaussian white noise, and their noisy rates.

    r_n = a_n · s and y_n ~ N(r_n, SD √|r_n|) (eq 1), of stimuli s of variance 1 and with |a| such
    that ⟨|r|⟩ is `mean_magnitude`. A field is a difference of Gaussians, k = N(0, C/4) - 2 N(0, C)
    with C = 8 t checks² in a type of scale t, as in the authors' code; it lies anywhere in the
    stimulus as a whole.

    The recording has the true `rate`, which may be negative, as the responses may. In `truth` are
    the `kernel (type, kernel_y, kernel_x)` of each type, the `receptive_field (cell, kernel_y,
    kernel_x)`, the check `location_y` and `location_x (cell)` of its middle, and the `cell_type
    (cell)`.
    """

    Config = LinearPopulationConfig
    quick: ClassVar[dict[str, Any]] = {"samples": 50, "test": 20, "cells": 4, "types": [0.6, 1.0]}
    volatile = True

    def load(self) -> xr.DataTree:
        c = self.config
        room = (c.height - c.kernel, c.width - c.kernel)
        if min(room) < 0:
            raise UserError(
                f"fields of {c.kernel} checks do not fit into a stimulus of {c.height} x "
                f"{c.width}; make kernel smaller"
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
        """The receptive field (y, x) of a type, or of one of its cells if a generator is given."""
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
    """The normal density of a covariance at points (..., 2)."""
    distance = np.einsum("...i,ij,...j->...", at, np.linalg.inv(covariance), at)
    density: NDArray[Any] = np.exp(-distance / 2) / (2 * np.pi * np.sqrt(np.linalg.det(covariance)))
    return density
