"""A population of units of a convolutional network that see image patches (Klindt 2017, 5.1)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

from retinakit.contracts import Dataset, InputPath, UserError
from retinakit.simulation import PopulationConfig, dead_leaves, photographs, pink_noise, show

MARGIN = 6
"""Checks between the border of a patch and the middle of the outermost units' fields."""

ORIENTATIONS, GABOR, WAVELENGTH, SECOND = 4, 7, 4.0, 5
"""Of the Gabor network: orientations, side and wavelength of its filters, side of the second."""

VGG_LAYERS = ("features.0", "features.2", "features.5", "features.7")
"""conv1_1, conv1_2, conv2_1 and conv2_2 in torchvision's VGG-19, with max pooling between the
blocks."""

SCENES = {"train": 16, "test": 4}
SCENE_SIZE = 512
CALIBRATION = 512
"""Images that thresholds and gains are chosen on."""

BLOCK = 256


class ConvPopulationConfig(PopulationConfig):
    """Options of the simulation."""

    types: int = Field(4, ge=1, description="Feature maps that cells are taken from: cell types.")
    cells_per_type: int = Field(250, ge=1, description="Cells of each, at random places.")
    network: Literal["gabor", "vgg19"] = Field(
        "gabor",
        description="'gabor': oriented filters, pooling, and random sums of them; "
        "'vgg19': maps of layer conv2_2 of VGG-19, as in the paper; it needs weights.",
    )
    weights: InputPath | None = Field(
        None, description="torchvision's weights of VGG-19, a file such as vgg19-dcbb9e9d.pth."
    )
    images: Literal["dead_leaves", "pink_noise", "photographs"] = Field(
        "dead_leaves",
        description="What patches are cut from; photographs are scikit-image's "
        "(retinakit[natural]).",
    )
    pixels: int = Field(
        2, ge=1, description="Side of the square of a photograph's pixels averaged to a check."
    )
    size: int = Field(44, ge=2 * MARGIN + 1, description="Side of a patch, in checks.")
    silent: float = Field(
        0.6, ge=0, lt=1, description="Part of the patches that a unit of 'gabor' is silent at."
    )
    mean_rate: float = Field(0.1, gt=0, description="Mean rate of a cell type, spikes per bin.")
    spikes: bool = Field(
        False, description="Whether responses are Poisson counts, rather than noisy rates."
    )
    repeats: int = Field(1, ge=1, description="How often each test image is shown.")
    validation: float = Field(
        0.125, gt=0, lt=1, description="Part of the samples that is for validation."
    )
    validation_most: int = Field(1024, ge=1, description="At most so many are for validation.")
    test: int = Field(1024, ge=1, description="More images, for the test.")


