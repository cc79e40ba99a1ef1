"""The linear-nonlinear model, fitted by Poisson likelihood."""

import math
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor, nn

from retinakit.contracts import as_response, first_frames, mean_response, space_sizes
from retinakit.layers import filter_in_space_and_time
from retinakit.spikes import sta
from retinakit.training import TorchConfig, TorchModel


class LNConfig(TorchConfig):
    """Options of the LN model."""

    rank: int = Field(
        1,
        ge=0,
        description="The filter is a sum of this many products of a spatial map and a temporal "
        "filter; 0: an unconstrained filter.",
    )
    nonlinearity: Literal["softplus", "exponential"] = Field(
        "softplus",
        description="Output nonlinearity: gain · log(1 + exp(x)), or exp(x), of the filtered "
        "stimulus x.",
    )
    smoothness: float = Field(
        1e-4,
        ge=0,
        description="Weight of the squared second differences of the filter in space and time.",
    )
    sparsity: float = Field(1e-5, ge=0, description="Weight of the L1 norm of the spatial filter.")
    steps: int = Field(2000, ge=1, description="Largest number of training steps.")
    learning_rate: float = Field(3e-2, gt=0, description="Initial learning rate of Adam.")


class LNModule(nn.Module):
    """rate = gain · f(Σ filter · stimulus + offset), with one filter for each cell.

    `forward` maps frames (n + lags - 1, [channel,] y, x) to rates (n, cell) in spikes per bin.
    """

    def __init__(self, cells: int, lags: int, pixels: int, rank: int, nonlinearity: str):
        super().__init__()
        self.lags, self.nonlinearity, self.rank = lags, nonlinearity, rank
        # `initialise` sets the filters. Components beyond the rank of the average stay 0.
        if rank:
            self.temporal = nn.Parameter(torch.zeros(cells, rank, lags))
            self.spatial = nn.Parameter(torch.zeros(cells, rank, pixels))
        else:
            self.filter = nn.Parameter(torch.zeros(cells, lags, pixels))
        self.offset = nn.Parameter(torch.full((cells,), -2.0))
        self.log_gain = nn.Parameter(torch.zeros(cells))

    def full_filter(self) -> Tensor:
        """(cell, lag, pixel)."""
        if not self.rank:
            return self.filter
        return torch.einsum("crl,crp->clp", self.temporal, self.spatial)

    def forward(self, frames: Tensor, every: int = 1) -> Tensor:
        flat = frames.flatten(1)
        if self.rank:
            cells, rank, lags = self.temporal.shape
            seen = (flat @ self.spatial.flatten(0, 1).T).view(-1, cells, rank)
            windows = seen.unfold(0, lags, every).flip(-1)
            drive = torch.einsum("ncrl,crl->nc", windows, self.temporal)
        else:
            drive = filter_in_space_and_time(flat, self.filter, every)
        drive = drive + self.offset
        if self.nonlinearity == "exponential":
            return torch.exp(drive)
        return torch.exp(self.log_gain) * nn.functional.softplus(drive)


