"""The base class of torch models."""

import copy
import hashlib
import inspect
import json
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, wraps
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import xarray as xr
from lightning_fabric import Fabric
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from torch import Tensor, nn

from retinakit.contracts.config import Config
from retinakit.contracts.errors import RecordingError, UserError
from retinakit.contracts.model import Model, Shown, cells_of_recording, coordinates_of
from retinakit.contracts.progress import Progress, silent
from retinakit.contracts.recording import as_response, require_uncentred, segments
from retinakit.scores import RATE_FLOOR
from retinakit.training.frames import Frames
from retinakit.training.hooks import Hooks
from retinakit.training.loop import Fit, train
from retinakit.training.schedule import Schedule
from retinakit.training.starts import Network

PREDICTION_BLOCK = 4096
"""Maximum number of frames that are predicted together."""

PREDICTION_BYTES = 2**24
"""Maximum size in bytes of the frames that are predicted together; the activations of a network
need several times as much memory."""


class TorchConfig(Config):
    """Options of all torch models.

    Example:
        >>> TorchConfig(lags=10, steps=1000).learning_rate
        0.01
    """

    lags: int = Field(
        20, ge=1, description="Number of frames of history, including the current frame."
    )
    target: Literal["response", "rate"] = Field(
        "response", description="Target of the fit: the recorded response or the known rate."
    )
    trials: Literal["mean", "single", "all"] = Field(
        "mean",
        description="Training target of a response with repeats: their 'mean'; 'single': the last "
        "trial, clipped to 0 and 1; 'all': a trial that is drawn for each frame in each epoch. "
        "Validation is with the mean.",
    )
    loss: Literal["poisson", "mse"] = Field(
        "poisson", description="Loss: Poisson or mean squared error."
    )
    steps: int = Field(
        5000,
        ge=1,
        description="Maximum number of training steps. If it is raised after a fit, the fit is "
        "continued with decay 'drop' or 'constant', and starts from the beginning with 'cosine'.",
    )
    batch: int = Field(2000, ge=1, description="Number of frames in a batch.")
    order: Literal["contiguous", "shuffled"] = Field(
        "contiguous",
        description="'contiguous': a batch is a run of frames; 'shuffled': frames are drawn "
        "individually, each with its history, for images, clips and sparsely known responses.",
    )
    learning_rate: float = Field(1e-2, gt=0, description="Initial learning rate of Adam.")
    decay: Literal["cosine", "drop", "constant"] = Field(
        "cosine",
        description="'cosine': the learning rate decreases smoothly to 0 at the last step; "
        "'drop': it is reduced when the validation loss stops improving; 'constant': it does not "
        "change.",
    )
    check_every: int = Field(200, ge=1, description="Number of steps between validations.")
    burn_in: int = Field(
        0,
        ge=0,
        description="Number of initial steps that are ignored in the choice of the best weights "
        "and in early stopping.",
    )
    patience: int = Field(
        0,
        ge=0,
        description="Number of validations without improvement before the learning rate is "
        "reduced; 0: never.",
    )
    stop_by: Literal["validation", "training"] = Field(
        "validation",
        description="Loss that has to improve for 'patience', of the validation or, with the "
        "penalties, of the training since the last validation. The best weights are those with the "
        "lowest validation loss.",
    )
    min_delta: float = Field(
        0.0, ge=0, description="Smallest decrease of this loss that is an improvement."
    )
    drops: int = Field(
        1,
        ge=0,
        description="Number of reductions of the learning rate before training ends; 0: it ends "
        "when the loss stops improving.",
    )
    drop_factor: float = Field(
        0.1, gt=0, lt=1, description="Factor of the learning rate in a reduction."
    )
    starts: int = Field(
        1,
        ge=1,
        description="Number of fits from different initial weights; the validation loss selects "
        "one.",
    )
    accelerator: str = Field(
        "auto", description="Accelerator of Lightning Fabric, such as cpu, gpu or auto."
    )
    devices: int = Field(
        1, ge=1, description="Number of devices for training; several train in parallel (DDP)."
    )
    precision: str = Field(
        "32-true", description="Precision of Lightning Fabric, such as bf16-mixed."
    )


