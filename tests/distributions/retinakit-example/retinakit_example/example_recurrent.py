"""A torch model with a state in time: a recurrent layer, which the base runs segment by segment."""

from typing import Any, ClassVar, Literal

import xarray as xr
from pydantic import Field
from torch import Tensor, nn

from retinakit import TorchConfig, TorchModel


class ExampleRecurrentConfig(TorchConfig):
    """Options of the network."""

    lags: Literal[1] = Field(1, description="Its own frame; those before are in the state.")
    units: int = Field(16, ge=1, description="Units of the recurrent layer.")


class RecurrentModule(nn.Module):
    """From frames (n, y, x) and a state to rates (n, cell) and the state after them."""

    def __init__(self, pixels: int, units: int, cells: int):
        super().__init__()
        self.recurrent = nn.RNN(pixels, units)
        self.readout = nn.Linear(units, cells)

    def forward(self, frames: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        activity, state = self.recurrent(frames.flatten(1), state)
        return nn.functional.softplus(self.readout(activity)), state


class ExampleRecurrent(TorchModel):
    """state = tanh(kernel · frame + recurrence · last state), rate = softplus(readout · state)."""

    Config = ExampleRecurrentConfig
    quick: ClassVar[dict[str, Any]] = TorchModel.quick | {"lags": 1, "units": 4}
    stateful: ClassVar[bool] = True

    def build(self, field: xr.Dataset) -> nn.Module:
        pixels = field.sizes["y"] * field.sizes["x"]
        return RecurrentModule(pixels, self.config.units, field.sizes["cell"])

    def parameters(self) -> xr.Dataset:
        weights = {name: value.numpy() for name, value in self.module.state_dict().items()}
        shape = (-1, self.field.sizes["y"], self.field.sizes["x"])
        return self.field.assign_coords(unit=range(self.config.units)).assign(
            kernel=(("unit", "y", "x"), weights["recurrent.weight_ih_l0"].reshape(shape)),
            recurrence=(
                ("unit", "unit_before"),
                weights["recurrent.weight_hh_l0"],
                {"description": "unit_before: the unit in the frame before"},
            ),
            readout=(("cell", "unit"), weights["readout.weight"]),
        )
