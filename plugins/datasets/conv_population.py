"""Simulated cells that are units of a fixed convolutional network (Klindt et al. 2017, 5.1)."""

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
"""Checks from the border of a patch to the centres of the outermost units' receptive fields."""

ORIENTATIONS, GABOR, WAVELENGTH, SECOND = 4, 7, 4.0, 5
"""The Gabor network: number of orientations, side and wavelength of the Gabor filters in checks,
and side of the filters of the second layer."""

VGG_LAYERS = ("features.0", "features.2", "features.5", "features.7")
"""Layers conv1_1, conv1_2, conv2_1 and conv2_2 of torchvision's VGG-19. Max pooling separates the
first two from the last two."""

SCENES = {"train": 16, "test": 4}
"""Number of simulated scenes from which the patches are cut."""

SCENE_SIZE = 512
"""Side of a simulated scene, in checks."""

CALIBRATION = 512
"""Number of patches from which thresholds and gains are determined."""

BLOCK = 256
"""Patches per block of network evaluation."""


class ConvPopulationConfig(PopulationConfig):
    """Options of the simulation."""

    types: int = Field(4, ge=1, description="Number of cell types; each is one feature map.")
    cells_per_type: int = Field(
        250, ge=1, description="Cells of each type, at random positions of the map."
    )
    network: Literal["gabor", "vgg19"] = Field(
        "gabor",
        description="'gabor': random sums of rectified and pooled Gabor filters; 'vgg19': maps of "
        "layer conv2_2 of VGG-19, as in the paper, which needs the option weights.",
    )
    weights: InputPath | None = Field(
        None, description="File of torchvision's weights of VGG-19, such as vgg19-dcbb9e9d.pth."
    )
    images: Literal["dead_leaves", "pink_noise", "photographs"] = Field(
        "dead_leaves",
        description="Images from which patches are cut; the photographs come with scikit-image "
        "(retinakit[natural]).",
    )
    pixels: int = Field(
        2, ge=1, description="Side, in pixels, of the square of a photograph averaged to one check."
    )
    size: int = Field(44, ge=2 * MARGIN + 1, description="Side of a patch, in checks.")
    silent: float = Field(
        0.6, ge=0, lt=1, description="Fraction of the patches for which a 'gabor' unit has rate 0."
    )
    mean_rate: float = Field(0.1, gt=0, description="Mean rate of each type, in spikes per bin.")
    spikes: bool = Field(
        False,
        description="Responses are Poisson spike counts; otherwise rates with Gaussian noise.",
    )
    repeats: int = Field(1, ge=1, description="Number of presentations of each test image.")
    validation: float = Field(
        0.125, gt=0, lt=1, description="Fraction of the samples used for validation."
    )
    validation_most: int = Field(1024, ge=1, description="Largest number of validation samples.")
    test: int = Field(1024, ge=1, description="Number of additional images for the test.")


class ConvPopulation(Dataset):
    """Nonlinear cells: units of a fixed convolutional network with noisy responses to patches.

    Each cell type is one feature map, and the cells of a type are units at random positions of the
    map. The rates r are scaled to `mean_rate` spikes per bin, and the responses are y ~ N(r, SD √r)
    (Klindt et al. 2017, eq 1), or Poisson counts. Each patch is one frame.

    The paper uses VGG-19, whose weights are a file (`network: vgg19`). Here its pooling has stride
    1 and the later filters are dilated, so that there is a unit at every check. Patches are grey:
    the three input channels are equal. `network: gabor` needs no file. It has rectified Gabor
    filters of 7 x 7 checks with four orientations and four phases, a mean of each over 3 x 3
    positions, and for each type a random weighted sum over 5 x 5 positions, rectified. Its units
    have receptive fields of 13 x 13 checks, and a linear model explains about a fifth of their
    variance, as in the paper.

    Test patches come from other scenes than training patches, or from the last third of each
    photograph. The group `truth` has the centre of each cell's receptive field, `location_y` and
    `location_x (cell)` in checks, and the `cell_type (cell)`.

    Raises:
        UserError: if the weights are missing or not those of VGG-19, there are more types than
            feature maps, or a patch is larger than a third of a photograph.

    Example:
        >>> options = {"types": 2, "cells_per_type": 3, "size": 20, "samples": 50, "test": 20}
        >>> recording = ConvPopulation.with_options(**options).load()
        >>> dict(recording["test"]["response"].sizes)
        {'frame': 20, 'cell': 6}
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
        """The scenes (y, x) from which the patches of a split are cut."""
        c = self.config
        if c.images == "photographs":
            scenes = []
            for title, scene in photographs().items():
                averaged = _averaged(scene, c.pixels)
                cut = averaged.shape[1] * 2 // 3
                part = averaged[:, :cut] if name == "train" else averaged[:, cut:]
                if min(part.shape) < c.size:
                    raise UserError(
                        f"a patch of {c.size} checks of {c.pixels} pixels does not fit into a "
                        f"third of the photograph '{title}'; make pixels or size smaller"
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
                "network: vgg19 needs torchvision's weights of VGG-19; set weights to the file"
            )
        try:
            state: dict[str, Tensor] = torch.load(c.weights, map_location="cpu", weights_only=True)
            layers = [(state[f"{n}.weight"], state[f"{n}.bias"]) for n in VGG_LAYERS]
        except Exception as error:  # torch raises many types for a file of another format
            raise UserError(
                f"{c.weights} does not hold torchvision's weights of VGG-19 "
                f"({type(error).__name__}); save the state_dict of torchvision's vgg19"
            ) from None
        available = len(layers[-1][1])
        if c.types > available:
            raise UserError(
                f"types is {c.types} and layer conv2_2 has {available} maps; make types smaller"
            )
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
    """A photograph (y, x) averaged over squares of `pixels` x `pixels`."""
    height, width = (side // pixels * pixels for side in scene.shape)
    squares = scene[:height, :width].reshape(height // pixels, pixels, width // pixels, pixels)
    averaged: NDArray[np.float64] = squares.mean((1, 3))
    return averaged


def _patches(
    scenes: list[NDArray[np.float64]], count: int, size: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Square patches (patch, y, x) from random positions of random scenes."""
    patches = np.empty((count, size, size), np.float32)
    for patch, (which, *corner) in zip(patches, random.random((count, 3)), strict=True):
        scene = scenes[int(which * len(scenes))]
        top, left = (int(u * (n - size + 1)) for u, n in zip(corner, scene.shape, strict=True))
        patch[:] = scene[top : top + size, left : left + size]
    return patches