class TorchModel(Model):
    """Base class of models whose prediction is a torch module.

    A subclass implements `build` and `parameters`, and may override `penalty`, `loss`, `initialise`
    and `hooks`. With layers, it also implements `layers`, `layer_function` and `without`. The
    module is trained by `retinakit.training.train`, which minimises the penalty
    plus a sum over cells, for each cell the mean loss over the frames in which its response is
    known.

    Example:
        >>> class Softplus(TorchModel):
        ...     def build(self, field):
        ...         pixels, cells = field.sizes["y"] * field.sizes["x"], field.sizes["cell"]
        ...         return nn.Sequential(nn.Flatten(), nn.Linear(pixels, cells), nn.Softplus())
        ...
        ...     def parameters(self):
        ...         weight = self.module[1].weight.detach().numpy()
        ...         shape = [self.field.sizes[dim] for dim in ("cell", "y", "x")]
        ...         return self.field.assign(kernel=(("cell", "y", "x"), weight.reshape(shape)))
        >>> from retinakit.testing import small_recording
        >>> recording = small_recording(frames=200)
        >>> model = Softplus({"lags": 1, "steps": 10, "batch": 50, "accelerator": "cpu"})
        >>> curves = model.fit(recording)
        >>> model.predict(recording["test"]).shape, dict(model.parameters()["kernel"].sizes)
        ((50, 2), {'cell': 2, 'y': 8, 'x': 8})
    """

    Config: ClassVar[type[Config]] = TorchConfig
    quick: ClassVar[dict[str, Any]] = {
        "lags": 5,
        "steps": 40,
        "batch": 200,
        "check_every": 10,
        "accelerator": "cpu",
    }

    shared: ClassVar[tuple[str, ...]] = ()
    """The names of submodules that are shared by all recordings, such as ("core",). A model with
    shared submodules can be fitted to several recordings."""

    cells_apart: ClassVar[bool] = False
    """Whether the cell is the first axis of every parameter and the cells are independent. Each
    cell is then fitted separately: it has its own best weights and learning rate."""

    inputs: ClassVar[tuple[str, ...]] = ("stimulus",)
    """The arguments of the module: ("stimulus", "covariates") for a module with covariates."""

    packed: ClassVar[bool] = False
    """Whether the module takes a stimulus of two values as bits, which need an eighth of the memory
    of uint8. In training, its first two arguments are then the bits (n, byte) uint8 (see
    `retinakit.contracts.Bits.packed`) and the values (2,) of bit 0 and of bit 1. Otherwise, its
    only argument is the frames."""

    starts_together: ClassVar[bool] = False
    """Whether several starts are trained as one vectorised module (`torch.vmap`), which is faster
    for small networks. It is not possible with batch normalisation, for example."""

    extends = "steps"
    module: nn.Module
    _parts: Mapping[str, "TorchModel"] = MappingProxyType({})  # by recording, if there are several

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.several = bool(cls.shared)
        if "parameters" in cls.__dict__:  # a subclass describes one recording
            cls.parameters = _of_all(cls.parameters)  # type: ignore[method-assign, assignment]

    @property
    def stateful(self) -> bool:
        """Whether the module has a state that is propagated through a segment.

        Its last argument is then the state, None at the start of a segment, and it returns the
        prediction and the new state. Gradients are propagated through the frames of a batch. A
        class attribute can replace this property where it does not depend on the options.
        """
        return False

    def stateful_layer(self, layer: str) -> bool:
        """Whether the function of a layer (`layer_function`) takes and returns the state too.

        Args:
            layer: one of `layers()`.
        """
        return False

    @abstractmethod
    def build(self, field: xr.Dataset) -> nn.Module:
        """Builds the module, with random initial weights.

        Args:
            field: the coordinates of the recording: `lag`, `y`, `x`, `cell` and, if the recording
                has them, `channel` and `covariate` (see `retinakit.contracts.coordinates_of`).

        Returns:
            A module that maps frames (n + lags - 1, [channel,] y, x), oldest first, to expected
            spikes per bin (n, cell). With covariates, these are a second argument (n + lags - 1,
            covariate). If `forward` has the parameter `every`, it returns only each `every`-th
            prediction, beginning with the first; training in shuffled order is then faster.
        """

    def penalty(self, module: nn.Module, prediction: Tensor) -> Tensor:
        """The penalty that is added to the loss, by default 0.

        Args:
            module: as built by `build`.
            prediction: (n, cell), of a batch.

        Returns:
            A scalar. The loss to which it is added is a sum over cells.
        """
        return torch.zeros((), device=prediction.device)

    def loss(self, module: nn.Module, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of each prediction, by default Poisson or squared error by the option `loss`.

        Args:
            module: as built by `build`; it may have parameters of a likelihood, such as a
                dispersion.
            prediction: (n, cell), expected spikes per bin.
            target: (n, cell), the response, 0 where it is unknown.

        Returns:
            (n, cell), a negative log-likelihood up to a constant.
        """
        if self.config.loss == "poisson":
            return prediction - torch.xlogy(target, prediction + RATE_FLOOR)
        return (prediction - target) ** 2

    def initialise(self, module: nn.Module, recording: xr.DataTree) -> None:
        """Initialises weights from the training data before the first step, by default none.

        Args:
            module: as built by `build`; modified in place.
            recording: of which only `train` may be used.
        """

    def hooks(self, modules: Sequence[nn.Module]) -> Hooks:
        """The hooks of the training loop, by default those of training with Adam.

        Args:
            modules: as built by `build`, one for each recording.
        """
        return Hooks()

    @property
    def lags(self) -> int:
        lags: int = self.config.lags
        return lags

    def fit(
        self,
        recording: xr.DataTree | Mapping[str, xr.DataTree],
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> xr.Dataset:
        config, self._parts = self.config, {}
        recordings = self._named(recording)
        fields = [
            coordinates_of(one["train"].to_dataset(), config.lags) for one in recordings.values()
        ]
        self._check_options(recordings, fields)
        several = config.devices > 1
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            precision=config.precision,
            strategy="ddp_spawn" if several else "auto",
        )
        # A progress callback cannot be passed to the processes of DDP.
        watch = silent if several else progress
        # A partial, because Fabric converts the containers among the arguments.
        work = partial(
            self._fit_starts,
            recordings=list(recordings.values()),
            fields=fields,
            checkpoint=checkpoint,
            progress=watch,
        )
        curves, weights = fabric.launch(work)
        if "" in recordings:
            self.field = fields[0]
            self.set_weights(_of_recording(weights, 0))
        else:
            parts = {}
            for index, name in enumerate(recordings):
                parts[name] = part = copy.copy(self)
                part.field = fields[index]
                part.set_weights(_of_recording(weights, index))
            self._join(parts)
        return curves

    def begins_anew(self) -> str:
        if self.config.decay != "cosine":
            return ""
        return (
            "with decay 'cosine' the learning rate of each step depends on 'steps'; with 'drop' or "
            "'constant' the fit would be continued"
        )

    def _named(self, recording: xr.DataTree | Mapping[str, xr.DataTree]) -> dict[str, xr.DataTree]:
        """The recordings by name; a single one has the name ""."""
        if isinstance(recording, xr.DataTree):
            return {"": recording}
        if not self.several:
            raise UserError(
                f"the {type(self).__name__} can be fitted to one recording only and was given "
                f"{len(recording)}; give one"
            )
        if not recording or "" in recording:
            raise UserError(
                "a recording has no name; give several recordings as a mapping from their names"
            )
        return dict(recording)

    def _check_options(
        self, recordings: Mapping[str, xr.DataTree], fields: list[xr.Dataset]
    ) -> None:
        """Checks options and recordings.

        Raises:
            UserError: if the options cannot be combined.
            RecordingError: if the fields of the recordings differ, or the loss is Poisson and the
                responses of a cell are centred on 0.
        """
        c = self.config
        if c.devices > 1 and (self.stateful or len(fields) > 1):
            raise UserError(
                "a model with a state, or of several recordings, cannot be trained on several "
                "devices; set devices: 1"
            )
        if self.stateful and c.order == "shuffled":
            raise UserError(
                "a model with a state cannot be trained in shuffled order; set order: contiguous"
            )
        if c.loss == "poisson" and type(self).loss is TorchModel.loss:
            for recording in recordings.values():
                require_uncentred(
                    as_response(recording["train"].to_dataset(), c.target)["response"]
                )
        first, *others = fields
        for name, field in zip(list(recordings)[1:], others, strict=True):
            for dim in ("channel", "y", "x"):
                if field.sizes.get(dim) != first.sizes.get(dim):
                    raise RecordingError(
                        f"recording '{name}' has {field.sizes.get(dim, 'no')} '{dim}' and "
                        f"'{next(iter(recordings))}' has {first.sizes.get(dim, 'none')}; crop "
                        "them to the same field"
                    )

    def _fit_starts(
        self,
        fabric: Fabric,
        recordings: list[xr.DataTree],
        fields: list[xr.Dataset],
        checkpoint: Path | None,
        progress: Progress,
    ) -> tuple[xr.Dataset, dict[str, NDArray[Any]]]:
        """Fits the model from all starts; returns the training curves and the best weights."""
        config = self.config
        training, validation = (
            [
                Frames(
                    one[name].to_dataset(),
                    config.target,
                    config.lags,
                    fabric.device,
                    self.inputs,
                    self.packed,
                    trials,
                )
                for one in recordings
            ]
            for name, trials in (("train", config.trials), ("validation", "mean"))
        )
        schedule = Schedule(
            **{name: getattr(config, name) for name in Schedule.__dataclass_fields__}
        )
        networks = []
        for start in range(config.starts):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed * 1000 + start)
                modules = self._modules(recordings, fields)
            network = Network(modules, self.penalty, self.loss, config.lags, self.stateful)
            networks.append(network.to(fabric.device))
        together = self.starts_together and config.devices == 1 and not self.stateful
        groups = [networks] if together else [[network] for network in networks]
        fits: list[Fit] = []
        for index, group in enumerate(groups):
            with torch.random.fork_rng(devices=[]):
                fit = train(
                    fabric,
                    group,
                    training,
                    validation,
                    schedule,
                    seed=self.seed * 1000 + index,
                    cells_apart=self.cells_apart,
                    hooks=self.hooks(list(group[0].of_recording)),
                    checkpoint=checkpoint and checkpoint.with_suffix(f".{index}.pt"),
                    digest=self._digest(fields, training, index),
                    progress=lambda done, total, message="", index=index: progress(
                        index * total + done, len(groups) * total, message
                    ),
                )
            fits.append(fit)
        combined = xr.concat([_curves(fit) for fit in fits], "start", join="outer")
        combined = combined.assign_coords(start=np.arange(config.starts))
        return combined, {name: value.cpu().numpy() for name, value in _chosen(fits).items()}

    def _modules(self, recordings: list[xr.DataTree], fields: list[xr.Dataset]) -> list[nn.Module]:
        """An initialised module for each recording, with the shared submodules of the first."""
        modules: list[nn.Module] = []
        for recording, field in zip(recordings, fields, strict=True):
            self.field = field  # may be used by `initialise` and `penalty`
            module = self.build(field)
            for name in self.shared if modules else ():
                parent, _, child = name.rpartition(".")
                setattr(module.get_submodule(parent), child, attrgetter(name)(modules[0]))
            self.initialise(module, recording)
            modules.append(module)
        return modules

    def _digest(self, fields: list[xr.Dataset], training: list[Frames], start: int) -> str:
        """Identifies a fit by its options, seed, start and responses.

        The number of steps is included if the learning rate depends on it.
        """
        options = json.loads(self.config.model_dump_json())
        if options["decay"] != "cosine":
            options["burn_in"] = min(options["burn_in"], options.pop("steps"))
        if not self.starts_together:
            options.pop("starts")
        hashed = hashlib.blake2b(digest_size=16)
        hashed.update(json.dumps([type(self).__name__, options, self.seed, start]).encode())
        for field, frames in zip(fields, training, strict=True):
            hashed.update(json.dumps({str(k): n for k, n in field.sizes.items()}).encode())
            hashed.update(frames.target.cpu().numpy().tobytes())
        return hashed.hexdigest()

    @property
    def recordings(self) -> tuple[str, ...]:
        return tuple(self._parts)

    def of(self, name: str) -> Model:
        return self._parts[name] if name in self._parts else super().of(name)

    def _join(self, parts: dict[str, "TorchModel"]) -> None:
        """Makes this the model of several recordings, from the models of each."""
        first = next(iter(parts.values()))
        for part in list(parts.values())[1:]:
            for name in self.shared:
                parent, _, child = name.rpartition(".")
                shared = attrgetter(name)(first.module)
                setattr(part.module.get_submodule(parent), child, shared)
        self._parts = parts
        fields = [cells_of_recording(part.field, name) for name, part in parts.items()]
        cells = xr.concat([field[["cell", "recording"]] for field in fields], "cell")
        self.field = fields[0].drop_dims("cell").assign_coords(cells.coords)
        self.module = first.module

    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        if self.stateful:
            return self._over_segments(self.module, split)
        return self.over_frames(self.module, split)

    def over_frames(self, function: Callable[..., Tensor], split: xr.Dataset) -> NDArray[Any]:
        """Applies a function, such as the module, to the frames of a split, in blocks.

        Args:
            function: has the arguments of the module, frames (n + lags - 1, [channel,] y, x),
                oldest first, and returns (n, ...).
            split: with at least `lags` frames.

        Returns:
            (frame, ...), NaN in the first `lags` - 1 frames.

        Raises:
            RecordingError: if the model has covariates and the split does not.
        """
        lags, found, length = self.lags, [], _predicted_at_once(split)
        with torch.no_grad():
            for first in range(0, split.sizes["frame"] - lags + 1, length):
                block = slice(first, first + length + lags - 1)
                found.append(function(*self._read(split, block)).numpy())
        early = np.full((lags - 1, *found[0].shape[1:]), np.nan, np.float32)
        return np.concatenate([early, *found])

    def layer_function(self, layer: str) -> Callable[..., Tensor]:
        """The function that computes the outputs of a layer; for a subclass with `layers`.

        Args:
            layer: one of `layers()`.

        Returns:
            A differentiable function with the arguments of the module, frames (n + lags - 1,
            [channel,] y, x), oldest first, that returns (n, unit) or (n, unit, map_y, map_x). If it
            has the parameter `every`, as `forward` may have, gradients of clips are faster. A
            convolution should accept frames of any size, for gradients of a part of the field.
        """
        raise UserError(
            f"the {type(self).__name__} has layers and no method layer_function, which returns the "
            "function that computes a layer; add it"
        )

    def activity(self, split: Shown, layer: str) -> xr.DataArray:
        self.check_layer(layer)
        split, unit = self.prepare(split), self.layers()[layer]
        over = self._over_segments if self.stateful_layer(layer) else self.over_frames
        values = over(self.layer_function(layer), split)
        dims = ("frame", unit, "map_y", "map_x")[: values.ndim]
        labelled = self.label(values, split, dims, name=layer)
        return labelled.assign_coords({unit: np.arange(values.shape[1])})

    def cropped(self, y: slice, x: slice) -> Self:
        self.check_fitted()
        part = copy.copy(self)
        part.field = self.field.isel(y=y, x=x)
        return part

    def stimulus_gradient(
        self, split: Shown, weight: ArrayLike, layer: str | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        if layer is not None:
            self.check_layer(layer)
        split = self.prepare(split)
        return self._gradient(split, weight, self._differentiable(split, layer))

    def course_gradient(
        self, split: Shown, weight: ArrayLike, layer: str
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        self.check_layer(layer)
        split, function = self.prepare(split), self.course_function(layer)
        if function is None:
            return super().course_gradient(split, weight, layer)
        if any(piece.stop - piece.start != self.lags for piece in segments(split)):
            raise UserError(f"some segments do not have {self.lags} frames; give such clips")

        def blocks() -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
            length = max(1, _predicted_at_once(split) // self.lags) * self.lags
            for first in range(0, split.sizes["frame"], length):
                frames = slice(first, first + length)
                shown, *others = self._read(split, frames)
                yield frames, frames, shown, function(shown.requires_grad_(), *others)

        return self._gradient(split, weight, blocks(), early=True)

    def course_function(self, layer: str) -> Callable[..., Tensor] | None:
        """The function that computes the outputs of a layer in all frames of a clip.

        For a module of clips that begins from rest; see `course_gradient`.

        Args:
            layer: one of `layers()`.

        Returns:
            A differentiable function with the arguments of the module, for the frames (clips ·
            lags, [channel,] y, x) of several clips, that returns (clips · lags, unit, ...); by
            default None, for a module without outputs in all frames.
        """
        return None

    def _gradient(
        self,
        split: xr.Dataset,
        weight: ArrayLike,
        blocks: Iterable[tuple[slice, slice, Tensor, Tensor]],
        early: bool = False,
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """The weighted outputs of blocks (see `_differentiable`) and their gradient.

        Args:
            early: whether frames without a full history count too.
        """
        stimulus, weights = split["stimulus"], None
        value = np.zeros(len(stimulus))
        gradient = np.zeros(stimulus.shape, np.float32)
        for frames, predicted, shown, outputs in blocks:
            if weights is None:
                shape = (len(stimulus), *outputs.shape[1:])
                whole = self.broadcast_weight(weight, split, shape, early=early)
                weights = torch.from_numpy(whole).float()
            weighted = (outputs * weights[predicted]).flatten(1).sum(1)
            value[predicted] = weighted.detach().numpy()
            if weighted.requires_grad:  # the output of a silenced unit may be a constant
                (slope,) = torch.autograd.grad(
                    weighted.sum(), shown, materialize_grads=True, allow_unused=True
                )
                gradient[frames] += slope.numpy()
        return value, gradient

    def _differentiable(
        self, split: xr.Dataset, layer: str | None
    ) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """The outputs of the module or of a layer, in blocks.

        Yields:
            The frames of a block, those of its outputs, the tensor of the stimulus, and the outputs
            (n, ...) as a function of it.
        """
        function = self.module if layer is None else self.layer_function(layer)
        length, before, pieces = _predicted_at_once(split), self.lags - 1, segments(split)
        every: dict[str, int] = {}
        if self.stateful if layer is None else self.stateful_layer(layer):
            # The gradient is propagated through a whole segment.
            with_state, length = function, split.sizes["frame"]
            function = lambda *inputs: with_state(*inputs, None)[0]  # noqa: E731
        elif self.lags == 1:  # segments do not matter
            pieces = [slice(0, split.sizes["frame"])]
        elif _takes_every(function) and all(p.stop - p.start == self.lags for p in pieces):
            # Clips with one output are one piece, of which the output of each clip is computed.
            every, pieces = {"every": self.lags}, [slice(0, split.sizes["frame"])]
            length = -(-length // self.lags) * self.lags
        for piece in pieces:
            for first in range(piece.start + before, piece.stop, length):
                last = min(first + length, piece.stop)
                frames = slice(first - before, last)
                shown, *others = self._read(split, frames)
                outputs = function(shown.requires_grad_(), *others, **every)
                yield frames, slice(first, last, every.get("every", 1)), shown, outputs

    def _over_segments(self, function: Callable[..., Any], split: xr.Dataset) -> NDArray[Any]:
        """Like `over_frames`, for a function with a state, segment by segment."""
        before, length = self.lags - 1, _predicted_at_once(split)
        found: NDArray[Any] | None = None
        with torch.no_grad():
            for segment in segments(split):
                state = None
                for first in range(segment.start + before, segment.stop, length):
                    last = min(first + length, segment.stop)
                    inputs = self._read(split, slice(first - before, last))
                    outputs, state = function(*inputs, state)
                    if found is None:
                        shape = (split.sizes["frame"], *outputs.shape[1:])
                        found = np.full(shape, np.nan, np.float32)
                    found[first:last] = outputs.numpy()
        assert found is not None  # a frame has a full history
        return found

    def _read(self, split: xr.Dataset, frames: slice) -> list[Tensor]:
        """The arguments of the module for some frames."""
        if "covariates" in self.inputs and "covariates" not in split:
            raise RecordingError(
                f"the {type(self).__name__} requires covariates and the split has no 'covariates'; "
                "predict from a split with covariates"
            )
        return [
            torch.from_numpy(np.ascontiguousarray(split[name][frames].values, dtype=np.float32))
            for name in self.inputs
        ]

    def state(self) -> xr.Dataset:
        self.check_fitted()
        if self.recordings:
            states = []
            for index, part in enumerate(self._parts.values()):
                state = part.state()
                names = {n: f"{index}.{n}" for n in {*state.variables, *state.dims}}
                attrs = {f"{index}.{key}": value for key, value in state.attrs.items()}
                state = state.rename(names)
                state.attrs = attrs
                states.append(state)
            merged = xr.merge(states, combine_attrs="no_conflicts")
            return merged.assign_attrs(recordings=json.dumps(self.recordings))
        arrays = {
            f"module.{name}": ([f"{name}_{i}" for i in range(value.ndim)], value.numpy())
            for name, value in self.module.state_dict().items()
        }
        return self.field.assign(arrays)

    def restore(self, state: xr.Dataset) -> None:
        self._parts = {}
        if "recordings" in state.attrs:
            parts = {}
            for index, name in enumerate(json.loads(state.attrs["recordings"])):
                prefix = f"{index}."
                own = [n for n in state.variables if str(n).startswith(prefix)]
                part = (
                    state[own]
                    .reset_coords(drop=False)
                    .set_coords([n for n in own if n in state.coords])
                )
                names = {n: str(n).removeprefix(prefix) for n in {*part.variables, *part.dims}}
                attrs = {
                    key.removeprefix(prefix): value
                    for key, value in state.attrs.items()
                    if key.startswith(prefix)
                }
                parts[name] = model = copy.copy(self)
                renamed = part.rename(names)
                renamed.attrs = attrs
                model.restore(renamed)
            self._join(parts)
            return
        weights = {
            str(name).removeprefix("module."): value.values
            for name, value in state.data_vars.items()
        }
        self.field = state[list(state.coords)]
        self.field.attrs = dict(state.attrs)
        self.set_weights(weights)

    def set_weights(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Builds the module for the fitted field and loads its weights.

        A subclass may override it to compute quantities that depend on the weights.

        Args:
            weights: with the names of the module's `state_dict`.
        """
        self.module = self.build(self.field)
        self.module.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()})
        self.module.eval()

    def check_fitted(self) -> None:
        if not hasattr(self, "module"):
            raise UserError(f"the {type(self).__name__} is not fitted; call fit or load first")