class ConvPopulation(Dataset):
    """Nonlinear cells: units of a fixed convolutional network, their noisy rates to grey patches.

    A type is a feature map, and its cells are units at random places of it. Rates are scaled to
    `mean_rate` and responses are y ~ N(r, SD √r), as in the paper, which takes VGG-19. Without its
    weights, `gabor` is a network that needs no file: rectified Gabor filters of four orientations
    and four phases (7 x 7), the mean of each over 3 x 3 places, and for each type a random weighted
    sum of those (5 x 5), rectified. Its units see 13 x 13 checks, and a linear model explains about
    a fifth of their variance, as in the paper. In `vgg19` pooling moves
    by one check, with the filters after it dilated, so that there is a unit at every check; it sees
    grey patches in its three channels.

    Test patches are from other scenes than the training patches, or of photographs from their last
    third. In `truth` are the check `location_y` and `location_x (cell)` in the middle of a cell's
    field, and its `cell_type (cell)`.
    """

    Config = ConvPopulationConfig
    quick: ClassVar[dict[str, Any]] = {
        "samples": 50,
        "test": 20,
        "types": 2,
        "cells_per_type": 3,
        "size": 20,
    }

    def files(self) -> list[Path]:
        c = self.config
        return [c.weights] if c.network == "vgg19" and c.weights else []

    def load(self) -> xr.DataTree:
        c = self.config
        network = self._vgg19() if c.network == "vgg19" else self._gabor()
        scenes = {name: self._scenes(name) for name in SCENES}

        def stimulus(name: str, frames: int, random: np.random.Generator) -> NDArray[np.float32]:
            return _patches(scenes[name], frames, c.size, random)

        random = np.random.default_rng([self.seed, 0])
        seen = stimulus("train", CALIBRATION, random)
        maps = np.concatenate([network(seen[i : i + BLOCK]) for i in range(0, len(seen), BLOCK)])
        values = maps.transpose(1, 0, 2, 3).reshape(c.types, -1)
        quantile = c.silent if c.network == "gabor" else 0.0
        threshold = np.quantile(values, quantile, axis=1, keepdims=True)
        gain = c.mean_rate / np.maximum(values - threshold, 0).mean(1)
        cell_type = np.repeat(np.arange(c.types), c.cells_per_type)
        places = random.integers(0, c.size - 2 * MARGIN, (2, len(cell_type)))

        def rate(images: NDArray[np.float32]) -> NDArray[np.float32]:
            rates = np.empty((len(images), len(cell_type)), np.float32)
            for start in range(0, len(images), BLOCK):
                block = slice(start, start + BLOCK)
                drive = network(images[block])[:, cell_type, places[0], places[1]]
                above = np.maximum(drive - threshold[cell_type, 0], 0)
                rates[block] = above * gain[cell_type]
            return rates

        truth = xr.Dataset(
            {
                "location_y": ("cell", places[0] + MARGIN, {"units": "check"}),
                "location_x": ("cell", places[1] + MARGIN, {"units": "check"}),
                "cell_type": ("cell", cell_type),
            },
            coords={"cell": np.arange(len(cell_type))},
        )
        title = f"simulated units of {c.network}"
        return show(c, self.seed, stimulus, rate, truth, title, c.spikes, c.repeats)

    def _scenes(self, name: str) -> list[NDArray[np.float64]]:
        """What patches for training or for the test are cut from."""
        c = self.config
        if c.images == "photographs":
            scenes = []
            for title, scene in photographs().items():
                averaged = _averaged(scene, c.pixels)
                cut = averaged.shape[1] * 2 // 3
                part = averaged[:, :cut] if name == "train" else averaged[:, cut:]
                if min(part.shape) < c.size:
                    raise UserError(
                        f"patches of {c.size} checks of {c.pixels} pixels do not fit into a third "
                        f"of the photograph '{title}'; make pixels or size smaller"
                    )
                scenes.append(part)
            return scenes
        make = dead_leaves if c.images == "dead_leaves" else pink_noise
        random = np.random.default_rng([self.seed, 3, len(name)])
        return [make(max(SCENE_SIZE, c.size), random) for _ in range(SCENES[name])]

    def _gabor(self) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """The Gabor network, from patches (n, y, x) to maps (n, type, y, x)."""
        random = np.random.default_rng([self.seed, 4])
        side = np.arange(GABOR) - GABOR // 2
        y, x = np.meshgrid(side, side, indexing="ij")
        window = np.exp(-(y**2 + x**2) / (2 * (GABOR / 4) ** 2))
        filters = []
        for angle in np.pi * np.arange(ORIENTATIONS) / ORIENTATIONS:
            wave = 2 * np.pi / WAVELENGTH * (np.cos(angle) * x + np.sin(angle) * y)
            for phase in np.pi / 2 * np.arange(4):
                gabor = window * np.cos(wave + phase)
                gabor -= window * gabor.sum() / window.sum()
                filters.append(gabor / np.linalg.norm(gabor))
        first = torch.from_numpy(np.stack(filters)[:, None].astype(np.float32))
        side = np.arange(SECOND) - SECOND // 2
        window = np.exp(-(side[:, None] ** 2 + side**2) / (2 * (SECOND / 4) ** 2))
        weights = random.standard_normal((self.config.types, len(filters), SECOND, SECOND)) * window
        second = torch.from_numpy(weights.astype(np.float32))

        def maps(images: NDArray[np.float32]) -> NDArray[np.float32]:
            pooled = avg_pool2d(conv2d(torch.from_numpy(images)[:, None], first).relu(), 3, 1)
            drive: NDArray[np.float32] = conv2d(pooled, second).numpy()
            return drive

        return maps

    def _vgg19(self) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
        """Random maps of layer conv2_2, from patches (n, y, x) to maps (n, type, y, x)."""
        c = self.config
        if c.weights is None:
            raise UserError(
                "network vgg19 needs torchvision's weights of it; give the file as weights"
            )
        try:
            state: dict[str, Tensor] = torch.load(c.weights, map_location="cpu", weights_only=True)
            layers = [(state[f"{n}.weight"], state[f"{n}.bias"]) for n in VGG_LAYERS]
        except Exception as error:  # whatever torch raises for a file that is none of its own
            raise UserError(
                f"{c.weights} does not hold torchvision's weights of VGG-19 "
                f"({type(error).__name__}); save the state_dict of torchvision's vgg19"
            ) from None
        available = len(layers[-1][1])
        if c.types > available:
            raise UserError(f"layer conv2_2 has {available} maps; make types no more than that")
        random = np.random.default_rng([self.seed, 4])
        chosen = torch.from_numpy(random.permutation(available)[: c.types])
        layers[-1] = (layers[-1][0][chosen], layers[-1][1][chosen])

        def maps(images: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.no_grad():
                hidden = torch.from_numpy(images)[:, None].expand(-1, 3, -1, -1)
                for weight, bias in layers[:2]:
                    hidden = conv2d(hidden, weight, bias, padding=1).relu()
                hidden = max_pool2d(pad(hidden, (0, 1, 0, 1)), 2, 1)
                for weight, bias in layers[2:]:
                    hidden = conv2d(hidden, weight, bias, padding=2, dilation=2).relu()
            inner: NDArray[np.float32] = hidden.numpy()[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
            return inner

        return maps


def _averaged(scene: NDArray[Any], pixels: int) -> NDArray[np.float64]:
    """A photograph averaged over squares of pixels."""
    height, width = (side // pixels * pixels for side in scene.shape)
    squares = scene[:height, :width].reshape(height // pixels, pixels, width // pixels, pixels)
    averaged: NDArray[np.float64] = squares.mean((1, 3))
    return averaged


def _patches(
    scenes: list[NDArray[np.float64]], count: int, size: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Square patches (patch, y, x) from random places of random scenes."""
    patches = np.empty((count, size, size), np.float32)
    for patch, (which, *corner) in zip(patches, random.random((count, 3)), strict=True):
        scene = scenes[int(which * len(scenes))]
        top, left = (int(u * (n - size + 1)) for u, n in zip(corner, scene.shape, strict=True))
        patch[:] = scene[top : top + size, left : left + size]
    return patches
