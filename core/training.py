"""The training loop of torch models, on Lightning Fabric.

Steps are counted, not epochs, as the papers' stopping rules do. A batch is a contiguous run of
frames, so that lagged windows are views of it. Everything random follows from the seed and is part
of the checkpoint, so that an interrupted fit goes on as if nothing had happened.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from lightning_fabric import Fabric
from torch import Tensor, nn

from retinakit.errors import RecordingError
from retinakit.progress import Progress
from retinakit.recording import full_history, mean_response

logger = logging.getLogger("retinakit")

CHECKPOINT_SHARE = 0.05
"""Writing checkpoints may take this part of the training time."""


@dataclass
class Frames:
    """A split on the training device.

    Attributes:
        stimulus: (frame, [channel,] y, x), in its own dtype if that is small.
        target: (frame, cell), 0 where unknown.
        weight: (frame, cell), 0 where unknown or without a full history, else 1.
        lags: frames of history of a prediction.
    """

    stimulus: Tensor
    target: Tensor
    weight: Tensor
    lags: int

    @classmethod
    def of(cls, split: xr.Dataset, target: str, lags: int, device: torch.device) -> "Frames":
        """Reads a split, to be predicted as `target`: its mean response or its rate.

        Raises:
            RecordingError: if the split lacks that target or has no frame with a full history.
        """
        if target == "rate" and "rate" not in split:
            raise RecordingError(
                "target is 'rate' and the recording has no 'rate'; use target: response"
            )
        values = np.asarray(
            split["rate"] if target == "rate" else mean_response(split), dtype=np.float32
        )
        known = np.isfinite(values) & full_history(split["segment"], lags)[:, None]
        if not known.any():
            raise RecordingError(
                f"no frame has a response and {lags} frames of history in its segment; "
                "use fewer lags or longer segments"
            )
        stimulus = np.ascontiguousarray(split["stimulus"].values)
        if stimulus.dtype.kind == "f" or stimulus.dtype.itemsize > 2:
            stimulus = stimulus.astype(np.float32, copy=False)
        if stimulus.dtype == np.uint16:
            stimulus = stimulus.astype(np.float32)
        return cls(
            torch.from_numpy(stimulus).to(device),
            torch.from_numpy(np.where(known, values, 0).astype(np.float32)).to(device),
            torch.from_numpy(known.astype(np.float32)).to(device),
            lags,
        )

    def runs(self, length: int) -> list[tuple[int, int]]:
        """Runs of at most `length` frames that hold something to predict."""
        starts = range(self.lags - 1, len(self.stimulus), length)
        known = self.weight.any(1).cpu()
        ends = [min(start + length, len(self.stimulus)) for start in starts]
        return [(a, b) for a, b in zip(starts, ends, strict=True) if known[a:b].any()]

    def batch(self, run: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The frames of a run with the history before it, its targets, and their weights."""
        start, end = run
        frames = self.stimulus[start - self.lags + 1 : end].float()
        return frames, self.target[start:end], self.weight[start:end]


def poisson_loss(rate: Tensor, target: Tensor) -> Tensor:
    """Poisson negative log-likelihood without its constant: rate - target · log rate."""
    return rate - torch.xlogy(target, rate + 1e-8)


def squared_error(rate: Tensor, target: Tensor) -> Tensor:
    """(rate - target)²."""
    return (rate - target) ** 2


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "poisson": poisson_loss,
    "mse": squared_error,
}


@dataclass
class Schedule:
    """How long to train, and at what learning rate. See `TorchConfig` for the meanings."""

    steps: int
    batch: int
    learning_rate: float
    decay: str
    check_every: int
    patience: int
    drops: int
    drop_factor: float

    def rate(self, step: int, dropped: int) -> float:
        """The learning rate of a step, after so many drops."""
        if self.decay == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * self.drop_factor**dropped


@dataclass
class Fit:
    """The state of a fit: what a checkpoint holds beside the module and the optimizer."""

    step: int = 0
    dropped: int = 0
    waited: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    curves: dict[str, list[float]] = field(
        default_factory=lambda: {
            "step": [],
            "train_loss": [],
            "validation_loss": [],
            "learning_rate": [],
        }
    )


