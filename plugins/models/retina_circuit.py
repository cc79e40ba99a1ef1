"""The circuit of bipolar, amacrine and ganglion cell types of Murray et al."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.functional import conv2d

from retinakit.contracts import (
    InputPath,
    Progress,
    Shown,
    UserError,
    as_response,
    coordinates_of,
    full_history,
    pack_two_values,
    silent,
)
from retinakit.layers import (
    ClipSizes,
    dropout,
    filter_clips,
    histories,
    pool_bit_clips,
    supports_bit_clips,
)
from retinakit.training import Frames, Hooks, TorchConfig, TorchModel

LAYERS = ("bipolar", "amacrine", "ganglion")

VALUES_AT_ONCE = 2**24
"""Largest number of values of the stimulus in the clips that are predicted together."""

SMALLEST = 1e-30
"""Smallest probability in the loss."""

LESION_VALUES = 2**25
"""Largest number of values that are stored for the clips whose lesions are predicted together."""

START_CLIPS = 15
"""Number of clips from which the start `scaled` is computed."""


class RetinaCircuitConfig(TorchConfig):
    """Options of the circuit. Sizes and numbers of types are those of Murray et al.

    The defaults of training are ours, with which a network learns within 1500 steps of 2500 clips;
    without dropout it overfits 1000 clips. Those of the paper are start: uniform, dropout: 0.4,
    learning_rate: 1e-3, decay: constant and steps: 33500, which are 500 epochs of 1000 clips. With
    them, a network was at chance for 1600 steps, and then better than those of the defaults (one
    seed). A fit in which all ganglion cell types fall silent ends with a message. `starts: 5`
    trains several networks, of which the validation loss selects one.
    """

    bipolar_types: int = Field(8, ge=1, description="Number of bipolar cell types.")
    amacrine_types: int = Field(8, ge=1, description="Number of amacrine cell types.")
    ganglion_types: int = Field(8, ge=1, description="Number of ganglion cell types.")
    bipolar_kernel: int = Field(
        10,
        ge=1,
        description="Side of the spatial kernels of bipolar cells, in pixels. This and the other "
        "kernels are not larger than their input.",
    )
    bipolar_stride: int = Field(
        5, ge=1, description="Distance between neighbouring bipolar cells of a type, in pixels."
    )
    kernel: int = Field(
        5,
        ge=1,
        description="Side of the spatial kernels of amacrine and ganglion cells over bipolar "
        "cells.",
    )
    stride: int = Field(
        4,
        ge=1,
        description="Distance between neighbouring amacrine and ganglion cells of a type, in "
        "bipolar cells.",
    )
    lateral_kernel: int = Field(
        3,
        ge=1,
        description="Side of the spatial kernels of ganglion cells over amacrine cells, odd.",
    )
    filter_lags: int = Field(31, ge=1, description="Length of the temporal filters, in frames.")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability of dropout after every spatial and temporal convolution and after "
        "the decoder.",
    )
    start: Literal["uniform", "scaled"] = Field(
        "scaled",
        description="Initial weights. 'uniform': those of torch, as in the paper; 'scaled': the "
        "same, shifted and scaled so that the input of each nonlinearity has mean 0 and standard "
        "deviation 1 on training clips.",
    )
    weights: InputPath | None = Field(
        None,
        description="File of the state_dict of the authors' network, which is used instead of "
        "training.",
    )
    lags: int = Field(51, ge=1, description="Number of frames of a clip.")
    loss: Literal["cross_entropy"] = Field(  # type: ignore[assignment]
        "cross_entropy", description="Cross-entropy of the classes, which are the cells."
    )
    steps: int = Field(4000, ge=1, description="Maximum number of training steps.")
    batch: int = Field(15, ge=1, description="Number of clips in a batch.")
    order: Literal["contiguous", "shuffled"] = Field(
        "shuffled", description="Order of the training frames; 'shuffled' for clips."
    )
    learning_rate: float = Field(3e-4, gt=0, description="Initial learning rate of Adam.")

    @field_validator("lateral_kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, such as 3")
        return value


class CircuitModule(nn.Module):
    """The circuit; `forward` maps clips to the probabilities of the classes.

    Spatial kernels are (type, input, y, x). Temporal filters are (lag, type), with lag 0 first.
    """

    bipolar_space: Tensor
    bipolar_space_bias: Tensor
    bipolar_time: Tensor
    bipolar_time_bias: Tensor
    amacrine_space: Tensor
    amacrine_space_bias: Tensor
    amacrine_time: Tensor
    amacrine_time_bias: Tensor
    ganglion_bipolar: Tensor
    ganglion_bipolar_bias: Tensor
    ganglion_amacrine: Tensor
    ganglion_amacrine_bias: Tensor
    ganglion_time: Tensor
    ganglion_time_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor

    def __init__(self, config: RetinaCircuitConfig, classes: int, field: tuple[int, int, int]):
        super().__init__()
        c = config
        self.lags, self.stride, self.bipolar_stride = c.lags, c.stride, c.bipolar_stride
        self.dropout, self.field = c.dropout, field
        channels, *size = field
        sides = [min(c.bipolar_kernel, checks) for checks in size]
        self.bipolar_map = _map(size, sides, c.bipolar_stride)
        inner = [min(c.kernel, cells) for cells in self.bipolar_map]
        self.map = _map(self.bipolar_map, inner, c.stride)
        lateral = [c.lateral_kernel if cells > 1 else 1 for cells in self.map]
        b, a, g = c.bipolar_types, c.amacrine_types, c.ganglion_types
        for name, shape in {
            "bipolar_space": (b, channels, *sides),
            "amacrine_space": (a, b, *inner),
            "ganglion_bipolar": (g, b, *inner),
            "ganglion_amacrine": (g, a, *lateral),
            "decoder": (classes, g, *self.map),
        }.items():
            self._add(name, shape, int(np.prod(shape[1:])))
        for name, types in zip(LAYERS, (b, a, g), strict=True):
            self._add(f"{name}_time", (c.filter_lags, types), c.filter_lags)
        self.fired = False  # whether a ganglion cell has fired in training since the last check

    def _add(self, name: str, shape: tuple[int, ...], inputs: int) -> None:
        """Adds weights and biases with the initial values of torch's convolutions."""
        types = shape[-1] if name.endswith("_time") else shape[0]
        bound = inputs**-0.5
        setattr(self, name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
        setattr(self, f"{name}_bias", nn.Parameter(torch.empty(types).uniform_(-bound, bound)))

    def forward(self, frames: Tensor, values: Tensor | None = None, every: int = 1) -> Tensor:
        """Computes the probabilities of the classes.

        Args:
            frames: (n + lags - 1, [channel,] y, x), oldest first, or bits (n + lags - 1, byte); see
                `TorchModel.packed`.
            values: (2,), of the bits.
            every: use only each `every`-th clip, beginning with the first.

        Returns:
            (n, class), or (⌈n / every⌉, class).
        """
        return self.decided(self.last(frames, values, every)).softmax(1)

    def last(
        self, frames: Tensor, values: Tensor | None = None, every: int = 1, layer: str = "ganglion"
    ) -> Tensor:
        """The output of a layer (n, type, y, x) in the last frame of each clip; see `forward`."""
        taps = len(self.ganglion_time)
        # The last frame of ganglion cells depends on the amacrine cells from frame `first` on, and
        # these depend on the bipolar cells from frame `needed` on.
        first = self.lags - 1 if layer == "amacrine" else max(0, self.lags - taps)
        needed = max(0, first - taps + 1)
        if layer == "bipolar":
            return self.bipolar(self.clips(frames, values, every), self.lags - 1)[:, 0]
        of_amacrine, of_ganglion = self._inputs(frames, values, every, needed, first)
        amacrine = -self._filtered(of_amacrine, "amacrine", first - needed).relu()
        if layer == "amacrine":
            return amacrine[:, 0]
        summed = of_ganglion + self._in_space(amacrine, "ganglion_amacrine")
        filters = self.ganglion_time[: summed.shape[1]].flip(0)
        drive = torch.einsum("nfcyx,fc->ncyx", summed, filters)
        ganglion = self._dropped(drive + self.ganglion_time_bias[:, None, None]).relu()
        if self.training:
            self.fired = self.fired or bool(ganglion.detach().any())
        return ganglion

    def _inputs(
        self, frames: Tensor, values: Tensor | None, every: int, needed: int, first: int
    ) -> list[Tensor]:
        """The spatially filtered bipolar cells: input of amacrine cells from frame `needed` on,
        and of ganglion cells from frame `first` on."""
        names = ["amacrine_space", "ganglion_bipolar"]
        kernels = [getattr(self, name) for name in names]
        if values is not None:
            bits = histories(frames, self.lags, every)
            if supports_bit_clips(bits, self.bipolar_space, self.bipolar_time, kernels):
                _, height, width = self.field
                pooled = pool_bit_clips(
                    bits,
                    values,
                    ClipSizes(height, width, self.bipolar_stride, self.stride, (needed, first)),
                    self.bipolar_space,
                    self.bipolar_space_bias,
                    self.bipolar_time,
                    self.bipolar_time_bias,
                    kernels,
                    self.dropout if self.training else 0.0,
                )
                biases = [getattr(self, f"{name}_bias")[:, None, None] for name in names]
                return [
                    self._dropped(maps + bias) for maps, bias in zip(pooled, biases, strict=True)
                ]
        bipolar = self.bipolar_used(self.clips(frames, values, every), needed)
        late = bipolar[:, first - needed :]
        return [
            self._in_space(maps, name) for maps, name in zip((bipolar, late), names, strict=True)
        ]

    def bipolar_used(self, clips: Tensor, first: int) -> Tensor:
        """The output of the bipolar cells that amacrine and ganglion cells depend on."""
        height, width = (
            ((cells - 1) * self.stride + inner - 1) * self.bipolar_stride + outer
            for cells, inner, outer in zip(
                self.map, self.amacrine_space.shape[2:], self.bipolar_space.shape[2:], strict=True
            )
        )
        return self.bipolar(clips[..., :height, :width], first)

    def courses(self, frames: Tensor, every: int = 1) -> dict[str, Tensor]:
        """The responses of all layers in all frames of the clips, with gradients.

        Args:
            frames: (n + lags - 1, [channel,] y, x), oldest first.
            every: use only each `every`-th clip, beginning with the first.

        Returns:
            `bipolar`, `amacrine` and `ganglion` (clip, lags, type, y, x), and `decoder` (clip,
            lags, class).
        """
        courses = self.cell_courses(frames, every)
        ganglion = courses["ganglion"]
        decoder = self.decided(ganglion.flatten(0, 1)).view(*ganglion.shape[:2], -1)
        return courses | {"decoder": decoder}

    def cell_courses(self, frames: Tensor, every: int = 1) -> dict[str, Tensor]:
        """The responses of `courses` without those of the decoder, for frames of any size."""
        bipolar = self.bipolar(self.clips(frames, None, every))
        amacrine = self.amacrine(bipolar)
        summed = self.ganglion_input(bipolar, amacrine)
        ganglion = self._filtered(summed, "ganglion").relu()
        return {"bipolar": bipolar, "amacrine": amacrine, "ganglion": ganglion}

    def clips(self, frames: Tensor, values: Tensor | None, every: int) -> Tensor:
        """The clips (n, lags, channel, y, x)."""
        if values is not None:
            frames = _unpacked(frames, values, self.field)
        clips = histories(frames, self.lags, every)
        return clips if frames.ndim == 4 else clips[:, :, None]

    def bipolar(self, clips: Tensor, first: int = 0) -> Tensor:
        """The output of bipolar cells (n, frame, type, y, x), from a frame of the clip on."""
        return self._filtered(self._in_space(clips, "bipolar_space"), "bipolar", first).relu()

    def amacrine(self, bipolar: Tensor, first: int = 0) -> Tensor:
        """The output of amacrine cells, which is not positive."""
        return -self._filtered(self._in_space(bipolar, "amacrine_space"), "amacrine", first).relu()

    def ganglion_input(self, bipolar: Tensor, amacrine: Tensor) -> Tensor:
        """The spatially filtered input of ganglion cells."""
        of_bipolar = self._in_space(bipolar, "ganglion_bipolar")
        return of_bipolar + self._in_space(amacrine, "ganglion_amacrine")

    def decided(self, ganglion: Tensor) -> Tensor:
        """The inputs of the softmax (n, class), from ganglion cells (n, type, y, x)."""
        return self._dropped(ganglion.flatten(1) @ self.decoder.flatten(1).T + self.decoder_bias)

    def clamp(self) -> None:
        """Sets negative weights to 0: all of amacrine and ganglion cells, but not the biases."""
        with torch.no_grad():
            for name, weights in self.named_parameters():
                if name.startswith(("amacrine", "ganglion")) and not name.endswith("bias"):
                    weights.clamp_(min=0)

    def scale(self, clips: Tensor) -> None:
        """Shifts and scales the weights for the start `scaled`."""
        with torch.no_grad():
            self.clamp()
            spatial = (
                ("bipolar_space",),
                ("amacrine_space",),
                ("ganglion_bipolar", "ganglion_amacrine"),
            )
            inputs: list[Callable[..., Tensor]] = [
                lambda clips: self._in_space(clips, "bipolar_space"),
                lambda bipolar: self._in_space(bipolar, "amacrine_space"),
                self.ganglion_input,
            ]
            outputs: list[Tensor] = []
            for layer, names, make in zip(LAYERS, spatial, inputs, strict=True):
                given = outputs or [clips]
                maps = _clip_by_clip(make, *given)
                scale = _deviation(maps, (0, 1, 3, 4))
                for name in names:
                    getattr(self, name).div_(scale[:, None, None, None])
                    getattr(self, f"{name}_bias").div_(scale)
                maps /= scale[:, None, None]
                drive = _clip_by_clip(partial(self._filtered, layer=layer), maps)
                scale, mean = _deviation(drive, (0, 1, 3, 4)), drive.mean((0, 1, 3, 4))
                getattr(self, f"{layer}_time").div_(scale)
                getattr(self, f"{layer}_time_bias").sub_(mean).div_(scale)
                response = ((drive - mean[:, None, None]) / scale[:, None, None]).relu()
                outputs.append(-response if layer == "amacrine" else response)
            decided = self.decided(outputs[-1][:, -1])
            scale = _deviation(decided, (0,))
            self.decoder.div_(scale[:, None, None, None])
            self.decoder_bias.sub_(decided.mean(0)).div_(scale)

    def _in_space(self, clips: Tensor, name: str) -> Tensor:
        """Convolves each frame (n, frame, channel, y, x)."""
        kernels = getattr(self, name)
        stride, padding = self.stride, [0, 0]
        if name == "bipolar_space":
            stride = self.bipolar_stride
        elif name == "ganglion_amacrine":
            stride, padding = 1, [side // 2 for side in kernels.shape[2:]]
        frames = clips.flatten(0, 1)
        maps = conv2d(frames, kernels, getattr(self, f"{name}_bias"), stride, padding)
        return self._dropped(maps).unflatten(0, clips.shape[:2])

    def _filtered(self, maps: Tensor, layer: str, first: int = 0) -> Tensor:
        bias = getattr(self, f"{layer}_time_bias")
        filtered = filter_clips(maps, getattr(self, f"{layer}_time"), first)
        return self._dropped(filtered + bias[:, None, None])

    def _dropped(self, values: Tensor) -> Tensor:
        return dropout(values, self.dropout, self.training)


def _map(size: Sequence[int], sides: Sequence[int], stride: int) -> tuple[int, int]:
    height, width = (
        (checks - side) // stride + 1 for checks, side in zip(size, sides, strict=True)
    )
    return height, width


def _clip_by_clip(function: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """The values of a function of several clips, which needs the memory of one clip."""
    parts = zip(*(one.split(1) for one in given), strict=True)
    return torch.cat([function(*part) for part in parts])


def _deviation(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The standard deviation, 1 where it is 0."""
    found = values.std(dims, correction=0)
    return torch.where(found > 0, found, 1)


def _unpacked(bits: Tensor, values: Tensor, field: tuple[int, ...]) -> Tensor:
    """The frames of bits (n, byte)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    single = (bits[..., None] >> shifts & 1).flatten(1)[:, : int(np.prod(field))]
    low, high = values
    return torch.where(single.view(-1, *field).bool(), high, low)


class CircuitHooks(Hooks):
    """Keeps weights nonnegative, and ends a fit in which all ganglion cell types are silent."""

    def __init__(self, module: CircuitModule):
        self.module, self.silent = module, False

    def optimizer(
        self, parameters: Iterable[Tensor], learning_rate: float, processes: int
    ) -> torch.optim.Optimizer:
        adam = super().optimizer(parameters, learning_rate, processes)
        adam.register_step_post_hook(lambda *_: self.module.clamp())
        return adam

    def goes_on(self) -> bool:
        self.silent, self.module.fired = not self.module.fired, False
        return not self.silent

    def ended(self, losses: Any) -> dict[str, float]:
        return {"silent": float(self.silent)}


class RetinaCircuit(TorchModel):
    """Bipolar, amacrine and ganglion cell types and a linear decoder, for the class of a clip.

    The network of Murray et al. A clip is a segment of `lags` frames, and its class is the response
    in its last frame, which is 1 for one of the cells of the recording and 0 for the others.
    Responses in all other frames are NaN. The prediction is the probability of each class. Each
    type has a spatial kernel, a temporal filter and a ReLU:

        b_i = ReLU(t_i * (K_i · s)),   a_j = -ReLU(t_j * Σ_i K_ji · b_i),
        g_k = ReLU(t_k * (Σ_i K_ki · b_i + Σ_j L_kj · a_j)),

    where s is the stimulus, · is a convolution in space and * one in time, with zeros before the
    first frame. Each of them also has a bias and is followed by dropout. The weights of amacrine
    and ganglion cells are nonnegative. A linear decoder of the ganglion cells in the last frame has
    one output for each class, to which a softmax is applied.

    The layers are `bipolar`, `amacrine` and `ganglion`. The option `weights` reads the network of
    the authors' code: a file of torch with the weights `bipolar0.bipolar_space.weight` (1, 1, 1,
    10, 10), `bipolar0.bipolar_temporal.weight` (1, 1, 31, 1, 1), `amacrine0.amacrine_space.weight`,
    `amacrine0.amacrine_temporal.weight`, `ganglion0.ganglion_bipolar_space.weight`,
    `ganglion0.ganglion_amacrine_space.weight` and `ganglion0.ganglion_temporal.weight`, the biases,
    the same for the other types, and `decisionLeft.decision_space` and
    `decisionRight.decision_space`.

    `parameters()` has the spatial kernels `bipolar_space (bipolar, [channel,] bipolar_y,
    bipolar_x)`, `amacrine_space (amacrine, bipolar, kernel_y, kernel_x)`, `ganglion_bipolar
    (ganglion, bipolar, kernel_y, kernel_x)` and `ganglion_amacrine (ganglion, amacrine, lateral_y,
    lateral_x)`, the temporal filters `bipolar_time (bipolar, filter_lag)`, `amacrine_time` and
    `ganglion_time`, `decoder (cell, ganglion, map_y, map_x)`, and a bias for each, such as
    `bipolar_space_bias (bipolar)`.

    Raises:
        UserError: by `fit`, if no ganglion cell type fires, in any of the starts, or if `weights`
            is not a file of this network.

    Example:
        >>> from retinakit.testing import small_recording
        >>> recording = small_recording(frames=200)
        >>> options = {"lags": 5, "filter_lags": 3, "bipolar_kernel": 3, "bipolar_stride": 1}
        >>> model = RetinaCircuit(options | {"steps": 10, "start": "scaled", "accelerator": "cpu"})
        >>> _ = model.fit(recording)
        >>> dict(model.predict(recording["test"].to_dataset()).sizes)
        {'frame': 50, 'cell': 2}
        >>> model.parameters()["amacrine_space"].dims
        ('amacrine', 'bipolar', 'kernel_y', 'kernel_x')
    """

    Config = RetinaCircuitConfig
    quick: ClassVar[dict[str, Any]] = TorchModel.quick | {
        "bipolar_types": 3,
        "amacrine_types": 2,
        "ganglion_types": 3,
        "bipolar_kernel": 3,
        "bipolar_stride": 1,
        "kernel": 3,
        "stride": 2,
        "filter_lags": 3,
        "dropout": 0.1,
        "start": "scaled",
        "batch": 50,
    }
    packed = True

    def build(self, field: xr.Dataset) -> nn.Module:
        sizes = field.sizes
        return CircuitModule(
            self.config, sizes["cell"], (sizes.get("channel", 1), sizes["y"], sizes["x"])
        )

    def initialise(self, module: nn.Module, recording: xr.DataTree) -> None:
        """Scales the weights, with `start: scaled`."""
        assert isinstance(module, CircuitModule)
        if self.config.start == "uniform":
            return
        split = as_response(recording["train"].to_dataset(), self.config.target)
        ends = np.flatnonzero(full_history(split["segment"], self.lags))
        chosen = ends[:: -(-len(ends) // START_CLIPS)]
        module.eval()
        parts = [frames for _, (frames,) in self._clips(split, chosen)]
        module.scale(module.clips(torch.cat(parts), None, self.lags))
        module.train()

    def loss(self, module: nn.Module, prediction: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy of each clip, for each of the cells, whose losses are averaged."""
        surprise = -(target * prediction.clamp_min(SMALLEST).log()).sum(1, keepdim=True)
        return surprise.expand_as(target)

    def hooks(self, modules: Sequence[nn.Module]) -> Hooks:
        (module,) = modules
        assert isinstance(module, CircuitModule)
        return CircuitHooks(module)

    def files(self) -> list[Path]:
        return [self.config.weights] if self.config.weights else []

    def fit(
        self,
        recording: xr.DataTree | Mapping[str, xr.DataTree],
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> xr.Dataset:
        if self.config.weights:
            return self._read_weights(self._named(recording)[""], self.config.weights)
        curves = super().fit(recording, checkpoint=checkpoint, progress=progress)
        if curves["silent"].values.all():
            c = self.config
            which = "no ganglion cell type" if c.starts == 1 else "in no start a ganglion cell type"
            scaled = "start: scaled, " if c.start == "uniform" else ""
            raise UserError(
                f"{which} fired any more in training, at the latest after "
                f"{int(curves['step'].max())} steps, and such a network cannot learn; set "
                f"{scaled}a lower learning_rate, another seed, or more starts"
            )
        return curves

    def _read_weights(self, recording: xr.DataTree, path: Path) -> xr.Dataset:
        """Reads the weights of the authors' network, and computes the validation loss."""
        self.field = coordinates_of(recording["train"].to_dataset(), self.lags)
        try:
            with warnings.catch_warnings():  # torch warns of pickles that it then refuses
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True)
            weights = _of_authors(state, self.config, [str(c) for c in self.field["cell"].values])
        except Exception as error:  # torch raises many types for a file of another format
            # The messages of torch are long, and recommend to run the code in a file.
            missing = isinstance(error, KeyError) and "." in str(error)
            reason = f"there is no {error}" if missing else type(error).__name__
            raise UserError(
                f"{path} does not hold the weights of the circuit of Murray et al. ({reason}); "
                "save the state_dict of their RetinaModel"
            ) from None
        expected = self.build(self.field).state_dict()
        for name, value in weights.items():
            if value.shape != tuple(expected[name].shape):
                raise UserError(
                    f"in {path}, '{name}' has the shape {value.shape}, and with the options and "
                    f"the stimulus it should have {tuple(expected[name].shape)}; set the numbers "
                    "of types, the kernels and filter_lags of the file"
                )
            if not np.isfinite(value).all():
                raise UserError(f"in {path}, '{name}' has values that are infinite or NaN")
        self.set_weights(weights)
        split = as_response(recording["validation"].to_dataset(), self.config.target)
        frames = Frames(split, self.config.target, self.lags, torch.device("cpu"))
        ends = frames.drawable()
        predicted = torch.from_numpy(self.respond(split)[ends])
        loss = float(self.loss(self.module, predicted, frames.target[ends]).mean())
        return xr.Dataset({"validation_loss": ("check", [loss])}, {"check": [0]})

    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        return self._over_clips(split, self.module, packed=True)

    def _over_clips(
        self, split: xr.Dataset, function: Callable[..., Tensor], packed: bool = False
    ) -> NDArray[Any]:
        """Applies a function to the clips that end with each frame with a full history."""
        ends = np.flatnonzero(full_history(split["segment"], self.lags))
        result: NDArray[Any] | None = None
        with torch.no_grad():
            for part, inputs in self._clips(split, ends, packed):
                found = function(*inputs, every=self.lags).numpy()
                if result is None:
                    shape = (split.sizes["frame"], *found.shape[1:])
                    result = np.full(shape, np.nan, np.float32)
                result[part] = found
        assert result is not None  # there is a frame with a full history
        return result

    def _clips(
        self, split: xr.Dataset, ends: NDArray[np.int64], packed: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], tuple[Tensor, ...]]]:
        """The frames of clips, or where possible and `packed` their bits, as the module takes them.

        Yields:
            For some of the clips, their last frames, and the arguments of the module.
        """
        stimulus = split["stimulus"]
        number = max(1, VALUES_AT_ONCE // (self.lags * stimulus[0].size))
        for start in range(0, len(ends), number):
            part = ends[start : start + number]
            first = part[0] - self.lags + 1
            values = stimulus[first : part[-1] + 1].values
            history = (part[:, None] - first + np.arange(1 - self.lags, 1)).ravel()
            found = pack_two_values(values) if packed else None
            if found is None:
                yield part, (torch.from_numpy(values[history].astype(np.float32)),)
            else:
                bits, *both = found
                pair = torch.tensor([float(value) for value in both])
                yield part, (torch.from_numpy(bits[history]), pair)

    def layers(self) -> dict[str, str]:
        return {layer: layer for layer in LAYERS}

    def layer_function(self, layer: str) -> Callable[..., Tensor]:
        module: Any = self.module
        return partial(module.last, layer=layer)

    def course_function(self, layer: str) -> Callable[..., Tensor]:
        module: Any = self.module
        return lambda frames: module.cell_courses(frames, self.lags)[layer].flatten(0, 1)

    def activity(self, split: Shown, layer: str) -> xr.DataArray:
        self.check_layer(layer)
        split = self.prepare(split)
        values = self._over_clips(split, self.layer_function(layer))
        maps = self.label(values, split, ("frame", layer, "map_y", "map_x"), name=layer)
        return maps.assign_coords({layer: np.arange(values.shape[1])})

    def without(self, layer: str, units: Sequence[int]) -> Self:
        self._check_units(layer, units)
        silenced = self._copy()
        weight, bias = (getattr(silenced.module, f"{layer}_time{end}") for end in ("", "_bias"))
        with torch.no_grad():
            weight[:, list(units)] = 0
            bias[list(units)] = 0
        return silenced

    def lesions(
        self, split: Shown, combinations: Iterable[Mapping[str, Sequence[int]]]
    ) -> Iterator[NDArray[Any]]:
        """The predictions of copies in which combinations of units are silent.

        The outputs of bipolar cells are computed once for all combinations (see `LesionedClips`).
        For 100 clips of 255 x 255 pixels, the 10,626 combinations of four kept types take seconds.
        """
        split, module = self.prepare(split), self.module
        assert isinstance(module, CircuitModule)
        chosen = list(combinations)
        kept = {
            layer: np.ones((len(chosen), getattr(self.config, f"{layer}_types")), bool)
            for layer in LAYERS
        }
        for row, combination in enumerate(chosen):
            for layer, units in combination.items():
                self._check_units(layer, units)
                kept[layer][row, list(units)] = False
        ends = np.flatnonzero(full_history(split["segment"], self.lags))
        found = np.empty((len(chosen), len(ends), split.sizes["cell"]), np.float32)
        parts: list[LesionedClips] = []
        done = waiting = 0
        with torch.no_grad():
            for part, (frames,) in self._clips(split, ends):
                parts.append(LesionedClips.of(module, frames))
                waiting += len(part)
                if waiting >= parts[0].most or done + waiting == len(ends):
                    together = LesionedClips.joined(parts)
                    together.predict(kept, found[:, done : done + waiting])
                    done, waiting, parts = done + waiting, 0, []
        for values in found:
            prediction = np.full((split.sizes["frame"], values.shape[1]), np.nan, np.float32)
            prediction[ends] = values
            yield prediction

    def substituted(self, layer: str, unit: int, by: int) -> Self:
        self._check_units(layer, [unit, by])
        changed = self._copy()
        with torch.no_grad():
            for name, weights in changed.module.named_parameters():
                if name.startswith(layer):
                    axis = 1 if name.endswith("_time") else 0
                    weights.select(axis, unit).copy_(weights.select(axis, by).clone())
        return changed

    def _check_units(self, layer: str, units: Sequence[int]) -> None:
        self.check_layer(layer)
        self.check_units(layer, units, getattr(self.config, f"{layer}_types"))

    def _copy(self) -> Self:
        copied = type(self)(self.config, seed=self.seed)
        copied.restore(self.state())
        return copied

    def parameters(self) -> xr.Dataset:
        self.check_fitted()
        dims = {
            "bipolar_space": ("bipolar", "channel", "bipolar_y", "bipolar_x"),
            "amacrine_space": ("amacrine", "bipolar", "kernel_y", "kernel_x"),
            "ganglion_bipolar": ("ganglion", "bipolar", "kernel_y", "kernel_x"),
            "ganglion_amacrine": ("ganglion", "amacrine", "lateral_y", "lateral_x"),
            "decoder": ("cell", "ganglion", "map_y", "map_x"),
        } | {f"{layer}_time": ("filter_lag", layer) for layer in LAYERS}
        arrays = {}
        for name, of_name in dims.items():
            weight, bias = (
                getattr(self.module, f"{name}{end}").detach().numpy() for end in ("", "_bias")
            )
            found = xr.DataArray(weight, dims=of_name)
            if name == "bipolar_space" and "channel" not in self.field.sizes:
                found = found.isel(channel=0)
            if name.endswith("_time"):
                found = found.T
            arrays[name] = found
            arrays[f"{name}_bias"] = xr.DataArray(bias, dims=found.dims[:1])
        labelled = self.field.assign(arrays)
        return labelled.assign_coords(
            {dim: np.arange(n) for dim, n in labelled.sizes.items() if dim not in labelled.coords}
        ).drop_vars([d for d in ("y", "x") if d in labelled.coords])


@dataclass
class LesionedClips:
    """The inputs of amacrine and ganglion cells from each bipolar cell type, for lesions.

    These inputs are linear up to the nonlinearity of the receiving cell, so that they are computed
    once for each pair of types and added for a combination. The input of ganglion cells from
    amacrine cells is computed once for each set of bipolar types that are not silent.

    Attributes:
        module: the network.
        amacrine: (bipolar, clip, amacrine, place, frame), filtered in space and time.
        ganglion: (bipolar, clip, ganglion, place), filtered in space and time, in the last frame.
    """

    module: CircuitModule
    amacrine: Tensor
    ganglion: Tensor

    @classmethod
    def of(cls, module: CircuitModule, frames: Tensor) -> "LesionedClips":
        """The inputs for the clips of frames (n · lags, [channel,] y, x)."""
        taps = len(module.ganglion_time)
        first = max(0, module.lags - taps)  # as in `CircuitModule.forward`
        needed = max(0, first - taps + 1)
        bipolar = module.bipolar_used(module.clips(frames, None, module.lags), needed)
        of_amacrine = _pairs(bipolar, module.amacrine_space, module.stride)
        pairs = of_amacrine.flatten(2, 3)
        filters = module.amacrine_time.repeat(1, bipolar.shape[2])
        filtered = filter_clips(pairs, filters, first - needed).view(
            len(bipolar), -1, *of_amacrine.shape[2:]
        )
        of_ganglion = _pairs(bipolar[:, first - needed :], module.ganglion_bipolar, module.stride)
        times = module.ganglion_time[: of_ganglion.shape[1]].flip(0)
        return cls(
            module,
            filtered.permute(2, 0, 3, 4, 1).contiguous(),
            torch.einsum("nfbgp,fg->bngp", of_ganglion, times),
        )

    @classmethod
    def joined(cls, parts: Sequence["LesionedClips"]) -> "LesionedClips":
        """The inputs for the clips of all parts."""
        return cls(
            parts[0].module,
            torch.cat([part.amacrine for part in parts], 1),
            torch.cat([part.ganglion for part in parts], 1),
        )

    @property
    def most(self) -> int:
        """The number of clips up to which parts are joined."""
        return max(1, LESION_VALUES // self.amacrine[:, 0].numel())

    def predict(self, kept: Mapping[str, NDArray[np.bool_]], found: NDArray[np.float32]) -> None:
        """Computes the probabilities of the classes for combinations of silent types.

        Args:
            kept: (combination, type) for each layer; false for a silent type.
            found: (combination, clip, class), which is filled.
        """
        m = self.module
        rows: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
        for row, sets in enumerate(zip(kept["bipolar"], kept["amacrine"], strict=True)):
            bipolar, amacrine = (tuple(np.flatnonzero(one).tolist()) for one in sets)
            rows.setdefault(bipolar, {}).setdefault(amacrine, []).append(row)
        times = m.ganglion_time[: self.amacrine.shape[-1]].flip(0)
        constant = (m.ganglion_bipolar_bias + m.ganglion_amacrine_bias) * times.sum(0)
        constant = (constant + m.ganglion_time_bias)[:, None]
        decoder = m.decoder.flatten(2)
        for bipolar, of_amacrine in rows.items():
            drive = constant + sum(self.ganglion[unit] for unit in bipolar)
            lateral = self._lateral(bipolar, times) if any(of_amacrine) else None
            for amacrine, here in of_amacrine.items():
                inputs = drive
                if lateral is not None and amacrine:
                    inputs = drive + lateral[:, list(amacrine)].sum(1)
                decided = torch.einsum(
                    "ngp,cgp->gnc", inputs.relu().expand(found.shape[1], -1, -1), decoder
                )
                ganglion = torch.from_numpy(kept["ganglion"][here]).to(decided.dtype)
                logits = torch.tensordot(ganglion, decided, 1) + m.decoder_bias
                found[here] = logits.softmax(-1).numpy()

    def _lateral(self, bipolar: tuple[int, ...], times: Tensor) -> Tensor:
        """The input (clip, amacrine, ganglion, place) of ganglion from amacrine cells."""
        m = self.module
        frames = self.amacrine.shape[-1]
        length = min(m.lags, frames + len(m.amacrine_time) - 1)
        bias = m.amacrine_space_bias.expand(1, length, -1)[..., None]
        constant = filter_clips(bias, m.amacrine_time, length - frames)[0, :, :, 0].T
        constant = (constant + m.amacrine_time_bias[:, None])[:, None]
        drive = constant + sum(self.amacrine[unit] for unit in bipolar)
        response = -drive.relu().expand(self.amacrine.shape[1:])
        summed = (response @ times).movedim(-1, 2)  # (clip, amacrine, ganglion, place)
        kernels = m.ganglion_amacrine.transpose(0, 1).flatten(0, 1)[:, None]
        padding = [side // 2 for side in kernels.shape[2:]]
        maps = summed.reshape(len(summed), len(kernels), *m.map)
        return conv2d(maps, kernels, padding=padding, groups=len(kernels)).view(summed.shape)


def _pairs(clips: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """Filters each input type with the kernel of each output type.

    Args:
        clips: (n, frame, input, y, x).
        kernels: (output, input, y, x).
        stride: between places.

    Returns:
        (n, frame, input, output, place).
    """
    outputs, inputs = kernels.shape[:2]
    grouped = kernels.transpose(0, 1).flatten(0, 1)[:, None]
    maps = conv2d(clips.flatten(0, 1), grouped, stride=stride, groups=inputs)
    return maps.view(*clips.shape[:2], inputs, outputs, -1)


def _of_authors(
    state: Mapping[str, Tensor], config: RetinaCircuitConfig, cells: list[str]
) -> dict[str, NDArray[Any]]:
    """The weights of the authors' network under the names of `CircuitModule`.

    Args:
        state: of the authors' network.
        config: with the numbers of types.
        cells: the names of the classes: left and right, in any order, or other names in the order
            of left and right.
    """
    numbers = dict(
        zip(
            LAYERS,
            (config.bipolar_types, config.amacrine_types, config.ganglion_types),
            strict=True,
        )
    )
    sides = cells if sorted(cells) == ["left", "right"] else ["left", "right"]
    names = {
        "bipolar_space": [f"bipolar{i}.bipolar_space" for i in range(config.bipolar_types)],
        "amacrine_space": [f"amacrine{i}.amacrine_space" for i in range(config.amacrine_types)],
        "decoder": [f"decision{side.capitalize()}.decision_space" for side in sides],
    }
    for source in ("bipolar", "amacrine"):
        names[f"ganglion_{source}"] = [
            f"ganglion{i}.ganglion_{source}_space" for i in range(config.ganglion_types)
        ]
    for layer, number in numbers.items():
        names[f"{layer}_time"] = [f"{layer}{i}.{layer}_temporal" for i in range(number)]
    found = {}
    for name, modules in names.items():
        weights = torch.cat([state[f"{module}.weight"] for module in modules])
        # The last element of a temporal filter is lag 0.
        timed = name.endswith("_time")
        weights = weights.flatten(1).flip(1).T if timed else weights[:, :, 0]
        found[name] = weights.numpy()
        found[f"{name}_bias"] = torch.cat([state[f"{m}.bias"] for m in modules]).numpy()
    return found
