"""The base of torch models: a subclass says what to build and what to penalise."""

import copy
import hashlib
import json
import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from lightning_fabric import Fabric
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from retinakit.contracts.config import Config
from retinakit.contracts.errors import RecordingError, UserError
from retinakit.contracts.model import Model, cells_of_recording, coordinates_of
from retinakit.contracts.progress import Progress, silent
from retinakit.contracts.recording import segments
from retinakit.scores import RATE_FLOOR
from retinakit.training.frames import Frames
from retinakit.training.hooks import Hooks
from retinakit.training.loop import Fit, train
from retinakit.training.schedule import Schedule
from retinakit.training.starts import Network

PREDICTION_BLOCK = 4096
"""Frames that are predicted at once, at most."""

PREDICTION_BYTES = 2**24
"""Bytes of the frames that are predicted at once: a network makes many times as much of them."""


class TorchConfig(Config):
    """Options of every torch model."""

    lags: int = Field(20, ge=1, description="Frames of history, the present one included.")
    target: Literal["response", "rate"] = Field(
        "response", description="What to fit: the recorded response, or the known rate."
    )
    loss: Literal["poisson", "mse"] = Field("poisson", description="What to minimise.")
    steps: int = Field(
        5000,
        ge=1,
        description="Training steps at most. If it is raised later, a fit with decay 'drop' or "
        "'constant' goes on from the finished one; with 'cosine' it begins anew.",
    )
    batch: int = Field(2000, ge=1, description="Frames in a batch.")
    order: Literal["contiguous", "shuffled"] = Field(
        "contiguous",
        description="'contiguous': a batch is a run of frames; 'shuffled': frames drawn one by "
        "one, each with its history, as for images, clips and responses that are seldom known.",
    )
    learning_rate: float = Field(1e-2, gt=0, description="Of Adam, at the start.")
    decay: Literal["cosine", "drop", "constant"] = Field(
        "cosine",
        description="'cosine': lower the learning rate smoothly to 0 at the last step; "
        "'drop': lower it when the validation loss stalls; 'constant': leave it.",
    )
    check_every: int = Field(200, ge=1, description="Steps between validations.")
    burn_in: int = Field(
        0,
        ge=0,
        description="Steps before which no weights are kept as the best, nor count as stalled.",
    )
    patience: int = Field(
        0, ge=0, description="Validations without a better loss before a drop; 0: never stop."
    )
    drops: int = Field(1, ge=0, description="Drops of the learning rate before the end.")
    drop_factor: float = Field(0.1, gt=0, lt=1, description="Learning rate after a drop.")
    starts: int = Field(
        1, ge=1, description="Fits from different starting weights; validation chooses."
    )
    accelerator: str = Field("auto", description="Lightning Fabric's accelerator: cpu, gpu, auto.")
    devices: int = Field(1, ge=1, description="Devices to train on together (DDP if several).")
    precision: str = Field(
        "32-true", description="Lightning Fabric's precision, such as bf16-mixed."
    )


