"""One linear filter and a fixed nonlinearity for each cell: GLM and LNP of Klindt et al. (2017)."""

import math
from typing import Any, ClassVar, Literal

import torch
import xarray as xr
from pydantic import Field
from torch import Tensor, nn

from retinakit.contracts import as_response, mean_response, space_sizes
from retinakit.layers import filter_in_space_and_time, roughness
from retinakit.training import ImageModelConfig, TorchModel, randn_of_cells

FILTER_START = 1e-3
"""Standard deviation that filters start with."""

LNP_OFFSET = -1.0


class GLMConfig(ImageModelConfig):
    """Options of the GLM."""

    ridge: float = Field(0.1, ge=0, description="Weight of a filter's sum of squares.")
    loss: Literal["mse"] = Field("mse", description="What to minimise; a rate may be negative.")


class LNPConfig(ImageModelConfig):
    """Options of the LNP model."""

    smoothness: float = Field(
        0.02,
        ge=0,
        description="Weight of a filter's squared Laplacian over its power, which is of its shape.",
    )
    sparsity: float = Field(0.02, ge=0, description="Weight of a filter's sum of absolute values.")
    drops: int = Field(0, ge=0, description="Drops of the learning rate before the end.")


class GLMModule(nn.Module):
    """f(Σ filter · stimulus + offset) + bias, one filter for each cell."""

    def __init__(self, start: Tensor, nonlinearity: Literal["relu", "exp"]):
        super().__init__()
        cells = len(start)
        self.nonlinearity = nonlinearity
        self.filter = nn.Parameter(start * FILTER_START)  # (cell, lag, pixel)
        self.offset = nn.Parameter(torch.full((cells,), LNP_OFFSET))
        if nonlinearity == "relu":
            self.bias = nn.Parameter(torch.zeros(cells))

    def forward(self, frames: Tensor, every: int = 1) -> Tensor:
        drive = filter_in_space_and_time(frames.flatten(1), self.filter, every) + self.offset
        return drive.relu() + self.bias if self.nonlinearity == "relu" else drive.exp()


class GLM(TorchModel):
    """A linear filter, a ReLU, and a constant after it, with a ridge penalty (section 5.1).

    rate = max(0, Σ filter · stimulus + offset) + bias, by least squares. Each cell is fitted as if
    it were alone.
    """

    Config: ClassVar[type[ImageModelConfig]] = GLMConfig
    cells_apart = True
    nonlinearity: Literal["relu", "exp"] = "relu"

    def build(self, field: xr.Dataset) -> nn.Module:
        pixels = math.prod(space_sizes(field).values())
        return GLMModule(randn_of_cells(field, self.lags, pixels), self.nonlinearity)

    def initialise(self, module: nn.Module, recording: xr.DataTree) -> None:
        """Starts at the mean response, where every cell's ReLU is open."""
        assert isinstance(module, GLMModule)
        if module.nonlinearity == "relu":
            train = as_response(recording["train"].to_dataset(), self.config.target)
            mean = mean_response(train).astype(float).mean("frame")
            with torch.no_grad():
                module.offset.copy_(torch.from_numpy(mean.fillna(0).values).clamp_min(0.01))

    def penalty(self, module: nn.Module, prediction: Tensor) -> Tensor:
        assert isinstance(module, GLMModule)
        return self.config.ridge * (module.filter**2).sum()

    def parameters(self) -> xr.Dataset:
        self.check_fitted()
        module: Any = self.module
        space = space_sizes(self.field)
        kernel = module.filter.detach().unflatten(2, list(space.values()))
        variables = {
            "kernel": (("cell", "lag", *space), kernel.numpy()),
            "offset": ("cell", module.offset.detach().numpy()),
        }
        if module.nonlinearity == "relu":
            variables["bias"] = ("cell", module.bias.detach().numpy())
        return self.field.assign(variables)


class LNP(GLM):
    """A linear filter, an exponential and Poisson spikes, smooth and sparse (section 5.2).

    rate = exp(Σ filter · stimulus + offset), by Poisson likelihood.
    """

    Config = LNPConfig
    nonlinearity: Literal["relu", "exp"] = "exp"

    def penalty(self, module: nn.Module, prediction: Tensor) -> Tensor:
        assert isinstance(module, GLMModule)
        c = self.config
        images = module.filter.unflatten(2, (-1, self.field.sizes["y"], self.field.sizes["x"]))
        rough, sparse = roughness(images), module.filter.abs().sum()
        return c.smoothness * rough + c.sparsity * sparse
