"""A torch model with a likelihood of its own: counts more variable than Poisson's."""

from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from retinakit import TorchModel
from retinakit.training import randn_of_cells


class OverdispersedModule(nn.Module):
    """From frames (n + lags - 1, y, x) to rates (n, cell); it holds the likelihood's parameter."""

    def __init__(self, kernel: Tensor):
        super().__init__()
        self.kernel = nn.Parameter(kernel)  # (cell, lag, y, x)
        self.bias = nn.Parameter(torch.zeros(len(kernel)))
        self.log_dispersion = nn.Parameter(torch.zeros(len(kernel)))

    def forward(self, frames: Tensor) -> Tensor:
        windows = frames.unfold(0, self.kernel.shape[1], 1).flip(-1)  # (n, y, x, lag)
        drive = torch.einsum("nyxl,clyx->nc", windows, self.kernel) + self.bias
        return nn.functional.softplus(drive)


class ExampleNegativeBinomial(TorchModel):
    """Counts of mean μ and variance μ + dispersion · μ², with a dispersion for each cell."""

    # No parameter belongs to two cells, so that each is fitted as if it were alone.
    cells_apart: ClassVar[bool] = True

    def build(self, field: xr.Dataset) -> nn.Module:
        shape = (field.sizes[dim] for dim in ("lag", "y", "x"))
        return OverdispersedModule(0.01 * randn_of_cells(field, *shape))

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