class LN(TorchModel):
    """A linear filter and a static nonlinearity for each cell, fitted by Poisson likelihood.

    The rate of a cell in spikes per bin is gain · log(1 + exp(Σ_{lag,y,x} filter · stimulus +
    offset)), or exp(Σ filter · stimulus + offset). The filter is unconstrained or a sum of `rank`
    products of a spatial map and a temporal filter. It starts at the spike-triggered average, and
    penalties keep it smooth and sparse. Cells are fitted independently. `parameters()` has `kernel
    (cell, lag, [channel,] y, x)`, `offset` and `gain (cell)`.

    Raises:
        RecordingError: by `fit`, if the recording does not keep its contract, or its responses are
            centred on 0 and the loss is Poisson.

    Example:
        >>> from retinakit.testing import small_recording
        >>> recording = small_recording()
        >>> model = LN.with_options(lags=5, steps=10, accelerator="cpu")
        >>> _ = model.fit(recording)
        >>> dict(model.predict(recording["test"].to_dataset()).sizes)
        {'frame': 500, 'cell': 2}
    """

    Config = LNConfig
    cells_apart = True

    def build(self, field: xr.Dataset) -> nn.Module:
        pixels = math.prod(space_sizes(field).values())
        c = self.config
        return LNModule(field.sizes["cell"], c.lags, pixels, c.rank, c.nonlinearity)

    def initialise(self, module: nn.Module, recording: xr.DataTree) -> None:
        assert isinstance(module, LNModule)
        split = as_response(recording["train"].to_dataset(), self.config.target)
        measured = np.nan_to_num(sta(split, self.config.lags)["sta"].values)
        average = torch.from_numpy(measured.astype(np.float32)).flatten(2)
        power = float((first_frames(split["stimulus"]).astype(float) ** 2).mean())
        response = mean_response(split).astype(float)
        level = response.mean("frame")
        # Responses centred on 0 (with loss: mse) start at a rate equal to their standard deviation.
        start = level.where(level > 0, response.std("frame")).fillna(0).values
        mean = torch.from_numpy(start).float() + 1e-6
        with torch.no_grad():
            if module.rank:
                u, s, v = torch.linalg.svd(average, full_matrices=False)
                rank = min(module.rank, s.shape[1])
                module.temporal[:, :rank] = u[:, :, :rank].transpose(1, 2)
                module.spatial[:, :rank] = s[:, :rank, None] * v[:, :rank]
                average = torch.einsum("clr,cr,crp->clp", u[..., :rank], s[:, :rank], v[:, :rank])
            if self.config.nonlinearity == "exponential":
                # For white noise, the maximum-likelihood filter is the average over the variance.
                scale = torch.full_like(mean, 1 / max(power, 1e-12))
                module.offset.copy_(mean.log())
            else:
                # The filtered stimulus starts with mean -3 and standard deviation 2, and the gain
                # at the value that gives the mean response.
                scale = 2 / (power**0.5 * average.flatten(1).norm(dim=1) + 1e-12)
                quantile = (torch.arange(10_000) + 0.5) / 10_000
                drive = 2 * torch.special.ndtri(quantile) - 3
                module.offset.fill_(-3.0)
                module.log_gain.copy_((mean / nn.functional.softplus(drive).mean()).log())
            if module.rank:
                module.spatial.mul_(scale[:, None, None])
            else:
                module.filter.copy_(average * scale[:, None, None])

    def penalty(self, module: nn.Module, prediction: Tensor) -> Tensor:
        assert isinstance(module, LNModule)
        c, shape = self.config, tuple(self.field.sizes[d] for d in ("y", "x"))
        maps: Tensor
        courses: Tensor
        if module.rank:
            maps, courses = module.spatial, module.temporal
        else:
            maps, courses = module.filter, module.filter.transpose(1, 2)
        images = maps.reshape(*maps.shape[:2], -1, *shape)
        rough = (
            _second_difference(images, -1)
            + _second_difference(images, -2)
            + _second_difference(courses, -1)
        )
        return c.smoothness * rough + c.sparsity * maps.abs().sum()

    def parameters(self) -> xr.Dataset:
        self.check_fitted()
        module: Any = self.module
        field = self.field
        space = space_sizes(field)
        full = module.full_filter().detach().numpy()
        variables: dict[str, Any] = {
            "kernel": (("cell", "lag", *space), full.reshape(*full.shape[:2], *space.values())),
            "offset": ("cell", module.offset.detach().numpy()),
            "gain": ("cell", np.exp(module.log_gain.detach().numpy())),
        }
        return field.assign(variables)


def _second_difference(values: Tensor, dim: int) -> Tensor:
    """Sum of squared second differences along a dimension; 0 where it is too short."""
    if values.shape[dim] < 3:
        return values.new_zeros(())
    return (values.diff(n=2, dim=dim) ** 2).sum()
