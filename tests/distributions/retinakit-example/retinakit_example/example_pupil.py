"""A torch model with a covariate: a linear filter, and a gain that the pupil sets."""

from typing import Any, ClassVar

import torch
import xarray as xr
from torch import Tensor, nn

from retinakit import TorchModel


class PupilModule(nn.Module):
    """From frames (n + lags - 1, y, x) and covariates to rates (n, cell)."""

    def __init__(self, shape: tuple[int, int, int, int], covariates: int):
        super().__init__()
        self.kernel = nn.Parameter(0.01 * torch.randn(shape))  # (cell, lag, y, x)
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        self.gain = nn.Parameter(torch.zeros(shape[0], covariates))

    def forward(self, frames: Tensor, covariates: Tensor) -> Tensor:
        lags = self.kernel.shape[1]
        windows = frames.unfold(0, lags, 1).flip(-1)  # (n, y, x, lag)
        drive = torch.einsum("nyxl,clyx->nc", windows, self.kernel) + self.bias
        gain = (covariates[lags - 1 :] @ self.gain.T).exp()
        return nn.functional.softplus(drive) * gain


class ExamplePupil(TorchModel):
    """rate = softplus(filter · stimulus + bias) · exp(gain · covariates), the pupil among them."""

    quick: ClassVar[dict[str, Any]] = TorchModel.quick
    inputs: ClassVar[tuple[str, ...]] = ("stimulus", "covariates")

    def build(self, field: xr.Dataset) -> nn.Module:
        shape = tuple(field.sizes[dim] for dim in ("cell", "lag", "y", "x"))
        return PupilModule(shape, field.sizes["covariate"])

    def parameters(self) -> xr.Dataset:
        weights = {name: value.numpy() for name, value in self.module.state_dict().items()}
        return self.field.assign(
            kernel=(("cell", "lag", "y", "x"), weights["kernel"]),
            gain=(("cell", "covariate"), weights["gain"]),
        )