def train(
    fabric: Fabric,
    module: nn.Module,
    penalty: Callable[[nn.Module], Tensor],
    loss: str,
    training: Frames,
    validation: Frames,
    schedule: Schedule,
    seed: int,
    checkpoint: Path | None,
    progress: Progress,
) -> Fit:
    """Trains a module in place and leaves it with the weights of the best validation loss.

    The loss is the mean over known frames and cells, so that neither it nor the weight of a
    penalty depends on the batch or on the number of cells.

    Args:
        penalty: what is added to the loss, of the bare module.
        checkpoint: is written now and then, and read if it exists.

    Returns:
        The curves and the best validation loss.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=schedule.learning_rate)
    fit, best = Fit(), _copy(module)
    torch.manual_seed(seed + fabric.global_rank)
    saved = _read(checkpoint, fabric.device)
    if saved is not None:
        module.load_state_dict(saved["module"])
        optimizer.load_state_dict(saved["optimizer"])
        fit, best = Fit(**saved["fit"]), saved["best"]
        torch.set_rng_state(saved["random"].cpu())
        if fabric.device.type == "cuda":
            torch.cuda.set_rng_state(saved["random_on_device"].cpu(), fabric.device)
        logger.info("goes on from step %d of %d", fit.step, schedule.steps)
    bare = module
    module, optimizer = fabric.setup(module, optimizer)
    pointwise = LOSSES[loss]

    runs = training.runs(schedule.batch)
    order = _shuffled(runs, seed, fit.step * fabric.world_size + fabric.global_rank, fabric)
    begun = saved_at = time.monotonic()
    cost_of_saving = 0.0
    since_check, seen = torch.zeros((), device=fabric.device), 0
    bare.train()
    while fit.step < schedule.steps and fit.dropped <= schedule.drops:
        rate = schedule.rate(fit.step, fit.dropped)
        for group in optimizer.param_groups:
            group["lr"] = rate
        frames, target, weight = training.batch(next(order))
        optimizer.zero_grad(set_to_none=True)
        value = (pointwise(module(frames), target) * weight).sum() / weight.sum()
        fabric.backward(value + penalty(bare))
        optimizer.step()
        since_check, seen = since_check + value.detach(), seen + 1
        fit.step += 1

        if fit.step % schedule.check_every and fit.step != schedule.steps:
            continue
        loss_now = evaluate(bare, validation, pointwise, schedule.batch)
        for name, number in (
            ("step", fit.step),
            ("train_loss", float(since_check) / seen),
            ("validation_loss", loss_now),
            ("learning_rate", rate),
        ):
            fit.curves[name].append(number)
        since_check, seen = torch.zeros_like(since_check), 0
        if math.isnan(loss_now):  # no step leads back from there
            break
        if loss_now < fit.best_loss:
            fit.best_loss, fit.best_step, fit.waited = loss_now, fit.step, 0
            best = _copy(bare)
        else:
            fit.waited += 1
        if schedule.patience and fit.waited >= schedule.patience:
            fit.waited, fit.dropped = 0, fit.dropped + 1
            bare.load_state_dict(best)
        progress(fit.step, schedule.steps, f"validation loss {fit.best_loss:.5g}")
        now = time.monotonic()
        if (
            checkpoint is not None
            and fabric.is_global_zero
            and cost_of_saving <= CHECKPOINT_SHARE * (now - saved_at)
        ):
            _save(checkpoint, fabric, bare, optimizer, fit, best)
            saved_at = time.monotonic()
            cost_of_saving = saved_at - now
    if not math.isfinite(fit.best_loss):
        if checkpoint is not None:  # there is nothing to go on from
            checkpoint.unlink(missing_ok=True)
        raise RuntimeError(
            f"the fit diverged (validation loss {fit.curves['validation_loss'][-1]:g} after "
            f"{fit.step} steps); lower learning_rate"
        )
    bare.load_state_dict(best)
    progress(schedule.steps, schedule.steps, f"{time.monotonic() - begun:.0f} s")
    return fit


def evaluate(
    module: nn.Module, frames: Frames, pointwise: Callable[[Tensor, Tensor], Tensor], batch: int
) -> float:
    """The mean loss over everything known in a split, in evaluation mode."""
    was_training = module.training
    module.eval()
    total, count = 0.0, 0.0
    with torch.no_grad():
        for run in frames.runs(max(batch, 1024)):
            stimulus, target, weight = frames.batch(run)
            total += float((pointwise(module(stimulus), target) * weight).sum())
            count += float(weight.sum())
    module.train(was_training)
    return total / count


def _shuffled(
    runs: list[tuple[int, int]], seed: int, position: int, fabric: Fabric
) -> Iterator[tuple[int, int]]:
    """Endless epochs of runs, each in its own order, for this process, from a position on."""
    epoch, skip = divmod(position, len(runs))
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(runs), generator=generator).tolist()
        index = skip
        while index < len(runs):
            yield runs[order[index]]
            index += fabric.world_size
        epoch, skip = epoch + 1, index - len(runs)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _read(path: Path | None, device: torch.device) -> dict[str, Any] | None:
    """A checkpoint, or None where there is none that can be read."""
    if path is None or not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever torch raises for a file that is none of its own
        logger.warning("%s cannot be read (%s); the fit begins anew", path, type(error).__name__)
        return None
    return saved


def _save(
    path: Path,
    fabric: Fabric,
    module: nn.Module,
    optimizer: Any,
    fit: Fit,
    best: dict[str, Tensor],
) -> None:
    """Writes a checkpoint; where that fails, the fit goes on without, with a warning."""
    content = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "fit": vars(fit),
        "best": best,
        "random": torch.get_rng_state(),
    }
    if fabric.device.type == "cuda":
        content["random_on_device"] = torch.cuda.get_rng_state(fabric.device)
    unfinished = path.with_suffix(".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save(content, file)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
        logger.warning("no checkpoint could be written (%s); the fit goes on without", error)
        unfinished.unlink(missing_ok=True)
