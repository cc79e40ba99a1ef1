"""The base of torch models: a subclass says what to build and what to penalise."""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from lightning_fabric import Fabric
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from retinakit.contracts.config import Config
from retinakit.contracts.errors import UserError
from retinakit.contracts.model import Model, coordinates_of
from retinakit.contracts.progress import Progress, silent
from retinakit.training.exact_zeros import ExactZeros
from retinakit.training.loop import Fit, Frames, Schedule, train

PREDICTION_BLOCK = 4096


class TorchConfig(Config):
    """Options of every torch model."""

    lags: int = Field(20, ge=1, description="Frames of history, the present one included.")
    target: Literal["response", "rate"] = Field(
        "response", description="What to fit: the recorded response, or the known rate."
    )
    loss: Literal["poisson", "mse"] = Field("poisson", description="What to minimise.")
    steps: int = Field(5000, ge=1, description="Training steps at most.")
    batch: int = Field(2000, ge=1, description="Frames in a batch, contiguous in time.")
    learning_rate: float = Field(1e-2, gt=0, description="Of Adam, at the start.")
    decay: Literal["cosine", "drop"] = Field(
        "cosine",
        description="'cosine': lower the learning rate smoothly to 0 at the last step; "
        "'drop': lower it when the validation loss stalls.",
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

    A subclass says `build`, and what else differs: `penalty`, `initialise`, and `parameters`.
    """

    Config: ClassVar[type[Config]] = TorchConfig
    quick: ClassVar[dict[str, Any]] = {
        "lags": 5,
        "steps": 40,
        "batch": 200,
        "check_every": 10,
        "accelerator": "cpu",
    }

    starts_together: ClassVar[bool] = False
    """Whether several starts may be trained as one vectorised module (`torch.vmap`), which is
    faster for small networks. Batch normalisation in training, for one, cannot be."""

    module: nn.Module
    field: xr.Dataset

    @abstractmethod
    def build(self, field: xr.Dataset) -> nn.Module:
        """The module, with random weights.

        Args:
            field: the coordinates `lag`, `y`, `x`, `cell` and perhaps `channel` of the recording.

        Returns:
            A module from frames (n + lags - 1, [channel,] y, x), oldest first, to the expected
            spikes per bin (n, cell).
        """

    def penalty(self, module: nn.Module) -> Tensor:
        """Added to the mean loss per frame and cell. Nothing by default."""
        return torch.zeros((), device=next(module.parameters()).device)

    def initialise(self, module: nn.Module, recording: xr.DataTree) -> None:
        """Sets weights from the training data before the first step. Does nothing by default."""

    def exact_zeros(self, module: nn.Module) -> ExactZeros | None:
        """The masks that are trained with exact zeros; their penalty is not in `penalty` then."""
        return None

    @property
    def lags(self) -> int:
        lags: int = self.config.lags
        return lags

    def fit(
        self,
        recording: xr.DataTree,
        *,
        checkpoint: Path | None = None,
        progress: Progress = silent,
    ) -> xr.Dataset:
        config = self.config
        self.field = coordinates_of(recording["train"].to_dataset(), config.lags)
        several = config.devices > 1
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            precision=config.precision,
            strategy="ddp_spawn" if several else "auto",
        )
        # A progress callback does not travel to the processes of DDP.
        watch = silent if several else progress
        # A partial, because Fabric would take the recording apart as an argument.
        work = partial(self._fit_starts, recording=recording, checkpoint=checkpoint, progress=watch)
        curves, best_state = fabric.launch(work)
        self._set_weights(best_state)
        return curves

    def _fit_starts(
        self, fabric: Fabric, recording: xr.DataTree, checkpoint: Path | None, progress: Progress
    ) -> tuple[xr.Dataset, dict[str, NDArray[Any]]]:
        """Fits from every start, and returns the training curves and the best weights."""
        config = self.config
        training, validation = (
            Frames.of(recording[name].to_dataset(), config.target, config.lags, fabric.device)
            for name in ("train", "validation")
        )
        schedule = Schedule(
            **{name: getattr(config, name) for name in Schedule.__dataclass_fields__}
        )
        modules = []
        for start in range(config.starts):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed * 1000 + start)
                module = self.build(self.field)
                self.initialise(module, recording)
                modules.append(module.to(fabric.device))
        together = self.starts_together and config.devices == 1
        groups = [modules] if together else [[module] for module in modules]
        curves: list[xr.Dataset] = []
        best_loss, best_state = np.inf, {}
        for index, group in enumerate(groups):
            with torch.random.fork_rng(devices=[]):
                fit, states = train(
                    fabric,
                    group,
                    self.penalty,
                    config.loss,
                    training,
                    validation,
                    schedule,
                    self.seed * 1000 + index,
                    checkpoint and checkpoint.with_suffix(f".{index}.pt"),
                    lambda done, total, message="", index=index: progress(
                        index * total + done, len(groups) * total, message
                    ),
                    self.exact_zeros(group[0]),
                )
            curves.append(_curves(fit))
            if min(fit.best_loss) < best_loss:
                best_loss = min(fit.best_loss)
                best_state = states[int(np.argmin(fit.best_loss))]
        combined = xr.concat(curves, "start", join="outer")
        combined = combined.assign_coords(start=np.arange(config.starts))
        return combined, {k: v.cpu().numpy() for k, v in best_state.items()}

    def respond(self, split: xr.Dataset) -> NDArray[Any]:
        return self.over_frames(self.module, split)

    def over_frames(self, function: Callable[[Tensor], Tensor], split: xr.Dataset) -> NDArray[Any]:
        """What a function of frames gives for each frame of a split, in blocks of frames.

        Args:
            function: from frames (n + lags - 1, [channel,] y, x), oldest first, to (n, ...), such
                as the module.
            split: with at least `lags` frames.

        Returns:
            (frame, ...), NaN in the first `lags` - 1 frames.
        """
        stimulus, lags, found = split["stimulus"], self.lags, []
        with torch.no_grad():
            for first in range(0, len(stimulus) - lags + 1, PREDICTION_BLOCK):
                last = first + PREDICTION_BLOCK + lags - 1
                block = np.ascontiguousarray(stimulus[first:last].values, dtype=np.float32)
                found.append(function(torch.from_numpy(block)).numpy())
        early = np.full((lags - 1, *found[0].shape[1:]), np.nan, np.float32)
        return np.concatenate([early, *found])

    def state(self) -> xr.Dataset:
        self.check_fitted()
        arrays = {
            f"module.{name}": ([f"{name}_{i}" for i in range(value.ndim)], value.numpy())
            for name, value in self.module.state_dict().items()
        }
        return self.field.assign(arrays)

    def restore(self, state: xr.Dataset) -> None:
        weights = {
            str(name).removeprefix("module."): value.values
            for name, value in state.data_vars.items()
        }
        self.field = state[list(state.coords)]
        self.field.attrs = dict(state.attrs)
        self._set_weights(weights)

    def _set_weights(self, weights: dict[str, NDArray[Any]]) -> None:
        self.module = self.build(self.field)
        self.module.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in weights.items()})
        self.module.eval()

    def check_fitted(self) -> None:
        if not hasattr(self, "module"):
            raise UserError(f"the {type(self).__name__} is not fitted; call fit or load first")


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
    best = {
        "best_validation_loss": ("start", fit.best_loss),
        "best_step": ("start", fit.best_step),
    }
    if fit.certificate is not None:
        best |= {
            f"certificate_{name}": ("start", [value])
            for name, value in fit.certificate._asdict().items()
        }
    combined: xr.Dataset = xr.broadcast(xr.Dataset(curves))[0].transpose("start", ...)
    return combined.assign(best)