class TorchModel(Model):
    """A model whose prediction is a torch module, trained by `retinakit.training.loop`.

    A subclass says `build`, and what else differs: `penalty`, `loss`, `initialise`, `hooks`, and
    `parameters`. What is minimised is a sum over cells of the mean loss over the frames in which a
    cell is known, and the penalty.
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
    """Submodules that all recordings have in common, such as ("core",), by their names in the
    module. A model that names some may be fitted to several recordings."""

    cells_apart: ClassVar[bool] = False
    """Whether the cell is the first axis of every parameter, and no cell depends on another's. Each
    is then fitted as if it were alone: it has its own best weights and learning rate."""

    inputs: ClassVar[tuple[str, ...]] = ("stimulus",)
    """What the module is given: ("stimulus", "covariates") for one that takes covariates."""

    stateful: ClassVar[bool] = False
    """Whether the module has a state that is carried through a segment. It is then called with the
    state last, None where a segment begins, and returns its prediction and the next state.
    Gradients go back over the frames of a batch."""

    starts_together: ClassVar[bool] = False
    """Whether several starts may be trained as one vectorised module (`torch.vmap`), which is
    faster for small networks. Batch normalisation in training, for one, cannot be."""

    extends = "steps"
    module: nn.Module
    _parts: Mapping[str, "TorchModel"] = MappingProxyType({})  # by recording, if of several

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.several = bool(cls.shared)
        if "parameters" in cls.__dict__:  # a subclass describes one recording
            cls.parameters = _of_all(cls.parameters)  # type: ignore[method-assign, assignment]

    @abstractmethod
    def build(self, field: xr.Dataset) -> nn.Module:
        """The module, with random weights.

        Args:
            field: the coordinates `lag`, `y`, `x`, `cell` and perhaps `channel` and `covariate` of
                the recording.

        Returns:
            A module from frames (n + lags - 1, [channel,] y, x), oldest first, to the expected
            spikes per bin (n, cell). With covariates it is also given these, (n + lags - 1,
            covariate). If its `forward` has a parameter `every`, it gives only each `every`-th
            prediction, from the first on, which makes training in shuffled order cheaper.
        """

    def penalty(self, module: nn.Module, prediction: Tensor) -> Tensor:
        """Added to the loss, which is a sum over cells. Nothing by default.

        Args:
            module: as built.
            prediction: (n, cell), of a batch.
        """
        return torch.zeros((), device=prediction.device)

    def loss(self, module: nn.Module, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of each prediction: Poisson or squared error, by the option `loss`.

        Args:
            module: as built; it may hold parameters of a likelihood, such as a dispersion.
            prediction: (n, cell), expected spikes per bin.
            target: (n, cell), the response, 0 where it is unknown.

        Returns:
            (n, cell), a negative log-likelihood up to a constant.
        """
        if self.config.loss == "poisson":
            return prediction - torch.xlogy(target, prediction + RATE_FLOOR)
        return (prediction - target) ** 2

    def initialise(self, module: nn.Module, recording: xr.DataTree) -> None:
        """Sets weights from the training data before the first step. Does nothing by default."""

    def hooks(self, modules: Sequence[nn.Module]) -> Hooks:
        """An optimizer, and what is done between its steps. By default plain Adam.

        Args:
            modules: as built, one for each recording.
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
        # A progress callback does not travel to the processes of DDP.
        watch = silent if several else progress
        # A partial, because Fabric would take the recordings apart as an argument.
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
            "with decay 'cosine' the learning rate of each step depends on steps; with 'drop' or "
            "'constant' it goes on"
        )

    def _named(self, recording: xr.DataTree | Mapping[str, xr.DataTree]) -> dict[str, xr.DataTree]:
        """The recordings by name; a single one has the name ""."""
        if isinstance(recording, xr.DataTree):
            return {"": recording}
        if not self.several:
            raise UserError(
                f"the {type(self).__name__} is fitted to one recording and was given "
                f"{len(recording)}; give one"
            )
        if not recording or "" in recording:
            raise UserError("several recordings are given as a mapping from their names")
        return dict(recording)

    def _check_options(
        self, recordings: Mapping[str, xr.DataTree], fields: list[xr.Dataset]
    ) -> None:
        """Raises UserError for what cannot be trained."""
        c = self.config
        if c.devices > 1 and (self.stateful or len(fields) > 1):
            raise UserError("a model with a state, or of several recordings, takes devices: 1")
        if self.stateful and c.order == "shuffled":
            raise UserError("a model with a state needs order: contiguous")
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
        """Fits from every start, and returns the training curves and the best weights."""
        config = self.config
        training, validation = (
            [
                Frames(
                    one[name].to_dataset(), config.target, config.lags, fabric.device, self.inputs
                )
                for one in recordings
            ]
            for name in ("train", "validation")
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
        """A module for each recording, at its start; what is shared is the first one's."""
        modules: list[nn.Module] = []
        for recording, field in zip(recordings, fields, strict=True):
            self.field = field  # a penalty or a start may need it
            module = self.build(field)
            for name in self.shared if modules else ():
                parent, _, child = name.rpartition(".")
                setattr(module.get_submodule(parent), child, attrgetter(name)(modules[0]))
            self.initialise(module, recording)
            modules.append(module)
        return modules

    def _digest(self, fields: list[xr.Dataset], training: list[Frames], start: int) -> str:
        """Says what fit a checkpoint belongs to: options, seed, start and responses.

        The number of steps counts where the learning rate depends on it.
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
        """Makes this the model of several recordings, which has a model of each."""
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
            return self._respond_with_state(split)
        return self.over_frames(self.module, split)

    def over_frames(self, function: Callable[..., Tensor], split: xr.Dataset) -> NDArray[Any]:
        """What a function of frames gives for each frame of a split, in blocks of frames.

        Args:
            function: from what the module is given, frames (n + lags - 1, [channel,] y, x), oldest
                first, to (n, ...), such as the module.
            split: with at least `lags` frames.

        Returns:
            (frame, ...), NaN in the first `lags` - 1 frames.
        """
        lags, found, length = self.lags, [], _predicted_at_once(split)
        with torch.no_grad():
            for first in range(0, split.sizes["frame"] - lags + 1, length):
                block = slice(first, first + length + lags - 1)
                found.append(function(*self._read(split, block)).numpy())
        early = np.full((lags - 1, *found[0].shape[1:]), np.nan, np.float32)
        return np.concatenate([early, *found])

    def _respond_with_state(self, split: xr.Dataset) -> NDArray[Any]:
        """The predictions of a module with a state, segment by segment."""
        before, length = self.lags - 1, _predicted_at_once(split)
        rate = np.full((split.sizes["frame"], self.field.sizes["cell"]), np.nan, np.float32)
        with torch.no_grad():
            for segment in segments(split):
                state = None
                for first in range(segment.start + before, segment.stop, length):
                    last = min(first + length, segment.stop)
                    inputs = self._read(split, slice(first - before, last))
                    prediction, state = self.module(*inputs, state)
                    rate[first:last] = prediction.numpy()
        return rate

    def _read(self, split: xr.Dataset, frames: slice) -> list[Tensor]:
        """What the module is given of some frames."""
        if "covariates" in self.inputs and "covariates" not in split:
            raise RecordingError(
                f"the {type(self).__name__} takes covariates and the split has no 'covariates'; "
                "predict from a split that has it"
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
        """Builds the module for the fitted field and gives it weights, as `state_dict` names them.

        A subclass may add what follows from the weights.
        """
        self.module = self.build(self.field)
        self.module.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()})
        self.module.eval()

    def check_fitted(self) -> None:
        if not hasattr(self, "module"):
            raise UserError(f"the {type(self).__name__} is not fitted; call fit or load first")


def _predicted_at_once(split: xr.Dataset) -> int:
    """Frames whose prediction takes a bounded part of the memory, whatever their size."""
    pixels = split["stimulus"][0].size
    return max(1, min(PREDICTION_BLOCK, PREDICTION_BYTES // (4 * pixels)))


def _of_all(parameters: Callable[[Any], xr.Dataset]) -> Callable[[Any], xr.Dataset]:
    """The method `parameters` of one recording, for a model that may be of several."""

    @wraps(parameters)
    def of_all(model: TorchModel) -> xr.Dataset:
        if model.recordings:
            return joined({name: model.of(name).parameters() for name in model.recordings})
        return parameters(model)

    return of_all


def joined(parts: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Labelled arrays of several recordings as one, along `cell`.

    What has no cells is of all recordings, and is the first one's. The coordinate `recording` says
    whose each cell is, and a cell is named RECORDING/CELL.
    """
    named = [cells_of_recording(part, name) for name, part in parts.items()]
    with_cells = [part[[n for n in part.data_vars if "cell" in part[n].dims]] for part in named]
    cells: xr.Dataset = xr.concat(with_cells, "cell", join="outer", combine_attrs="override")
    alone = [n for n in named[0].data_vars if "cell" not in named[0][n].dims]
    return cells.assign(named[0][alone].data_vars)


def randn_of_cells(field: xr.Dataset, *shape: int) -> Tensor:
    """Standard normal numbers (cell, *shape) that depend on the seed and on each cell's name only.

    So a cell starts with the same weights alone and beside others. To be used in
    `TorchModel.build`.

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
    """The best weights of all starts; of each cell its own where cells are fitted apart."""
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
    """The curves of a fit, over `start` and `check`."""
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
