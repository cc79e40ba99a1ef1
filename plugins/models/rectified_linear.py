"""One linear filter and a ReLU or exponential per cell: baselines of Klindt et al. (2017)."""

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
"""Standard deviation of the initial filters."""

LNP_OFFSET = -1.0
"""Initial offset, before the nonlinearity."""


class RectifiedLinearConfig(ImageModelConfig):
    """Options of the rectified linear model."""

    ridge: float = Field(0.1, ge=0, description="Weight of the filter's sum of squares.")
    loss: Literal["mse"] = Field(
        "mse", description="Squared error only, because the predicted rate may be negative."
    )


class LNPConfig(ImageModelConfig):
    """Options of the LNP model."""

    smoothness: float = Field(
        0.02,
        ge=0,
        description="Weight of the filter's squared Laplacian divided by its power, which does "
        "not depend on the filter's scale.",
    )
    sparsity: float = Field(0.02, ge=0, description="Weight of the filter's L1 norm.")
    drops: int = Field(
        0, ge=0, description="How often the learning rate is lowered before training ends."
    )


class FilterModule(nn.Module):
    """f(Σ filter · stimulus + offset) + bias, with one filter for each cell.

    `forward` maps frames (n + lags - 1, [channel,] y, x) to rates (n, cell).

    Args:
        start: normal random numbers (cell, lag, pixel), scaled to the initial filters.
        nonlinearity: f.
    """

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


class RectifiedLinear(TorchModel):
    """A linear filter, a ReLU and a constant, fitted by least squares with a ridge penalty.

    The rate of a cell in the units of the response is max(0, Σ filter · stimulus + offset) + bias
    (the GLM of Klindt et al. 2017, section 5.1). Cells are fitted independently. `parameters()`
    has `kernel (cell, lag, [channel,] y, x)`, `offset` and `bias (cell)`.

    Raises:
        RecordingError: by `fit`, if the recording does not keep its contract.

    Example:
        >>> from retinakit.testing import small_recording
        >>> model = RectifiedLinear.with_options(steps=10, accelerator="cpu")
        >>> _ = model.fit(small_recording())
        >>> dict(model.parameters()["kernel"].sizes)
        {'cell': 2, 'lag': 1, 'y': 8, 'x': 8}
    """

    Config: ClassVar[type[ImageModelConfig]] = RectifiedLinearConfig
    cells_apart = True
    nonlinearity: Literal["relu", "exp"] = "relu"

    def build(self, field: xr.Dataset) -> nn.Module:
        pixels = math.prod(space_sizes(field).values())
        return FilterModule(randn_of_cells(field, self.lags, pixels), self.nonlinearity)

    def initialise(self, module: nn.Module, recording: xr.DataTree) -> None:
        """Sets the offset to the mean response, at which every cell's ReLU has a gradient."""
        assert isinstance(module, FilterModule)
        if module.nonlinearity == "relu":
            train = as_response(recording["train"].to_dataset(), self.config.target)
            mean = mean_response(train).astype(float).mean("frame")
            with torch.no_grad():
                module.offset.copy_(torch.from_numpy(mean.fillna(0).values).clamp_min(0.01))

    def penalty(self, module: nn.Module, prediction: Tensor) -> Tensor:
        assert isinstance(module, FilterModule)
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


class LNP(RectifiedLinear):
    """A smooth and sparse linear filter and an exponential, fitted by Poisson likelihood.

    The rate of a cell in spikes per bin is exp(Σ filter · stimulus + offset) (Klindt et al. 2017,
    section 5.2). The penalty is `smoothness` · |∇² filter|² / |filter|² + `sparsity` · Σ |filter|.
    `parameters()` has `kernel (cell, lag, [channel,] y, x)` and `offset (cell)`.

    Raises:
        RecordingError: by `fit`, if the recording does not keep its contract.

    Example:
        >>> from retinakit.testing import small_recording
        >>> model = LNP.with_options(steps=10, accelerator="cpu")
        >>> _ = model.fit(small_recording())
        >>> sorted(map(str, model.parameters().data_vars))
        ['kernel', 'offset']
    """

    Config = LNPConfig
    nonlinearity: Literal["relu", "exp"] = "exp"

    def penalty(self, module: nn.Module, prediction: Tensor) -> Tensor:
        assert isinstance(module, FilterModule)
        c = self.config
        images = module.filter.unflatten(2, (-1, self.field.sizes["y"], self.field.sizes["x"]))
        rough, sparse = roughness(images), module.filter.abs().sum()
        return c.smoothness * rough + c.sparsity * sparse
