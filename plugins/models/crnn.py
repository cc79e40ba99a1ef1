"""The convolutional and recurrent networks of Zheng et al. (2021)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d, linear, softplus

from retinakit.contracts import UserError, as_response, mean_response
from retinakit.layers import GATES, BatchNorm, Recurrent, correlate, correlate_in_time, kernel_shape
from retinakit.training import TorchConfig, TorchModel

MAP_VALUES = 2**25
"""Largest number of values of a layer's feature maps that are held in a prediction."""

OUTPUT_WEIGHTS = 2**24
"""Largest number of values of the parameter `output_weight`."""

CELLS_AT_ONCE = 64
"""Number of cells whose `output_weight` is computed together."""


class CRNNConfig(TorchConfig):
    """Options of the network.

    For natural movies of 90 x 90 pixels, the paper has filters [128, 64], kernels [25, 11],
    kernel_l1 5e-4, batch 64, units 32, start `glorot` without recurrence and `normal` with it. For
    simulated cells it has kernel_l1 0 and batch 4096. Its other options are kernel_l2, dense_l2 and
    activity_l1 1e-3, batch_start `unit`, gates `keras`, learning_rate 1e-3 and decay `constant`;
    training ends when the training loss has not decreased by 1e-4 in 50 (simulated cells) or 100
    epochs. The authors minimise a mean over cells. The loss here is a sum over cells and all
    penalties are multiplied by the number of cells, so that their weights are the paper's. With the
    smaller penalties and the learning rate of the defaults, more subunits are found in a few
    epochs: 7 or 8 of the 8 of `subunit_rgc`'s presets `zheng1` and `zheng2`.
    """

    filters: list[int] = Field(
        [8, 4],
        min_length=2,
        max_length=2,
        description="Number of filters in the two convolution layers.",
    )
    kernels: list[int] = Field(
        [6, 3],
        min_length=2,
        max_length=2,
        description="Side of the filters of the two layers, in checks and in positions of the map; "
        "1 where the stimulus has one row or column. The second is reduced to the size of a "
        "smaller map.",
    )
    recurrence: Literal["none", "rnn", "gru", "lstm"] = Field(
        "lstm",
        description="Recurrent layer between the convolution layers and the cells. 'none': the CNN "
        "of the paper.",
    )
    axis: Literal["feature", "time"] = Field(
        "feature",
        description="Steps of the recurrent layer. 'feature': the feature maps of the second "
        "layer, one after another, as in the paper; 'time': the frames (not in the paper), so that "
        "the state is a memory of the frames of a segment before those of 'lags'; it needs order "
        "'contiguous', which is then the default.",
    )
    units: int = Field(32, ge=1, description="Number of units of the recurrent layer.")
    gates: Literal["keras", "torch"] = Field(
        "keras",
        description="Gates of the recurrent layer. 'keras': those of Keras 2.2.4, with a hard "
        "sigmoid, as in the paper; 'torch': those of torch, with a logistic function, the default "
        "for axis 'time', for which they are many times faster.",
    )
    start: Literal["normal", "glorot"] = Field(
        "normal",
        description="Initial filters: normal with a standard deviation of 0.05, or uniform in the "
        "range of Glorot & Bengio (2010).",
    )
    noise: float = Field(
        0.1,
        ge=0,
        description="Standard deviation of the Gaussian noise added before each ReLU in training.",
    )
    batch_decay: float = Field(
        0.99,
        ge=0,
        le=1,
        description="Decay of the running mean and variance of batch normalisation, which are used "
        "for predictions; 1: averages over all batches.",
    )
    batch_start: Literal["average", "unit"] = Field(
        "average",
        description="Running mean and variance of the first batches: 'average' over these batches, "
        "or 'unit', decaying from 0 and 1, as in the paper.",
    )
    group: int | None = Field(
        None,
        ge=2,
        description="Divide the input of each cell by the sum of the absolute inputs of a random "
        "group of this many cells, 8 in the authors' script. The script divides by the sum of "
        "the inputs, which diverges where it is near 0. If the number of cells is not a multiple, "
        "the remaining cells are added to the groups. null: none.",
    )
    kernel_l1: float = Field(0.0, ge=0, description="Weight of the first filters' L1 norm.")
    kernel_l2: float = Field(
        3e-4,
        ge=0,
        description="Weight of the sum of squares of the filters of both layers and of the input "
        "weights of the recurrent layer.",
    )
    dense_l2: float = Field(
        1e-4,
        ge=0,
        description="Weight of the output weights' sum of squares. Because batch normalisation "
        "follows, it has little effect, and so has activity_l1.",
    )
    activity_l1: float = Field(
        1e-4,
        ge=0,
        description="Weight of the mean absolute input of the cells before batch normalisation, "
        "summed over cells.",
    )
    learning_rate: float = Field(3e-3, gt=0, description="Initial learning rate of Adam.")
    batch: int = Field(1024, ge=1, description="Number of frames in a batch.")
    order: Literal["contiguous", "shuffled"] = Field(
        "shuffled",
        description="'shuffled': frames are drawn individually, each with its history; "
        "'contiguous': a batch is a run of frames, for axis 'time'. Batch normalisation needs runs "
        "whose statistics are those of the movie, so use long ones (`batch`) there.",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_in_time(cls, options: Any) -> Any:
        if not isinstance(options, dict):
            return options
        recurrent = options.get("recurrence", "lstm") != "none"
        if recurrent and options.get("axis") == "time":
            return {"order": "contiguous", "gates": "torch"} | options
        return options

    @model_validator(mode="after")
    def _sizes(self) -> "CRNNConfig":
        if min(*self.filters, *self.kernels) < 1:
            raise ValueError("'filters' and 'kernels' need numbers of 1 or more")
        return self

    @property
    def in_time(self) -> bool:
        """Whether there is a state that is carried from frame to frame."""
        return self.recurrence != "none" and self.axis == "time"


class CRNNModule(nn.Module):
    """Two convolution layers, a recurrent layer or none, and one weighted sum for each cell.

    `forward` maps frames (n + lags - 1, [channel,] y, x) to rates (n, cell) in spikes per bin.
    """

    def __init__(self, config: CRNNConfig, cells: int, channels: int, height: int, width: int):
        super().__init__()
        self.config = c = config
        first, second = c.filters
        sides = kernel_shape(c.kernels[0], (height, width))
        self.map = (height - sides[0] + 1, width - sides[1] + 1)
        deeper = kernel_shape(c.kernels[1], (height, width))
        deeper = (min(deeper[0], self.map[0]), min(deeper[1], self.map[1]))
        self.map_2 = (self.map[0] - deeper[0] + 1, self.map[1] - deeper[1] + 1)
        self.kernel = nn.Parameter(torch.empty(c.lags, first, channels, *sides))
        self.bias = nn.Parameter(torch.zeros(first))
        self.kernel_2 = nn.Parameter(torch.empty(second, first, *deeper))
        self.bias_2 = nn.Parameter(torch.zeros(second))
        self._start()

        def norm(units: int) -> BatchNorm:
            return BatchNorm(units, c.batch_decay, c.batch_start)

        self.norm, self.norm_2 = norm(first), norm(second)
        positions = self.map_2[0] * self.map_2[1]
        shape: tuple[int, ...] = (second, *self.map_2)
        # 0 for the units that `without` silences, 1 otherwise. Training does not use it.
        self.register_buffer("kept", torch.ones(first, 1, 1))
        self.register_buffer("kept_2", torch.ones(second, 1, 1))
        if c.recurrence != "none":
            inputs = second * positions if c.in_time else positions
            self.recurrent = Recurrent(c.recurrence, inputs, c.units, c.gates)
            self.recurrent_norm = norm(c.units)
            shape = (c.units,) if c.in_time else (c.units, second)
            self.register_buffer("kept_units", torch.ones(c.units, *[1] * (len(shape) - 1)))
        self.dense = nn.Parameter(torch.empty(cells, *shape))
        self.dense_bias = nn.Parameter(torch.zeros(cells))
        nn.init.trunc_normal_(self.dense, std=(2 / self.dense[0].numel()) ** 0.5)
        if c.group is not None:
            groups = max(1, cells // c.group)
            self.register_buffer("group", torch.randperm(cells) % groups)
        self.output_norm = norm(cells)
        # Logarithms are learned so that a, b and the rate stay positive.
        self.log_a = nn.Parameter(torch.full((cells,), 0.2).log())
        self.log_b = nn.Parameter(torch.full((cells,), 5.0).log())
        self.absolute_input = torch.zeros(())

    def forward(self, frames: Tensor, every: int = 1) -> Tensor:
        if every > 1:
            return self.rates(self.features(frames, every))
        return torch.cat([self.rates(self.features(part)) for part in self.parts(frames)])

    def parts(self, frames: Tensor) -> list[Tensor]:
        """The frames of parts of a prediction, with their history, to bound the memory.

        A training batch is one part, because its statistics are those of batch normalisation.
        """
        if self.training:
            return [frames]
        before, values = self.config.lags - 1, self.map[0] * self.map[1] * self.config.filters[0]
        length = max(1, MAP_VALUES // values)
        return [frames[at : at + length + before] for at in range(0, len(frames) - before, length)]

    def features(self, frames: Tensor, every: int = 1) -> Tensor:
        """The output of the last layer (n, ...): maps, or outputs (n, unit, step) of the units."""
        return self.from_maps(self.maps(frames, 2, every))

    def maps(self, frames: Tensor, layer: int, every: int = 1) -> Tensor:
        """The feature maps (n, filter, map_y, map_x) of layer 1 or 2.

        Args:
            frames: (n + lags - 1, [channel,] y, x).
            layer: 1 or 2.
            every: compute the maps of every `every`-th frame only.
        """
        if frames.ndim == 3:
            frames = frames[:, None]
        drive = correlate_in_time(frames, self.kernel, every=every) + self.bias[:, None, None]
        hidden = self._rectify(self.norm(drive), self.get_buffer("kept"))
        if layer == 1:
            return hidden
        drive = correlate(hidden, self.kernel_2) + self.bias_2[:, None, None]
        return self._rectify(self.norm_2(drive), self.get_buffer("kept_2"))

    def course(self, frames: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The normalised outputs (n, unit) of the recurrent layer and its state, for axis 'time'.

        Args:
            frames: (n + lags - 1, [channel,] y, x).
            state: before the first of the n frames, or None.
        """
        maps = [self._positions(self.maps(part, 2)).flatten(1) for part in self.parts(frames)]
        outputs, state = self.recurrent(torch.cat(maps)[None], state)
        return self._kept_units(self.recurrent_norm(outputs[0])), state

    def rates(self, features: Tensor) -> Tensor:
        """The rates (n, cell) from the output of the last layer (n, ...)."""
        return self.log_a.exp() * softplus(self.log_b.exp() * self.drives(features))

    def drives(self, features: Tensor) -> Tensor:
        """The input (n, cell) of the output nonlinearity."""
        x = linear(features.flatten(1), self.dense.flatten(1), self.dense_bias)
        self.absolute_input = x.abs().mean(0).sum() if self.training else torch.zeros(())
        if self.config.group is not None:
            x = x / self._sum_of_group(x)
        normalised: Tensor = self.output_norm(x)
        return normalised

    def output_weight(self) -> Tensor:
        """The derivative of the cells' drives by the maps of layer 1, (cell, filter, map_y, map_x).

        The normalised input of a ReLU of layer 2 is taken for normal, with the offset as mean and
        the scale as standard deviation. The derivative is that at the mean of the maps of layer 2.
        """
        normal = torch.distributions.Normal(0.0, 1.0)
        scale, offset = self.norm_2.weight, self.norm_2.bias
        deviation = scale.abs().clamp_min(1e-6)
        slope = normal.cdf(offset / deviation)
        mean = offset * slope + deviation * normal.log_prob(offset / deviation).exp()
        kept, kept_2 = self.get_buffer("kept"), self.get_buffer("kept_2")
        gain = slope * scale / (self.norm_2.running_var + self.norm_2.eps).sqrt()
        found = []
        for cells in torch.arange(len(self.dense)).split(CELLS_AT_ONCE):
            maps = (mean[:, None, None] * kept_2).expand(len(cells), -1, *self.map_2)
            maps = maps.detach().clone().requires_grad_()
            with torch.enable_grad():
                drives = self.drives(self.from_maps(maps))
                total = drives[torch.arange(len(cells)), cells].sum()
            (weight,) = torch.autograd.grad(total, maps)
            weight = weight * gain[:, None, None] * kept_2
            found.append(conv_transpose2d(weight, self.kernel_2) * kept)
        return torch.cat(found)

    def from_maps(self, maps: Tensor) -> Tensor:
        """The output of the last layer from the maps of layer 2; for axis 'time', from rest."""
        if self.config.recurrence == "none":
            return maps
        if not self.config.in_time:
            outputs, _ = self.recurrent(self._positions(maps))
            return self._kept_units(self.recurrent_norm(outputs.transpose(1, 2)))
        outputs, _ = self.recurrent(maps.flatten(1)[:, None])
        return self._kept_units(self.recurrent_norm(outputs[:, 0]))

    def _sum_of_group(self, x: Tensor) -> Tensor:
        """The sum (n, cell) of the absolute inputs of all cells in the group of each cell."""
        group = self.get_buffer("group")
        total = x.new_zeros(len(x), int(group.max()) + 1).index_add(1, group, x.abs())
        return total[:, group].clamp_min(torch.finfo(x.dtype).eps)

    def _positions(self, maps: Tensor) -> Tensor:
        """The maps as a sequence (n, step, position)."""
        if maps.shape[-2:] != self.map_2:
            raise UserError(
                f"the recurrent layer has weights for maps of {self.map_2[0]} x {self.map_2[1]} "
                f"positions and was given {maps.shape[-2]} x {maps.shape[-1]}; use the whole field"
            )
        return maps.flatten(2)

    def _rectify(self, drive: Tensor, kept: Tensor) -> Tensor:
        if not self.training:
            return drive.relu() * kept
        if self.config.noise:
            drive = drive + self.config.noise * torch.randn_like(drive)
        return drive.relu()

    def _kept_units(self, outputs: Tensor) -> Tensor:
        return outputs if self.training else outputs * self.get_buffer("kept_units")

    def _start(self) -> None:
        first, second = self.kernel, self.kernel_2
        for kernel, inputs, outputs in (
            (first, first[:, 0].numel(), first[0, :, 0].numel()),
            (second, second[0].numel(), second[:, 0].numel()),
        ):
            if self.config.start == "normal":
                nn.init.normal_(kernel, std=0.05)
            else:
                limit = (6 / (inputs + outputs)) ** 0.5
                nn.init.uniform_(kernel, -limit, limit)


class TimeCRNNModule(CRNNModule):
    """The network whose recurrent layer has the frames as steps.

    `forward` maps frames (n + lags - 1, [channel,] y, x) and the state before the first of the n
    frames, or None, to rates (n, cell) and the state after the last one.
    """

    def forward(self, frames: Tensor, state: Any) -> tuple[Tensor, Any]:  # type: ignore[override]
        outputs, state = self.course(frames, state)
        return self.rates(outputs), state


class CRNN(TorchModel):
    """Two convolution layers, a recurrent layer and a weighted sum for each cell (Zheng et al.).

    Each convolution layer is a convolution, batch normalisation, Gaussian noise in training, and a
    ReLU. Then, with `recurrence: none`, the rate of cell n in spikes per bin is

        r_n = a_n log(1 + exp(b_n N(Σ_fp w_nfp o_fp + d_n))),

    where o_fp is feature map f of the second layer at position p, and N is batch normalisation.
    Otherwise, a recurrent layer is between the convolution layers and the cells. With `axis:
    feature`, its steps are the feature maps: its input in step f is o_f at all positions. The
    outputs of all units in all steps, with one batch normalisation for each unit, take the place
    of o (Zheng et al. 2021, Eqs 4-7; "t = 64" there is the number of feature maps). There is no
    memory of earlier frames. With `axis: time`, which is not in the paper, the steps are the
    frames, and the state is propagated through each segment.

    The layers are `layer1` and `layer2`, the rectified maps, and `recurrent`, the normalised
    outputs. A silenced unit has the output 0; that of the recurrent layer still acts on other units
    of this layer.

    `parameters()` has `kernel (filter, lag, [channel,] kernel_y, kernel_x)`, `kernel_2 (filter_2,
    filter, deeper_y, deeper_x)`, `recurrent_kernel (gate, unit, ...)`, `recurrent_weight (gate,
    unit, unit_before)`, `dense_weight (cell, ...)`, their biases, `output_a` and `output_b (cell)`,
    and for each batch normalisation `scale`, `offset`, `mean` and `variance` with the prefixes
    `norm_`, `norm_2_`, `recurrent_norm_` and `output_norm_`. `output_weight (cell, filter, map_y,
    map_x)` is the derivative of the input of a cell's output nonlinearity by the maps of the first
    layer, with the ReLUs of the second layer replaced by their mean slopes; it is left out where it
    has more than 2^24 values. `map_y` and `map_x` are the first check of the position's window.

    Raises:
        UserError: by `fit`, if the filters are larger than the stimulus, or `group` is set for a
            single cell.

    Example:
        >>> from retinakit.testing import small_recording
        >>> recording = small_recording()
        >>> model = CRNN.with_options(lags=5, kernels=[5, 3], units=4, steps=10, accelerator="cpu")
        >>> _ = model.fit(recording)
        >>> dict(model.predict(recording["test"].to_dataset()).sizes)
        {'frame': 500, 'cell': 2}
        >>> model.parameters()["dense_weight"].sizes
        Frozen({'cell': 2, 'unit': 4, 'step': 4})
    """

    Config = CRNNConfig
    quick: ClassVar[dict[str, Any]] = TorchModel.quick | {
        "filters": [3, 2],
        "kernels": [5, 3],
        "units": 3,
    }

    @property
    def stateful(self) -> bool:
        in_time: bool = self.config.in_time
        return in_time

    def build(self, field: xr.Dataset) -> nn.Module:
        c, side = self.config, self.config.kernels[0]
        cells, height, width = (field.sizes[dim] for dim in ("cell", "y", "x"))
        if any(1 < checks < side for checks in (height, width)):
            raise UserError(
                f"the filters of {side} checks are larger than the field of {height} x {width}; "
                "make the first of kernels smaller"
            )
        if c.group is not None and cells == 1:
            raise UserError("the recording has one cell and 'group' needs several; leave out group")
        module = TimeCRNNModule if c.in_time else CRNNModule
        return module(c, cells, field.sizes.get("channel", 1), height, width)

    def initialise(self, module: nn.Module, recording: xr.DataTree) -> None:
        """Sets the scale `output_a` so that the rates start at their means (the paper has 0.2).

        A rate of a few hundredths of a spike per bin is far from 0.2, and Adam's steps are small.
        """
        assert isinstance(module, CRNNModule)
        split = as_response(recording["train"].to_dataset(), self.config.target)
        mean = torch.from_numpy(mean_response(split).mean("frame").values.astype(np.float32))
        drives = torch.linspace(-4, 4, 801)  # normal after batch normalisation
        density = (-(drives**2) / 2).softmax(0)
        gain = density @ softplus(drives[:, None] * module.log_b.exp())
        with torch.no_grad():
            positive = mean > 0  # false for NaN
            module.log_a[positive] = (mean / gain)[positive].log()

    def penalty(self, module: nn.Module, prediction: Tensor) -> Tensor:
        assert isinstance(module, CRNNModule)
        c = self.config
        kernels = [module.kernel, module.kernel_2]
        if c.recurrence != "none":
            kernels.append(module.recurrent.layer.weight_ih_l0)
        terms = {
            "kernel_l1": lambda: module.kernel.abs().sum(),
            "kernel_l2": lambda: sum((kernel**2).sum() for kernel in kernels),
            "dense_l2": lambda: (module.dense**2).sum(),
            "activity_l1": lambda: module.absolute_input.to(prediction),
        }
        total = super().penalty(module, prediction)
        for name, term in terms.items():
            if weight := getattr(c, name):
                total = total + weight * len(module.dense) * term()
        return total

    def layers(self) -> dict[str, str]:
        convolutions = {"layer1": "filter", "layer2": "filter_2"}
        return convolutions | ({} if self.config.recurrence == "none" else {"recurrent": "unit"})

    def layer_function(self, layer: str) -> Callable[..., Any]:
        module: Any = self.module
        if layer == "recurrent":
            function: Callable[..., Any] = module.course if self.stateful else module.features
            return function
        return partial(module.maps, layer=1 if layer == "layer1" else 2)

    def stateful_layer(self, layer: str) -> bool:
        return self.stateful and layer == "recurrent"

    def activity(self, split: Any, layer: str) -> xr.DataArray:
        activity = super().activity(split, layer)
        return activity.rename(map_y="step") if activity.ndim == 3 else activity

    def without(self, layer: str, units: Sequence[int]) -> Self:
        self.check_layer(layer)
        kept = {"layer1": "kept", "layer2": "kept_2", "recurrent": "kept_units"}[layer]
        self.check_units(layer, units, len(self.module.get_buffer(kept)))
        silenced = type(self)(self.config, seed=self.seed)
        silenced.restore(self.state())
        silenced.module.get_buffer(kept)[list(units)] = 0
        return silenced

    def parameters(self) -> xr.Dataset:
        self.check_fitted()
        module: Any = self.module
        c = self.config
        places, places_2 = ("map_y", "map_x"), ("map_2_y", "map_2_x")
        arrays: dict[str, tuple[tuple[str, ...], Tensor]] = {
            "kernel_bias": (("filter",), module.bias),
            "kernel_2": (("filter_2", "filter", "deeper_y", "deeper_x"), module.kernel_2),
            "kernel_bias_2": (("filter_2",), module.bias_2),
        }
        norms = {"norm": "filter", "norm_2": "filter_2", "output_norm": "cell"}
        outputs: tuple[str, ...] = ("filter_2", *places_2)
        if c.recurrence != "none":
            norms["recurrent_norm"] = "unit"
            weights = module.recurrent.weights()
            inputs = outputs if c.in_time else places_2
            shape = (c.filters[1], *module.map_2)[-len(inputs) :]
            arrays |= {
                "recurrent_kernel": (("gate", "unit", *inputs), weights["W"].unflatten(2, shape)),
                "recurrent_weight": (("gate", "unit", "unit_before"), weights["U"]),
                "recurrent_bias": (("gate", "unit"), weights["b"]),
            }
            if "u" in weights:
                arrays["recurrent_weight_bias"] = (("gate", "unit"), weights["u"])
            outputs = ("unit",) if c.in_time else ("unit", "step")
        for name, unit in norms.items():
            norm = getattr(module, name)
            arrays[f"{name}_scale"] = ((unit,), norm.weight)
            arrays[f"{name}_offset"] = ((unit,), norm.bias)
            arrays[f"{name}_mean"] = ((unit,), norm.running_mean)
            arrays[f"{name}_variance"] = ((unit,), norm.running_var)
        arrays |= {
            "dense_weight": (("cell", *outputs), module.dense),
            "dense_bias": (("cell",), module.dense_bias),
            "output_a": (("cell",), module.log_a.exp()),
            "output_b": (("cell",), module.log_b.exp()),
        }
        if len(module.dense) * c.filters[0] * module.map[0] * module.map[1] <= OUTPUT_WEIGHTS:
            arrays["output_weight"] = (("cell", "filter", *places), module.output_weight())
        dims = ("lag", "filter", "channel", "kernel_y", "kernel_x")
        kernel = xr.DataArray(module.kernel.detach().numpy(), dims=dims)
        if "channel" not in self.field.sizes:
            kernel = kernel.isel(channel=0)
        parameters = self.field.assign(kernel=kernel.transpose("filter", "lag", ...))
        for name, (of, values) in arrays.items():
            parameters[name] = (of, values.detach().numpy())
        indices: dict[str, Any] = {
            str(dim): np.arange(size)
            for dim, size in parameters.sizes.items()
            if dim not in parameters.coords
        }
        if c.recurrence != "none":
            indices["gate"] = np.array(GATES[c.recurrence])
        if "group" in dict(module.named_buffers()):
            indices["group"] = ("cell", module.group.numpy())
        parameters = parameters.assign_coords(indices)
        return parameters.drop_vars([d for d in ("y", "x") if d in parameters.coords])