def _predicted_at_once(split: xr.Dataset) -> int:
    """The number of frames that are predicted together, which bounds the memory."""
    pixels = split["stimulus"][0].size
    return max(1, min(PREDICTION_BLOCK, PREDICTION_BYTES // (4 * pixels)))


def _takes_every(function: Callable[..., Any]) -> bool:
    """Whether a module or a function has the parameter `every`; see `TorchModel.build`."""
    called = function.forward if isinstance(function, nn.Module) else function
    return "every" in inspect.signature(called).parameters


def _of_all(parameters: Callable[[Any], xr.Dataset]) -> Callable[[Any], xr.Dataset]:
    """Extends a method `parameters` to models of several recordings."""

    @wraps(parameters)
    def of_all(model: TorchModel) -> xr.Dataset:
        if model.recordings:
            return joined({name: model.of(name).parameters() for name in model.recordings})
        return parameters(model)

    return of_all


def joined(parts: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Joins the parameters of several recordings along `cell`.

    Cells are named RECORDING/CELL and have the coordinate `recording`. Parameters without cells are
    shared by all recordings and are taken from the first.

    Args:
        parts: the parameters by the name of the recording.
    """
    named = [cells_of_recording(part, name) for name, part in parts.items()]
    with_cells = [part[[n for n in part.data_vars if "cell" in part[n].dims]] for part in named]
    cells: xr.Dataset = xr.concat(with_cells, "cell", join="outer", combine_attrs="override")
    alone = [n for n in named[0].data_vars if "cell" not in named[0][n].dims]
    return cells.assign(named[0][alone].data_vars)


def randn_of_cells(field: xr.Dataset, *shape: int) -> Tensor:
    """Standard normal numbers that depend only on the seed of torch and the name of each cell.

    With them as initial weights in `TorchModel.build`, the fit of a cell does not depend on the
    other cells of the recording (see `TorchModel.cells_apart`).

    Args:
        field: with the coordinate `cell`.
        shape: of the numbers of each cell.

    Returns:
        (cell, *shape).

    Example:
        >>> import torch
        >>> import xarray as xr
        >>> both, one = (xr.Dataset(coords={"cell": cells}) for cells in ([3, 8], [8]))
        >>> _ = torch.manual_seed(0)
        >>> bool((randn_of_cells(both, 4)[1] == randn_of_cells(one, 4)[0]).all())
        True
    """
    drawn = []
    for cell in field["cell"].values:
        seed = torch.initial_seed() + zlib.crc32(str(cell).encode())
        drawn.append(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))
    return torch.stack(drawn)


def _of_recording(weights: Mapping[str, NDArray[Any]], index: int) -> dict[str, NDArray[Any]]:
    """The weights of the module of one recording."""
    prefix = f"{index}."
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _chosen(fits: list[Fit]) -> dict[str, Tensor]:
    """The best weights of all starts, chosen for each cell if cells are fitted separately."""
    states = [state for fit in fits for state in fit.best.states]
    losses = torch.cat([fit.best.loss for fit in fits])
    if losses.shape[1] == 1:
        return states[int(losses[:, 0].argmin())]
    best = losses.argmin(0).tolist()
    return {
        name: torch.stack([states[start][name][cell] for cell, start in enumerate(best)])
        for name in states[0]
    }


def _curves(fit: Fit) -> xr.Dataset:
    """The training curves of a fit, (start, check)."""
    checks = np.arange(len(fit.curves["step"]))
    curves = {
        name: xr.DataArray(
            np.array(values, float),
            dims=("check", "start")[: np.ndim(values)],
            coords={"check": checks},
        )
        for name, values in fit.curves.items()
    }
    losses = torch.where(fit.best.loss.isfinite(), fit.best.loss, torch.nan).nanmean(1)
    best = {
        "best_validation_loss": ("start", losses.tolist()),
        "best_step": ("start", fit.best.step.amax(1).tolist()),
    } | {name: ("start", [number]) for name, number in fit.numbers.items()}
    combined: xr.Dataset = xr.broadcast(xr.Dataset(curves))[0].transpose("start", ...)
    return combined.assign(best)
