"""A population network with a factorized "what" and "where" readout (Klindt et al. 2017)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import conv2d, dropout, softplus

from retinakit.contracts import UserError, as_response, mean_response
from retinakit.layers import (
    BatchNorm,
    FactorizedReadout,
    GaussianReadout,
    SeparableReadout,
    Support,
    correlate_in_time,
    group_sparsity,
    kernel_shape,
    roughness,
)
from retinakit.spikes import CELLS_AT_ONCE, STA_SMOOTHING, locations
from retinakit.training import ExactZeros, Hooks, ImageModelConfig, TorchModel

EVALUATED = 256
"""Frames per block of a prediction, which limits the memory of the feature maps."""

NEAR = 4
"""With `exact_zeros`, the initial masks are 0 beyond this distance, in positions of the map, from
the peak of the spike-triggered average. Training can make other entries nonzero."""

KERNEL_START = 0.01
"""Standard deviation of the initial kernels where normalisation makes their scale irrelevant."""


class WhatWhereConfig(ImageModelConfig):
    """Options of the network.

    The loss is a mean over frames and a sum over cells, and the penalties of the readout are sums
    over cells, so the paper's weights of these penalties can be used unchanged. The penalties of
    the kernels are multiplied by the number of cells, so that their weights do not depend on it. A
    weight that was chosen for a loss summed over N cells is divided by N here.
    """

    filters: list[int] = Field(
        [32, 64, 4],
        min_length=1,
        description="Number of filters in each layer; those of the last layer are the features.",
    )
    kernels: list[int] = Field(
        [5, 5, 5],
        min_length=1,
        description="Side of the filters in each layer, in checks; 1 where the "
        "stimulus has one row or column.",
    )
    padding: Literal["valid", "same"] = Field(
        "valid",
        description="Padding of the layers after the first: 'same' keeps the size of the feature "
        "map, 'valid' uses no padding.",
    )
    normalisation: Literal["batch", "unit", "none"] = Field(
        "batch",
        description="'batch': batch normalisation without a scale; 'unit': each kernel from one "
        "input map to one output map has norm 1; 'none': no normalisation.",
    )
    batch_decay: float = Field(
        0.99,
        gt=0,
        lt=1,
        description="Decay of the running mean and variance in batch normalisation, which are used "
        "in predictions.",
    )
    offset: bool = Field(True, description="Whether each filter has an offset.")
    activation: Literal["relu", "softplus", "identity"] = Field(
        "relu", description="Nonlinearity of the convolution layers."
    )
    last_activation: Literal["relu", "softplus", "identity"] | None = Field(
        None, description="Nonlinearity of the last convolution layer; null: that of the others."
    )
    known_kernel: bool = Field(
        False,
        description="Use the kernel in the recording's group 'truth', and fit the readout only; "
        "for a network of one layer.",
    )
    readout: Literal["factorized", "full", "fixed", "gaussian"] = Field(
        "factorized",
        description="'factorized': a mask and feature weights for each cell; 'full': a weight for "
        "each feature at each position (McIntosh et al. 2016); 'fixed': a mask that is one "
        "position, the peak of the spike-triggered average (Batty et al. 2017); 'gaussian': "
        "Gaussian masks.",
    )
    positive_mask: bool = Field(False, description="Constrain masks to be nonnegative.")
    positive_weight: bool = Field(False, description="Constrain feature weights to be nonnegative.")
    normalise_mask: bool = Field(
        False,
        description="Normalise masks to norm 1, so that their L1 penalty does not depend on their "
        "scale.",
    )
    mask_start: Literal["sta", "random"] = Field(
        "sta",
        description="Initial masks. 'sta': one position, the peak of the smoothed spike-triggered "
        "average; 'random': small random numbers.",
    )
    sta_smoothing: float = Field(
        STA_SMOOTHING,
        ge=0,
        description="Standard deviation, in checks, of the Gaussian that smoothes the "
        "spike-triggered average before its peak is located.",
    )
    output: Literal["identity", "relu", "softplus", "exponential"] = Field(
        "softplus", description="Output nonlinearity of the cells."
    )
    bias: bool = Field(
        True, description="Whether each cell has a bias before the output nonlinearity."
    )
    mask_l1: float = Field(
        0.0, ge=0, description="Weight of the L1 norm of the masks, summed over cells."
    )
    weight_l1: float = Field(
        0.0, ge=0, description="Weight of the L1 norm of the feature weights, summed over cells."
    )
    exact_zeros: bool = Field(
        False,
        description="Train the masks with proximal gradient steps. Most of their entries become "
        "exactly 0 and are skipped, which is faster with many cells.",
    )
    refresh_every: int = Field(
        200,
        ge=1,
        description="With exact_zeros, the number of steps after which the full gradient is "
        "computed and entries of 0 may become nonzero.",
    )
    product_l1: float = Field(
        0.0,
        ge=0,
        description="Weight of the product of a cell's mask and feature-weight L1 norms, summed "
        "over cells.",
    )
    readout_l2: float = Field(
        0.0,
        ge=0,
        description="Weight of the sum of squared weights of a full readout, summed over cells.",
    )
    activity_l1: float = Field(
        0.0, ge=0, description="Weight of the mean |prediction|, summed over cells."
    )
    smoothness: float = Field(
        0.0, ge=0, description="Weight of the squared Laplacian of the kernels (eq 6)."
    )
    smooth_layers: Literal["first", "all"] = Field(
        "first", description="Layers whose kernels have the smoothness penalty."
    )
    normalise_smoothness: bool = Field(
        True,
        description="Divide the smoothness penalty of each kernel by the kernel's power, so that "
        "it does not depend on the kernel's scale.",
    )
    group_sparsity: float = Field(
        0.0,
        ge=0,
        description="Weight of the sum of the norms of the kernels from one map to another (eq 7), "
        "in the layers after the first; in a network of one layer, in this layer.",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout probability of the features before the readout."
    )

    @model_validator(mode="after")
    def _consistent(self) -> "WhatWhereConfig":
        if len(self.filters) != len(self.kernels):
            raise ValueError(
                f"filters has {len(self.filters)} layers and kernels has {len(self.kernels)}; give "
                "one entry of each for every layer"
            )
        if min(*self.filters, *self.kernels, 1) < 1:
            raise ValueError("filters and kernels must be 1 or more in each layer")
        if self.loss == "poisson" and self.output == "identity":
            raise ValueError(
                "with output 'identity' the rate may be negative, for which the Poisson loss is "
                "not defined; use output: softplus, or loss: mse"
            )
        free = self.readout == "factorized" and self.filters[-1] > 1 and not self.normalise_mask
        if free and (self.mask_l1 > 0) != (self.weight_l1 > 0) and not self.product_l1:
            raise ValueError(
                "a penalty on masks or feature weights alone has no effect, because the other "
                "factor can take up the scale; give both mask_l1 and weight_l1, or product_l1, or "
                "normalise_mask"
            )
        if self.exact_zeros:
            plain = self.readout == "factorized" and not (self.normalise_mask or self.product_l1)
            if not (plain and self.mask_l1):
                raise ValueError(
                    "exact_zeros needs readout: factorized and a mask_l1 above 0, and cannot be "
                    "combined with product_l1 or normalise_mask"
                )
        if self.known_kernel and len(self.filters) != 1:
            raise ValueError(
                "known_kernel is for a network of one layer; give one entry in filters and kernels"
            )
        return self

    def lost(self, field: tuple[int, int]) -> tuple[int, int]:
        """By how many checks the last map is smaller than the field (height and width)."""
        sides = self.kernels if self.padding == "valid" else self.kernels[:1]
        shapes = [kernel_shape(side, field) for side in sides]
        return sum(y - 1 for y, _ in shapes), sum(x - 1 for _, x in shapes)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "softplus": softplus,
    "identity": nn.Identity(),
    "exponential": torch.exp,
}


class ConvolutionLayers(nn.Module):
    """The convolution layers shared by all cells, from frames to feature maps."""

    def __init__(self, config: WhatWhereConfig, channels: int, field: tuple[int, int]):
        super().__init__()
        self.config = config
        self.kernel = nn.ParameterList()
        self.offset = nn.ParameterList()
        self.norm = nn.ModuleList()
        incoming = channels
        for layer, (filters, side) in enumerate(zip(config.filters, config.kernels, strict=True)):
            shape = (filters, incoming, *kernel_shape(side, field))
            lags = (config.lags,) if layer == 0 else ()
            kernel = torch.randn(*lags, *shape)
            inputs = kernel.numel() / filters
            scale = inputs**-0.5 if config.normalisation == "none" else KERNEL_START
            self.kernel.append(nn.Parameter(kernel * scale))
            if config.offset:
                self.offset.append(nn.Parameter(torch.zeros(filters)))
            if config.normalisation == "batch":
                self.norm.append(BatchNorm(filters, config.batch_decay, eps=1e-5, affine=False))
            # 0 for the filters that `without` silences, 1 otherwise. Training does not use it.
            self.register_buffer(f"kept_{layer}", torch.ones(filters, 1, 1))
            incoming = filters

    def forward(self, frames: Tensor, layers: int | None = None, every: int = 1) -> Tensor:
        """The feature maps (n, filter, map_y, map_x) of a layer.

        Args:
            frames: (n + lags - 1, [channel,] y, x).
            layers: how many layers to apply; all by default.
            every: compute the maps of every `every`-th frame only.
        """
        c, last = self.config, len(self.kernel) - 1
        hidden = frames if frames.ndim == 4 else frames[:, None]
        for layer, kernel in enumerate(self.kernels()[:layers]):
            if layer:
                hidden = conv2d(hidden, kernel, padding=c.padding)
            else:
                hidden = correlate_in_time(hidden, kernel, every=every)
            if c.normalisation == "batch":
                hidden = self.norm[layer](hidden)
            if c.offset:
                hidden = hidden + self.offset[layer][:, None, None]
            name = c.last_activation if layer == last and c.last_activation else c.activation
            hidden = FUNCTIONS[name](hidden)
            if not self.training:
                hidden = hidden * self.get_buffer(f"kept_{layer}")
        return hidden

    def kernels(self) -> list[Tensor]:
        """The kernels (filter, input, y, x) of each layer; (lag, filter, channel, y, x) first."""
        if self.config.normalisation != "unit":
            return list(self.kernel)
        first, *others = self.kernel
        return [
            first / first.norm(dim=(3, 4), keepdim=True).norm(dim=0, keepdim=True),
            *(kernel / kernel.norm(dim=(2, 3), keepdim=True) for kernel in others),
        ]


class WhatWhereModule(nn.Module):
    """Convolution layers shared by all cells, and a readout for each cell."""

    def __init__(self, config: WhatWhereConfig, cells: int, channels: int, field: tuple[int, int]):
        super().__init__()
        self.config = config
        self.core = ConvolutionLayers(config, channels, field)
        lost = config.lost(field)
        places = (field[0] - lost[0], field[1] - lost[1])
        features = config.filters[-1]
        self.readout: SeparableReadout | FullReadout
        signs = {"positive_weight": config.positive_weight, "bias": config.bias}
        if config.readout == "full":
            self.readout = FullReadout(cells, features, places, bias=config.bias)
        elif config.readout == "gaussian":
            self.readout = GaussianReadout(cells, features, places, **signs)
        else:
            self.readout = FactorizedReadout(
                cells,
                features,
                places,
                # |m| has no gradient where m is 0. Proximal steps keep m ≥ 0 without it.
                positive_mask=config.positive_mask and not config.exact_zeros,
                normalise=config.normalise_mask and config.readout == "factorized",
                **signs,
            )

    def forward(self, frames: Tensor, every: int = 1) -> Tensor:
        """Maps frames (n + lags - 1, [channel,] y, x) to expected responses (n, cell)."""
        if self.training or every > 1:
            return self._respond(frames, every)
        # Blocks of frames, because the feature maps of all frames may not fit in memory.
        before = self.config.lags - 1
        starts = range(0, len(frames) - before, EVALUATED)
        return torch.cat([self._respond(frames[a : a + EVALUATED + before]) for a in starts])

    def _respond(self, frames: Tensor, every: int = 1) -> Tensor:
        features = dropout(self.core(frames, every=every), self.config.dropout, self.training)
        return FUNCTIONS[self.config.output](self.readout(features))


class FullReadout(nn.Module):
    """A weight for each cell, feature and position: maps (n, feature, y, x) to drives (n, cell)."""

    def __init__(self, cells: int, features: int, places: tuple[int, int], *, bias: bool):
        super().__init__()
        self.places = places
        self.weight = nn.Parameter(torch.randn(cells, features, *places) * KERNEL_START)
        self.bias = nn.Parameter(torch.zeros(cells)) if bias else None

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.linear(features.flatten(1), self.weight.flatten(1), self.bias)


class WhatWhere(TorchModel):
    """Convolution layers shared by all cells, and a sparse factorized readout for each cell.

    The rate of cell n, in the units of the response, is f(Σ_k w_nk Σ_p m_np c_kp + b_n), where c_kp
    is map k of the last layer at position p (Klindt et al. 2017, eqs 2 and 3). The mask m_n is the
    location of the cell ("where") and the feature weights w_n are its type ("what"). Masks start at
    the peak of the spike-triggered average. Training is that of section 4.1.

    With `exact_zeros` the L1 penalty of the masks is applied by proximal gradient steps
    (`retinakit.training`), which skip entries of 0. The training curves then have two checks of the
    optimality conditions, as fractions of `mask_l1`: `certificate_outside`, by how much the largest
    gradient of an entry of 0 exceeds the penalty, and `certificate_inside`, the largest deviation
    of a nonzero entry from stationarity.

    Raises:
        UserError: by `fit`, if the kernels are larger than the stimulus, `known_kernel` is set and
            the recording has no fitting 'kernel' in 'truth', or `exact_zeros` is set for several
            recordings.

    Example:
        >>> from retinakit.testing import small_recording
        >>> options = {"filters": [3, 2], "kernels": [3, 3], "lags": 3, "steps": 10}
        >>> model = WhatWhere.with_options(**options, accelerator="cpu")
        >>> _ = model.fit(small_recording())
        >>> parameters = model.parameters()
        >>> dict(parameters["mask"].sizes), dict(parameters["feature_weight"].sizes)
        ({'cell': 2, 'map_y': 4, 'map_x': 4}, {'cell': 2, 'feature': 2})
    """

    Config = WhatWhereConfig
    shared = ("core",)
    quick: ClassVar[dict[str, Any]] = TorchModel.quick | {
        "filters": [3, 2],
        "kernels": [3, 3],
        "lags": 3,
    }

    def build(self, field: xr.Dataset) -> nn.Module:
        c = self.config
        size = (field.sizes["y"], field.sizes["x"])
        lost = c.lost(size)
        if any(checks <= less for checks, less in zip(size, lost, strict=True)):
            raise UserError(
                f"filters of {', '.join(map(str, c.kernels))} checks need a field larger than "
                f"{max(lost)} checks and it has {size[0]} x {size[1]}; set "
                "smaller kernels, or fewer layers with shorter lists of both filters and kernels"
            )
        return WhatWhereModule(c, field.sizes["cell"], field.sizes.get("channel", 1), size)

    def initialise(self, module: nn.Module, recording: xr.DataTree) -> None:
        """Sets masks at the peaks of the spike-triggered averages, and biases from the means."""
        assert isinstance(module, WhatWhereModule)
        c, readout = self.config, module.readout
        split = as_response(recording["train"].to_dataset(), c.target)
        mean, deviation = _moments(mean_response(split))
        if c.known_kernel:
            self._take_kernel(module, recording)
        if readout.bias is not None:
            with torch.no_grad():
                readout.bias.copy_(_inverse(c.output, mean))
        if not isinstance(readout, SeparableReadout):
            return
        if c.exact_zeros and c.positive_mask:
            assert isinstance(readout, FactorizedReadout)
            with torch.no_grad():
                readout.mask.abs_()
        if c.readout == "fixed" or c.mask_start == "sta":
            lost = c.lost((split.sizes["y"], split.sizes["x"]))
            margin = (lost[0] // 2, lost[1] // 2)
            centres = locations(split, c.lags, c.sta_smoothing, margin) - np.array(margin)
            centres = np.minimum(centres, np.array(readout.places) - 1)
            places = torch.from_numpy(centres)
            if c.readout == "fixed":
                assert isinstance(readout, FactorizedReadout)
                readout.fix_at(places)
            else:
                readout.start_at(places, deviation)
                if c.exact_zeros:
                    assert isinstance(readout, FactorizedReadout)
                    readout.clear_beyond(NEAR, places)

    def _take_kernel(self, module: WhatWhereModule, recording: xr.DataTree) -> None:
        truth = recording["truth"].to_dataset() if "truth" in recording.children else {}
        if "kernel" not in truth:
            raise UserError(
                "known_kernel is set and the recording has no 'kernel' in 'truth'; leave out "
                "known_kernel"
            )
        known = torch.from_numpy(truth["kernel"].values).float()[None, :, None]
        if known.shape != module.core.kernel[0].shape:
            raise UserError(
                f"the true kernels are {tuple(truth['kernel'].shape)} and the network's are "
                f"{tuple(module.core.kernel[0].shape[i] for i in (1, 3, 4))} (filter, y, x); set "
                "filters and kernels to the former"
            )
        with torch.no_grad():
            module.core.kernel[0].copy_(known)
        module.core.kernel[0].requires_grad_(False)

    def penalty(self, module: nn.Module, prediction: Tensor) -> Tensor:
        assert isinstance(module, WhatWhereModule)
        c, readout, kernels = self.config, module.readout, module.core.kernels()
        total = c.activity_l1 * prediction.abs().mean(0).sum()
        if isinstance(readout, SeparableReadout):
            of_masks = 0.0 if c.exact_zeros else c.mask_l1
            # Terms of weight 0 are skipped, because each takes a pass over the masks.
            if of_masks:
                total = total + of_masks * readout.mask_l1()
            if c.weight_l1:
                total = total + c.weight_l1 * readout.weight_l1()
            if c.product_l1:
                total = total + c.product_l1 * readout.product_l1()
        else:
            total = total + c.readout_l2 * (readout.weight**2).sum()
        of_kernels = torch.zeros((), device=prediction.device)
        if c.smoothness:
            smoothed = kernels if c.smooth_layers == "all" else kernels[:1]
            for kernel in smoothed:
                of_kernels = of_kernels + c.smoothness * roughness(kernel, c.normalise_smoothness)
        if c.group_sparsity:
            for kernel in kernels[1:] or [kernels[0].flatten(0, 1)]:
                of_kernels = of_kernels + c.group_sparsity * group_sparsity(kernel)
        return total + prediction.shape[1] * of_kernels

    def hooks(self, modules: Sequence[nn.Module]) -> Hooks:
        c = self.config
        if not c.exact_zeros:
            return Hooks()
        if len(modules) > 1:
            raise UserError(
                "exact_zeros takes one recording and was given several; leave out exact_zeros, or "
                "fit each recording separately"
            )
        (module,) = modules
        assert isinstance(module, WhatWhereModule)
        assert isinstance(module.readout, FactorizedReadout)
        return ExactZeros(module.readout, c.mask_l1, c.positive_mask, c.refresh_every)

    def set_weights(self, weights: Mapping[str, NDArray[Any]]) -> None:
        super().set_weights(weights)
        if self.config.exact_zeros:
            readout = self.module.readout
            assert isinstance(readout, FactorizedReadout)
            readout.support = Support.of(readout.mask)

    def layers(self) -> dict[str, str]:
        return {f"layer{number}": "filter" for number in range(1, len(self.config.filters) + 1)}

    def layer_function(self, layer: str) -> Callable[..., Tensor]:
        core: Any = self.module.core
        return partial(core.forward, layers=list(self.layers()).index(layer) + 1)

    def without(self, layer: str, units: Sequence[int]) -> Self:
        number = list(self.layers()).index(layer) if layer in self.layers() else 0
        self.check_units(layer, units, self.config.filters[number])
        silenced = type(self)(self.config, seed=self.seed)
        silenced.restore(self.state())
        core: Any = silenced.module.core
        core.get_buffer(f"kept_{number}")[list(units)] = 0
        return silenced

    def substituted(self, layer: str, unit: int, by: int) -> Self:
        number = list(self.layers()).index(layer) if layer in self.layers() else 0
        self.check_units(layer, [unit, by], self.config.filters[number])
        changed = type(self)(self.config, seed=self.seed)
        changed.restore(self.state())
        core: Any = changed.module.core
        of_filter = [core.kernel[number], core.get_buffer(f"kept_{number}")]
        of_filter += [core.offset[number]] if self.config.offset else []
        if self.config.normalisation == "batch":
            of_filter += [core.norm[number].running_mean, core.norm[number].running_var]
        with torch.no_grad():
            for values in of_filter:
                axis = 1 if values.ndim == 5 else 0  # the first kernels are (lag, filter, ...)
                values.select(axis, unit).copy_(values.select(axis, by).clone())
        return changed

    def parameters(self) -> xr.Dataset:
        """The kernels and the readout.

        `kernel (filter, lag, [channel,] kernel_y, kernel_x)` and `kernel_bias (filter)` of the
        first layer, and `kernel_2 (filter_2, filter, kernel_2_y, kernel_2_x)` and so on of the
        later ones. The readout has `mask (cell, map_y, map_x)` and `feature_weight (cell,
        feature)`, or with `readout: full`, `output_weight (cell, feature, map_y, map_x)`, and
        `output_bias (cell)`. `map_y` and `map_x` are the first check of a position's window, and
        `centre_y` and `centre_x` its middle.
        """
        self.check_fitted()
        module: Any = self.module
        c, readout = self.config, module.readout
        first, *deeper = (kernel.detach().numpy() for kernel in module.core.kernels())
        kernel = xr.DataArray(first, dims=("lag", "filter", "channel", "kernel_y", "kernel_x"))
        if "channel" not in self.field.sizes:
            kernel = kernel.isel(channel=0)
        coords: dict[str, Any] = {
            "filter": np.arange(first.shape[1]),
            "kernel_y": np.arange(first.shape[-2]),
            "kernel_x": np.arange(first.shape[-1]),
            "feature": np.arange(c.filters[-1]),
        }
        lost = c.lost((self.field.sizes["y"], self.field.sizes["x"]))
        for axis, places, less in zip("yx", readout.places, lost, strict=True):
            coords[f"map_{axis}"] = np.arange(places)
            coords[f"centre_{axis}"] = (f"map_{axis}", np.arange(places) + less / 2)
        variables: dict[str, Any] = {"kernel": kernel.transpose("filter", "lag", ...)}
        incoming = "filter"
        for layer, weights in enumerate(deeper, start=2):
            dims = (f"filter_{layer}", incoming, f"kernel_{layer}_y", f"kernel_{layer}_x")
            variables[f"kernel_{layer}"] = (dims, weights)
            coords |= {d: np.arange(n) for d, n in zip(dims, weights.shape, strict=True)}
            incoming = dims[0]
        for layer, offset in enumerate(module.core.offset, start=1):
            name = "filter" if layer == 1 else f"filter_{layer}"
            suffix = "" if layer == 1 else f"_{layer}"
            variables[f"kernel_bias{suffix}"] = (name, offset.detach().numpy())
        if isinstance(readout, FullReadout):
            dims = ("cell", "feature", "map_y", "map_x")
            variables["output_weight"] = (dims, readout.weight.detach().numpy())
        else:
            masks = readout.masks().detach().T.reshape(-1, *readout.places).numpy()
            variables["mask"] = (("cell", "map_y", "map_x"), masks)
            variables["feature_weight"] = (
                ("cell", "feature"),
                readout.weights().detach().T.numpy(),
            )
        if readout.bias is not None:
            variables["output_bias"] = ("cell", readout.bias.detach().numpy())
        parameters = self.field.assign(variables).assign_coords(coords)
        return parameters.drop_vars([d for d in ("y", "x") if d in parameters.coords])


def _moments(response: xr.DataArray) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (cell,) of the response, 0 for a cell without responses."""
    cells = range(0, response.sizes["cell"], CELLS_AT_ONCE)
    blocks = (response.isel(cell=slice(cell, cell + CELLS_AT_ONCE)).astype(float) for cell in cells)
    moments = [(block.mean("frame"), block.std("frame")) for block in blocks]
    mean, deviation = (
        torch.from_numpy(np.concatenate([part.fillna(0) for part in parts])).float()
        for parts in zip(*moments, strict=True)
    )
    return mean, deviation


def _inverse(output: str, mean: Tensor) -> Tensor:
    """The input of the output nonlinearity at which the output is the mean response."""
    if output == "identity" or output == "relu":
        return mean
    positive = mean.clamp_min(1e-3)
    if output == "exponential":
        return positive.log()
    return positive + torch.log(-torch.expm1(-positive))  # log(exp(y) - 1) without overflow
