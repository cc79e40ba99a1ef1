"""The training loop of torch models, on Lightning Fabric.

Steps are counted, not epochs, as the papers' stopping rules do. A batch is a contiguous run of
frames, so that lagged windows are views of it. Everything random follows from the seed and is part
of the checkpoint, so that an interrupted fit goes on as if nothing had happened.
"""

import copy
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

from retinakit.contracts.errors import RecordingError
from retinakit.contracts.progress import Progress
from retinakit.contracts.recording import full_history, mean_response
from retinakit.training.exact_zeros import ExactZeros
from retinakit.training.proximal import Certificate

logger = logging.getLogger("retinakit")

CHECKPOINT_SHARE = 0.05
"""Writing checkpoints may take this part of the training time."""


@dataclass
class Frames:
    """A split on the training device.

    Attributes:
        stimulus: (frame, [channel,] y, x), in its own dtype if that is small.
        target: (frame, cell), 0 where unknown.
        known: (frame, cell), false where unknown or without a full history.
        lags: frames of history of a prediction.
    """

    stimulus: Tensor
    target: Tensor
    known: Tensor
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
            torch.from_numpy(np.where(known, values, np.float32(0))).to(device),
            torch.from_numpy(known).to(device),
            lags,
        )

    def runs(self, length: int) -> list[tuple[int, int]]:
        """Runs of at most `length` frames that hold something to predict."""
        starts = range(self.lags - 1, len(self.stimulus), length)
        known = self.known.any(1).cpu().numpy()
        ends = [min(start + length, len(self.stimulus)) for start in starts]
        return [(a, b) for a, b in zip(starts, ends, strict=True) if known[a:b].any()]

    def batch(self, run: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The frames of a run with the history before it, its targets, and which are known."""
        start, end = run
        frames = self.stimulus[start - self.lags + 1 : end].float()
        return frames, self.target[start:end], self.known[start:end]


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
    burn_in: int = 0

    def rate(self, step: int, dropped: int) -> float:
        """The learning rate of a step, after so many drops."""
        if self.decay == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.learning_rate * self.drop_factor**dropped


class Starts(nn.Module):
    """Modules of one kind that differ in their weights only, trained side by side.

    Several are one vectorised module (`torch.func`), with the weights stacked along a first axis:
    a step of a small network is mostly the overhead of many small operations, which they share.
    """

    def __init__(self, modules: list[nn.Module], penalty: Callable[[nn.Module], Tensor]):
        super().__init__()
        self.several, self.count = len(modules) > 1, len(modules)
        self.one = _Penalised(modules[0], penalty)
        if self.several:
            self.one = copy.deepcopy(self.one)  # one of the modules would be changed
            stacked = torch.func.stack_module_state([_Penalised(m, penalty) for m in modules])
            for holder, values in zip(
                (self.one.named_parameters(), self.one.named_buffers()), stacked, strict=True
            ):
                for name, tensor in holder:
                    tensor.data = values[name].detach()

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions (start, n, cell), and the penalties (start)."""
        if not self.several:
            rate, penalty = self.one(frames)
            return rate[None], penalty[None]

        def start(state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return torch.func.functional_call(self.one, state, (frames,))

        state = dict(self.one.named_parameters()) | dict(self.one.named_buffers())
        rates: tuple[Tensor, Tensor] = torch.vmap(start, randomness="different")(state)
        return rates

    def states(self) -> list[dict[str, Tensor]]:
        """A copy of each module's weights."""
        state = self.one.module.state_dict()
        return [
            {k: (v[i] if self.several else v).detach().clone() for k, v in state.items()}
            for i in range(self.count)
        ]

    def restore(self, states: list[dict[str, Tensor]]) -> None:
        """Takes the weights of `states`, and leaves the rest as it is."""
        stacked = {
            k: torch.stack([state[k] for state in states]) if self.several else v
            for k, v in states[0].items()
        }
        self.one.module.load_state_dict(stacked)


class _Penalised(nn.Module):
    """A module that gives its penalty with its prediction."""

    def __init__(self, module: nn.Module, penalty: Callable[[nn.Module], Tensor]):
        super().__init__()
        self.module, self.penalty = module, penalty

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        rate = self.module(frames)
        return rate, self.penalty(self.module)


@dataclass
class Fit:
    """The state of a fit, from one start or several: what a checkpoint holds beside the weights.

    The losses, the best loss and its step have one value for each start. `failed` is the best step
    at which entries that were 0 should not have been; training went on then. `certificate` is that
    of the end.
    """

    best_loss: list[float]
    best_step: list[int]
    step: int = 0
    dropped: int = 0
    waited: int = 0
    failed: int = -1
    certificate: Certificate | None = None
    curves: dict[str, list[Any]] = field(
        default_factory=lambda: {
            "step": [],
            "train_loss": [],
            "validation_loss": [],
            "learning_rate": [],
        }
    )


def train(
    fabric: Fabric,
    modules: list[nn.Module],
    penalty: Callable[[nn.Module], Tensor],
    loss: str,
    training: Frames,
    validation: Frames,
    schedule: Schedule,
    seed: int,
    checkpoint: Path | None,
    progress: Progress,
    zeros: ExactZeros | None = None,
) -> tuple[Fit, list[dict[str, Tensor]]]:
    """Trains modules side by side on the same batches.

    The loss is the mean over known frames and cells, so that neither it nor the weight of a
    penalty depends on the batch or on the number of cells. The learning rate drops once no module
    got better.

    Args:
        modules: of one kind, from different starts.
        penalty: what is added to the loss, of one bare module.
        checkpoint: is written now and then, and read if it exists.
        zeros: the masks that are trained with exact zeros, of the only module. Before training
            ends because validation stalls, it is certified that no other entry should leave 0.

    Returns:
        The curves and the best validation losses; and the weights of each module where its
        validation loss was best.
    """
    starts = Starts(modules, penalty)
    if zeros is None:
        optimizer: torch.optim.Optimizer = torch.optim.Adam(
            starts.parameters(), lr=schedule.learning_rate, fused=True
        )
    else:
        alone = fabric.world_size == 1
        optimizer = zeros.optimizer(starts.parameters(), schedule.learning_rate, alone)
    fit, best = Fit([math.inf] * len(modules), [0] * len(modules)), starts.states()
    torch.manual_seed(seed + fabric.global_rank)
    saved = _read(checkpoint, fabric.device)
    if saved is not None:
        starts.load_state_dict(saved["starts"])
        optimizer.load_state_dict(saved["optimizer"])
        if zeros is not None:
            zeros.resume()
        fit, best = Fit(**saved["fit"]), saved["best"]
        torch.set_rng_state(saved["random"].cpu())
        if fabric.device.type == "cuda":
            torch.cuda.set_rng_state(saved["random_on_device"].cpu(), fabric.device)
        logger.info("goes on from step %d of %d", fit.step, schedule.steps)
    module, optimizer = fabric.setup(starts, optimizer)
    pointwise = LOSSES[loss]

    def data_losses(batches: int | None) -> Iterator[Tensor]:
        chosen = runs[:: -(-len(runs) // batches)] if batches else runs
        count = sum(float(training.known[slice(*run)].sum()) for run in chosen)
        starts.eval()
        for run in chosen:
            frames, target, known = training.batch(run)
            yield (pointwise(starts(frames)[0], target) * known).sum() / count
        starts.train()

    def back(frames: Tensor, target: Tensor, known: Tensor) -> Tensor:
        """Computes the gradients of a batch, and returns the loss of each start."""
        rate, penalties = module(frames)
        values: Tensor = (pointwise(rate, target) * known).sum((1, 2)) / known.sum()
        fabric.backward((values + penalties).sum())
        return values.detach()

    runs = training.runs(schedule.batch)
    order = _shuffled(runs, seed, fit.step * fabric.world_size + fabric.global_rank, fabric)
    begun = saved_at = time.monotonic()
    cost_of_saving = 0.0
    since_check, seen = torch.zeros(len(modules), device=fabric.device), 0
    starts.train()
    while fit.step < schedule.steps and fit.dropped <= schedule.drops:
        learning_rate = schedule.rate(fit.step, fit.dropped)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
        if zeros is not None and zeros.due(fit.step):
            zeros.refresh(data_losses)
        values = back(*training.batch(next(order)))
        optimizer.step()
        since_check, seen = since_check + values, seen + 1
        fit.step += 1

        if fit.step % schedule.check_every and fit.step != schedule.steps:
            continue
        losses = evaluate(starts, validation, pointwise, schedule.batch)
        for name, number in (
            ("step", fit.step),
            ("train_loss", (since_check / seen).tolist()),
            ("validation_loss", losses),
            ("learning_rate", learning_rate),
        ):
            fit.curves[name].append(number)
        since_check, seen = torch.zeros_like(since_check), 0
        if all(map(math.isnan, losses)):  # no step leads back from there
            break
        counts = fit.step >= min(schedule.burn_in, schedule.steps)
        better = [
            counts and now < before for now, before in zip(losses, fit.best_loss, strict=True)
        ]
        for index, state in enumerate(starts.states() if any(better) else ()):
            if better[index]:
                fit.best_loss[index], fit.best_step[index] = losses[index], fit.step
                best[index] = state
        fit.waited = 0 if any(better) or not counts else fit.waited + 1
        if schedule.patience and fit.waited >= schedule.patience:
            fit.waited, fit.dropped = 0, fit.dropped + 1
            starts.restore(best)
            if zeros is not None:
                zeros.forget()
                ends = fit.dropped > schedule.drops and fit.failed != fit.best_step[0]
                if ends and zeros.certificate(data_losses).outside > zeros.TOLERANCE:
                    fit.dropped, fit.failed = fit.dropped - 1, fit.best_step[0]
                    zeros.refresh(data_losses, batches=None)  # lets in what the certificate found
                else:
                    zeros.refresh(data_losses)
        progress(fit.step, schedule.steps, f"validation loss {min(fit.best_loss):.5g}")
        now = time.monotonic()
        if (
            checkpoint is not None
            and fabric.is_global_zero
            and cost_of_saving <= CHECKPOINT_SHARE * (now - saved_at)
        ):
            _save(checkpoint, fabric, starts, optimizer, fit, best)
            saved_at = time.monotonic()
            cost_of_saving = saved_at - now
    if not math.isfinite(min(fit.best_loss)):
        if checkpoint is not None:  # there is nothing to go on from
            checkpoint.unlink(missing_ok=True)
        raise RuntimeError(
            f"the fit diverged (validation loss {fit.curves['validation_loss'][-1][0]:g} after "
            f"{fit.step} steps); lower learning_rate"
        )
    if zeros is not None:
        starts.restore(best)
        zeros.end()
        fit.certificate = zeros.certificate(data_losses)
    progress(schedule.steps, schedule.steps, f"{time.monotonic() - begun:.0f} s")
    return fit, best


def evaluate(
    starts: Starts, frames: Frames, pointwise: Callable[[Tensor, Tensor], Tensor], batch: int
) -> list[float]:
    """The mean loss of each start over everything known in a split, in evaluation mode."""
    was_training = starts.training
    starts.eval()
    total, count = torch.zeros(starts.count, dtype=torch.float64), 0.0
    with torch.no_grad():
        for run in frames.runs(max(batch, 1024)):
            stimulus, target, known = frames.batch(run)
            loss = pointwise(starts(stimulus)[0], target) * known
            total += loss.sum((1, 2)).cpu()
            count += float(known.sum())
    starts.train(was_training)
    return (total / count).tolist()


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


def _read(path: Path | None, device: torch.device) -> dict[str, Any] | None:
    """A checkpoint, or None where there is none that can be read."""
    if path is None or not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        _ = saved["starts"]  # not there in files of earlier versions
    except Exception as error:  # whatever torch raises for a file that is none of its own
        logger.warning("%s cannot be read (%s); the fit begins anew", path, type(error).__name__)
        return None
    return saved


def _save(
    path: Path,
    fabric: Fabric,
    starts: Starts,
    optimizer: Any,
    fit: Fit,
    best: list[dict[str, Tensor]],
) -> None:
    """Writes a checkpoint; where that fails, the fit goes on without, with a warning."""
    content = {
        "starts": starts.state_dict(),
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
