"""A torch model with a likelihood of its own: counts more variable than Poisson's."""

from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from retinakit import TorchModel


class OverdispersedModule(nn.Module):
    """From frames (n + lags - 1, y, x) to rates (n, cell); it holds the likelihood's parameter."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.kernel = nn.Parameter(0.01 * torch.randn(shape))  # (cell, lag, y, x)
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        self.log_dispersion = nn.Parameter(torch.zeros(shape[0]))

    def forward(self, frames: Tensor) -> Tensor:
        windows = frames.unfold(0, self.kernel.shape[1], 1).flip(-1)  # (n, y, x, lag)
        drive = torch.einsum("nyxl,clyx->nc", windows, self.kernel) + self.bias
        return nn.functional.softplus(drive)


class ExampleNegativeBinomial(TorchModel):
    """Counts of mean μ and variance μ + dispersion · μ², with a dispersion for each cell."""

    cells_apart: ClassVar[bool] = True  # no parameter belongs to two cells

    def build(self, field: xr.Dataset) -> nn.Module:
        return OverdispersedModule(tuple(field.sizes[dim] for dim in ("cell", "lag", "y", "x")))

    def loss(self, module: Any, prediction: Tensor, target: Tensor) -> Tensor:
        count = (-module.log_dispersion).exp()
        logits = (prediction + 1e-8).log() + module.log_dispersion
        counts = torch.distributions.NegativeBinomial(count, logits=logits, validate_args=False)
        return -counts.log_prob(target)

    def parameters(self) -> xr.Dataset:
        weights = {name: value.numpy() for name, value in self.module.state_dict().items()}
        return self.field.assign(
            kernel=(("cell", "lag", "y", "x"), weights["kernel"]),
            dispersion=("cell", np.exp(weights["log_dispersion"])),
        )
