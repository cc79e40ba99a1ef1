"""A torch model of several recordings: one convolution for all, and a readout for each."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import xarray as xr
from pydantic import Field
from torch import Tensor, nn

from retinakit import TorchConfig, TorchModel


class ExampleSharedCoreConfig(TorchConfig):
    """Options of the network."""

    filters: int = Field(4, ge=1, description="Filters of the convolution.")
    kernel: int = Field(5, ge=1, description="Their side in checks.")


class SharedModule(nn.Module):
    """From frames (n + lags - 1, y, x) to rates (n, cell): a convolution and a linear readout."""

    def __init__(self, filters: int, kernel: int, field: Mapping[str, int]):
        super().__init__()
        self.core = nn.Conv3d(1, filters, (field["lag"], kernel, kernel))
        self.map = (filters, field["y"] - kernel + 1, field["x"] - kernel + 1)
        self.readout = nn.Linear(math.prod(self.map), field["cell"])

    def forward(self, frames: Tensor) -> Tensor:
        maps = self.core(frames[None, None])[0].relu()  # (filter, n, map_y, map_x)
        return nn.functional.softplus(self.readout(maps.transpose(0, 1).flatten(1)))


class ExampleSharedCore(TorchModel):
    """rate = softplus(readout · relu(filters * stimulus)): the filters are of all recordings."""

    Config = ExampleSharedCoreConfig
    quick: ClassVar[dict[str, Any]] = TorchModel.quick | {"filters": 2, "kernel": 3}
    shared: ClassVar[tuple[str, ...]] = ("core",)
    any_field: ClassVar[bool] = False  # filters have several rows and columns

    def build(self, field: xr.Dataset) -> nn.Module:
        return SharedModule(self.config.filters, self.config.kernel, field.sizes)

    def parameters(self) -> xr.Dataset:
        kernel = self.module.core.weight.detach().numpy()[:, 0, ::-1]  # the last frame is lag 0
        readout = self.module.readout.weight.detach().numpy().reshape(-1, *self.module.map)
        parameters = self.field.assign(
            kernel=(("filter", "lag", "kernel_y", "kernel_x"), kernel),
            output_weight=(("cell", "filter", "map_y", "map_x"), readout),
        )
        unlabelled = parameters.sizes.keys() - parameters.coords.keys()
        return parameters.assign_coords({dim: range(parameters.sizes[dim]) for dim in unlabelled})
