"""The convolutional network of Yan et al. (2020), section II-C, with one to three layers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import conv2d, softplus

from retinakit.contracts import UserError, as_response, first_frames
from retinakit.layers import (
    correlate,
    correlate_in_time,
    filter_over_lags,
    kernel_shape,
    laplacian,
)
from retinakit.spikes import sta
from retinakit.training import TorchConfig, TorchModel


class CNNConfig(TorchConfig):
    """Options of the network.

    The public code of Yan et al. uses kernel_l1 5.5e-4, kernel_l2 1e-3, dense_l2 1e-3, activity_l1
    1e-3, learning_rate 1e-3, start `normal` and dense_sign `any`. For a cell that fires in one bin
    out of eighty, those penalties outweigh the likelihood and the network does not find the
    subunits. With the defaults here it finds them. The loss is a sum over cells. The penalties of
    the filters are multiplied by the number of cells, so their weights do not depend on it.
    """

    filters: int = Field(4, ge=1, description="Number of filters in each convolution layer.")
    kernel: int = Field(
        7,
        ge=1,
        description="Side of the first layer's filters, in checks; 1 where the "
        "stimulus has one row or column.",
    )
    stride: int = Field(1, ge=1, description="Stride of the first convolution, in checks.")
    layers: int = Field(1, ge=1, le=3, description="Number of convolution layers.")
    deeper_kernel: int = Field(
        3, ge=1, description="Side of the filters of layers 2 and 3, in positions of the map."
    )
    deeper_padding: Literal["same", "valid"] = Field(
        "same",
        description="Padding of layers 2 and 3: 'same' keeps the size of the feature map, 'valid' "
        "uses no padding.",
    )
    rank: int | None = Field(
        None,
        ge=1,
        description="Each filter of the first layer is a sum of this many products of a spatial "
        "map and a temporal filter, which has fewer parameters and is faster. null: unconstrained.",
    )
    start: Literal["patch", "normal"] = Field(
        "patch",
        description="Initial filters. 'patch': Gaussian patches of the receptive field at random "
        "positions; 'normal': normal random numbers.",
    )
    patch_size: float = Field(
        1.2, gt=0, description="Standard deviation of an initial patch, in checks."
    )
    dense_sign: Literal["positive", "any"] = Field(
        "positive", description="Sign of the output weights: excitation only, or either sign."
    )
    noise: float = Field(
        0.1,
        ge=0,
        description="Standard deviation of the Gaussian noise added before each ReLU in training.",
    )
    output: Literal["parametric_softplus", "softplus"] = Field(
        "parametric_softplus",
        description="Output nonlinearity a · log(1 + exp(b x)): a and b are learned for each cell, "
        "or are 1 ('softplus').",
    )
    kernel_l1: float = Field(0.0, ge=0, description="Weight of the filters' L1 norm.")
    kernel_l2: float = Field(0.0, ge=0, description="Weight of the filters' sum of squares.")
    kernel_smoothness: float = Field(
        0.0,
        ge=0,
        description="Weight of the squared spatial Laplacian of the first layer's filters.",
    )
    dense_l1: float = Field(0.0, ge=0, description="Weight of the output weights' L1 norm.")
    dense_l2: float = Field(1e-6, ge=0, description="Weight of the output weights' sum of squares.")
    activity_l1: float = Field(
        0.0,
        ge=0,
        description="Weight of the mean absolute input of the output nonlinearity, summed over "
        "cells.",
    )
    steps: int = Field(4000, ge=1, description="Largest number of training steps.")


class CNNModule(nn.Module):
    """One to three layers of convolution, noise and ReLU, then one weighted sum for each cell.

    `forward` maps frames (n + lags - 1, [channel,] y, x) to rates (n, cell) in spikes per bin.
    """

    def __init__(self, config: CNNConfig, cells: int, channels: int, height: int, width: int):
        super().__init__()
        self.lags, self.noise, self.padding = config.lags, config.noise, config.deeper_padding
        self.stride = config.stride
        self.positive = config.dense_sign == "positive"
        self.separable = config.rank is not None
        scale, filters = 0.05, config.filters
        sides = kernel_shape(config.kernel, (height, width))
        deeper_sides = kernel_shape(config.deeper_kernel, (height, width))
        if config.rank is None:
            self.kernel = nn.Parameter(torch.randn(config.lags, filters, channels, *sides) * scale)
        else:
            self.space = nn.Parameter(torch.randn(config.rank, filters, channels, *sides) * scale)
            self.course = nn.Parameter(torch.randn(config.lags, config.rank, filters) * scale)
        self.bias = nn.Parameter(torch.zeros(filters))
        self.deeper = nn.ParameterList()
        self.deeper_bias = nn.ParameterList()
        height, width = (
            (checks - side) // self.stride + 1
            for checks, side in zip((height, width), sides, strict=True)
        )
        for _ in range(config.layers - 1):
            self.deeper.append(nn.Parameter(torch.randn(filters, filters, *deeper_sides) * scale))
            self.deeper_bias.append(nn.Parameter(torch.zeros(filters)))
            if self.padding == "valid":
                height, width = height - deeper_sides[0] + 1, width - deeper_sides[1] + 1
        self.map = (height, width)
        dense = torch.randn(cells, filters, height, width) * scale
        self.dense = nn.Parameter(dense.abs() if self.positive else dense)
        self.dense_bias = nn.Parameter(torch.zeros(cells))
        learned = config.output == "parametric_softplus"
        # Logarithms are learned so that a, b and the rate stay positive.
        a, b = (0.2, 5.0) if learned else (1.0, 1.0)
        self.log_a = nn.Parameter(torch.full((cells,), a).log(), requires_grad=learned)
        self.log_b = nn.Parameter(torch.full((cells,), b).log(), requires_grad=learned)

    def forward(self, frames: Tensor, every: int = 1) -> Tensor:
        hidden = self.maps(frames, every=every)
        x = hidden.flatten(1) @ self.dense_weight().flatten(1).T + self.dense_bias
        return self.log_a.exp() * softplus(self.log_b.exp() * x)

    def maps(self, frames: Tensor, layers: int | None = None, every: int = 1) -> Tensor:
        """The feature maps (n, filter, map_y, map_x) of a layer.

        Args:
            frames: (n + lags - 1, [channel,] y, x).
            layers: how many layers to apply; all by default.
            every: compute the maps of every `every`-th frame only.
        """
        if frames.ndim == 3:
            frames = frames[:, None]
        if self.separable:
            drive = correlate(frames, self.space.flatten(0, 1), self.stride)
            drive = filter_over_lags(drive, self.course.flatten(1), every)
            drive = drive.unflatten(1, self.course.shape[1:]).sum(1)
        else:
            drive = correlate_in_time(frames, self.kernel, self.stride, every)
        hidden = self._rectify(drive + self.bias[:, None, None])
        deeper = list(zip(self.deeper, self.deeper_bias, strict=True))
        for kernel, bias in deeper[: None if layers is None else layers - 1]:
            hidden = self._rectify(conv2d(hidden, kernel, bias, padding=self.padding))
        return hidden

    def drive(self, prediction: Tensor) -> Tensor:
        """The input (n, cell) of the output nonlinearity that gives a prediction (n, cell)."""
        y = (prediction / self.log_a.exp()).clamp_min(torch.finfo(prediction.dtype).tiny)
        return (y + torch.log(-torch.expm1(-y))) / self.log_b.exp()  # the inverse of the softplus

    def kernels(self) -> Tensor:
        """The filters of the first layer, (lag, filter, channel, kernel_y, kernel_x)."""
        if self.separable:
            return torch.einsum("lrf,rfcyx->lfcyx", self.course, self.space)
        return self.kernel

    def dense_weight(self) -> Tensor:
        """The output weights (cell, filter, map_y, map_x), with their sign constraint applied."""
        return self.dense.abs() if self.positive else self.dense

    def add(self, index: int, course: Tensor, image: Tensor) -> None:
        """Adds the product of a time course (lag, channel) and an image (y, x) to a filter."""
        if not self.separable:
            self.kernel[:, index] += course[:, :, None, None] * image
            return
        # A separable filter has one temporal filter for all channels.
        u, s, v = torch.linalg.svd(course, full_matrices=False)
        self.course[:, 0, index] = u[:, 0]
        self.space[0, index] += s[0] * v[0][:, None, None] * image

    def _rectify(self, drive: Tensor) -> Tensor:
        if self.training and self.noise:
            drive = drive + self.noise * torch.randn_like(drive)
        return drive.relu()


def _place(centre: int, size: int, kernel: int, stride: int) -> int:
    """A random map position, along one axis, whose window contains `centre` near its middle.

    Args:
        centre: a check.
        size: checks of the stimulus along the axis.
        kernel: checks of the window.
        stride: checks between map positions.
    """
    positions = (size - kernel) // stride + 1
    margin = kernel // 4
    inside = [p for p in range(positions) if margin <= centre - p * stride < kernel - margin] or [
        min(max((centre - kernel // 2) // stride, 0), positions - 1)
    ]
    return inside[int(torch.randint(len(inside), ()))]


class CNN(TorchModel):
    """Convolution layers and one weighted sum for each cell, fitted to spikes.

    With one layer, the rate of cell n in spikes per bin is

        r_n = a_n log(1 + exp(b_n (Σ_kp w_nkp ReLU(Σ K_k · s_p + c_k) + d_n))),

    where s_p is the stimulus of the last `lags` frames in the window at map position p, and K_k is
    a filter (lag, y, x). Layers 2 and 3 convolve the rectified maps again. Version II of the paper
    learns filters in space and time (`lags: 20`). Version I learns spatial filters (`lags: 1`) from
    a stimulus that `temporal_collapse` has filtered in time.

    `parameters()` has `kernel (filter, lag, [channel,] kernel_y, kernel_x)`, `kernel_bias (filter)`
    (with suffixes `_2` and `_3` for the later layers), `output_weight (cell, filter, map_y,
    map_x)`, and `output_bias`, `output_a` and `output_b (cell)`. `map_y` and `map_x` are the first
    check of the position's window.

    Raises:
        UserError: by `fit`, if the filters are larger than the stimulus.

    Example:
        >>> from retinakit.testing import small_recording
        >>> recording = small_recording()
        >>> model = CNN.with_options(lags=5, filters=2, kernel=5, steps=10, accelerator="cpu")
        >>> _ = model.fit(recording)
        >>> dict(model.predict(recording["test"].to_dataset()).sizes)
        {'frame': 500, 'cell': 2}
        >>> model.parameters()["kernel"].dims
        ('filter', 'lag', 'kernel_y', 'kernel_x')
    """

    Config = CNNConfig
    quick: ClassVar[dict[str, Any]] = TorchModel.quick | {"filters": 2, "kernel": 5}
    starts_together = True

    def build(self, field: xr.Dataset) -> nn.Module:
        c = self.config
        height, width = field.sizes["y"], field.sizes["x"]
        later = (c.layers - 1) * (c.deeper_kernel - 1) if c.deeper_padding == "valid" else 0
        needed = c.kernel + later * c.stride  # a position of the first map is `stride` checks
        if any(1 < checks < needed for checks in (height, width)):
            raise UserError(
                f"filters of {c.kernel} checks with stride {c.stride} in {c.layers} layers need a "
                f"field of {needed} x {needed} checks or more and it has {height} x {width}; make "
                "kernel smaller"
            )
        return CNNModule(c, field.sizes["cell"], field.sizes.get("channel", 1), height, width)

    def initialise(self, module: nn.Module, recording: xr.DataTree) -> None:
        """Sets each filter to a Gaussian patch of the receptive field, with `start: patch`.

        The receptive field is the first spatial singular vector of the spike-triggered average
        summed over cells. The centre of a patch is drawn with a probability proportional to the
        square of the receptive field.
        """
        assert isinstance(module, CNNModule)
        c = self.config
        if c.start != "patch":
            return
        split = as_response(recording["train"].to_dataset(), c.target)
        field = sta(split, c.lags)["sta"].sum("cell")
        if "channel" not in field.dims:
            field = field.expand_dims("channel", 1)
        stacked = field.transpose("lag", "channel", "y", "x").values
        parts = np.linalg.svd(stacked.reshape(-1, stacked[0, 0].size), full_matrices=False)
        sign = np.sign(parts[2][0].sum()) or 1.0
        course, image = parts[0][:, 0] * sign, np.clip(parts[2][0] * sign, 0, None)
        scale = float(first_frames(split["stimulus"]).astype(np.float32).std()) or 1.0
        image = torch.from_numpy(image.astype(np.float32)).view(*stacked.shape[-2:])
        course = torch.from_numpy(course.astype(np.float32)).view(*stacked.shape[:2])
        rows, columns = torch.meshgrid(*map(torch.arange, image.shape), indexing="ij")
        with torch.no_grad():
            for index in range(c.filters):
                centre = int(torch.multinomial((image**2).flatten(), 1))
                y, x = divmod(centre, image.shape[1])
                distance = (rows - y) ** 2 + (columns - x) ** 2
                patch = image * torch.exp(-distance / (2 * c.patch_size**2))
                patch = patch * 2 / patch.norm() / scale
                # A map position whose window has the patch near its middle.
                sides = kernel_shape(c.kernel, (len(image), image.shape[1]))
                top, left = (
                    _place(at, size, side, c.stride)
                    for at, size, side in zip((y, x), image.shape, sides, strict=True)
                )
                rows_, columns_ = (
                    slice(p * c.stride, p * c.stride + side)
                    for p, side in zip((top, left), sides, strict=True)
                )
                module.add(index, course, patch[rows_, columns_])
                if c.layers == 1:
                    module.dense[:, index, top, left] += 1
            if c.layers > 1:
                for deeper in module.deeper:
                    row, column = (side // 2 for side in deeper.shape[-2:])
                    deeper[:, :, row, column] += torch.eye(c.filters)
                # The output weights start as a mean over the maps: a sum would saturate the output.
                module.dense.add_(1 / module.dense[0].numel())
            if module.log_a.requires_grad:
                module.log_a.fill_(-3.0)
                module.log_b.fill_(0.0)
            module.dense_bias.fill_(-2.0)

    def penalty(self, module: nn.Module, prediction: Tensor) -> Tensor:
        assert isinstance(module, CNNModule)
        c = self.config
        kernels = [module.kernels(), *module.deeper]
        cells = len(module.dense)
        terms = {
            "kernel_l1": lambda: cells * sum(k.abs().sum() for k in kernels),
            "kernel_l2": lambda: cells * sum((k**2).sum() for k in kernels),
            "kernel_smoothness": lambda: cells * (laplacian(kernels[0]) ** 2).sum(),
            "dense_l1": lambda: module.dense.abs().sum(),
            "dense_l2": lambda: (module.dense**2).sum(),
            "activity_l1": lambda: module.drive(prediction).abs().mean(0).sum(),
        }
        # Terms of weight 0 are skipped; in a small network they take a tenth of a training step.
        total = super().penalty(module, prediction)
        for name, term in terms.items():
            if weight := getattr(c, name):
                total = total + weight * term()
        return total

    def layers(self) -> dict[str, str]:
        return {f"layer{number}": "filter" for number in range(1, self.config.layers + 1)}

    def layer_function(self, layer: str) -> Callable[..., Tensor]:
        module: Any = self.module
        return partial(module.maps, layers=list(self.layers()).index(layer) + 1)

    def without(self, layer: str, units: Sequence[int]) -> Self:
        self.check_units(layer, units, self.config.filters)
        silenced = type(self)(self.config, seed=self.seed)
        silenced.restore(self.state())
        module: Any = silenced.module
        number, left_out = list(self.layers()).index(layer), list(units)
        with torch.no_grad():  # with kernel and bias at 0, the filter's map is 0
            if number:
                module.deeper[number - 1][left_out] = 0
                module.deeper_bias[number - 1][left_out] = 0
            else:
                (module.space if module.separable else module.kernel)[:, left_out] = 0
                module.bias[left_out] = 0
        return silenced

    def substituted(self, layer: str, unit: int, by: int) -> Self:
        self.check_units(layer, [unit, by], self.config.filters)
        changed = type(self)(self.config, seed=self.seed)
        changed.restore(self.state())
        module: Any = changed.module
        number = list(self.layers()).index(layer)
        with torch.no_grad():  # a filter with the kernel and bias of another has its map
            if number:
                module.deeper[number - 1][unit] = module.deeper[number - 1][by]
                module.deeper_bias[number - 1][unit] = module.deeper_bias[number - 1][by]
            else:
                weights = [module.space, module.course] if module.separable else [module.kernel]
                for weight in weights:  # the filter is the last dimension of a time course
                    axis = 2 if weight.ndim == 3 else 1
                    weight.select(axis, unit).copy_(weight.select(axis, by).clone())
                module.bias[unit] = module.bias[by]
        return changed

    def parameters(self) -> xr.Dataset:
        self.check_fitted()
        module: Any = self.module
        kernel = module.kernels().detach().numpy()
        channels = "channel" in self.field.sizes
        dims = ("lag", "filter", "channel", "kernel_y", "kernel_x")
        filters = xr.DataArray(kernel, dims=dims)
        if not channels:
            filters = filters.isel(channel=0)
        filters = filters.transpose("filter", "lag", ...)
        filter_index = np.arange(kernel.shape[1])
        # The coordinate of a map position is the first check of its window.
        places = {
            name: self.config.stride * np.arange(size)
            for name, size in zip(("map_y", "map_x"), module.map, strict=True)
        }
        parameters = self.field.assign(
            kernel=filters,
            kernel_bias=("filter", module.bias.detach().numpy()),
            output_weight=(
                ("cell", "filter", "map_y", "map_x"),
                module.dense_weight().detach().numpy(),
            ),
            output_bias=("cell", module.dense_bias.detach().numpy()),
            output_a=("cell", np.exp(module.log_a.detach().numpy())),
            output_b=("cell", np.exp(module.log_b.detach().numpy())),
        ).assign_coords(
            filter=filter_index,
            kernel_y=np.arange(kernel.shape[3]),
            kernel_x=np.arange(kernel.shape[4]),
            **places,
        )
        for layer, (deeper, bias) in enumerate(
            zip(module.deeper, module.deeper_bias, strict=True), start=2
        ):
            parameters[f"kernel_{layer}"] = (
                ("filter", "filter_in", "deeper_y", "deeper_x"),
                deeper.detach().numpy(),
            )
            parameters[f"kernel_bias_{layer}"] = ("filter", bias.detach().numpy())
            parameters = parameters.assign_coords(
                filter_in=filter_index,
                deeper_y=np.arange(deeper.shape[-2]),
                deeper_x=np.arange(deeper.shape[-1]),
            )
        return parameters.drop_vars([d for d in ("y", "x") if d in parameters.coords])
