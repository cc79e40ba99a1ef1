"""The training loop of torch models, based on Lightning Fabric.

Training is measured in steps, not epochs, as in the stopping rules of the papers. The state of the
random numbers is part of the checkpoint, so that a resumed fit gives the result of an uninterrupted
one.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from retinakit.contracts.progress import Progress, silent
from retinakit.training import checkpoint as checkpoints
from retinakit.training.batches import Batches
from retinakit.training.best import Best, scaled_step
from retinakit.training.frames import Batch, Frames
from retinakit.training.hooks import Hooks
from retinakit.training.schedule import Schedule
from retinakit.training.starts import Network, Starts, arguments

logger = logging.getLogger("retinakit")

CHECKPOINT_SHARE = 0.05
"""Maximum fraction of the training time that is spent on writing checkpoints."""

EVALUATED = 1024
"""Number of frames that are validated together; the size of a training batch if that is larger."""


@dataclass
class Fit:
    """The result of a fit.

    Attributes:
        best: the best weights and their validation losses.
        step: the number of training steps.
        numbers: the result of `Hooks.ended`.
        curves: lists with one entry for each validation: `step`, `learning_rate`, and, for each
            start, `train_loss` and `validation_loss`, which are means over cells.

    Example:
        >>> starts = Starts([Network([nn.Linear(2, 1)], None, None, lags=1)])
        >>> fit = Fit(Best.of(starts, parts=1))  # as at the beginning of `train`
        >>> fit.step, list(fit.curves)
        (0, ['step', 'train_loss', 'validation_loss', 'learning_rate'])
    """

    best: Best
    step: int = 0
    numbers: dict[str, float] = field(default_factory=dict)
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
    networks: Sequence[Network],
    training: Sequence[Frames],
    validation: Sequence[Frames],
    schedule: Schedule,
    *,
    seed: int = 0,
    cells_apart: bool = False,
    hooks: Hooks | None = None,
    checkpoint: Path | None = None,
    digest: str = "",
    progress: Progress = silent,
) -> Fit:
    """Trains several networks on the same batches.

    The loss is a sum over cells of the mean loss over the frames in which the response of the cell
    is known. In a batch of n frames, the loss of a cell is summed over its known frames and divided
    by n and by the fraction of all training frames in which the cell is known. The expected loss
    is therefore independent of the batch size, and the weight of a cell does not depend on the
    missing responses of others. The learning rate is reduced when the validation loss of no
    network has improved, or for single cells if they are fitted separately.

    Args:
        fabric: a launched Lightning Fabric, which determines device and precision.
        networks: networks of the same architecture with different initial weights.
        training, validation: the data of each recording.
        schedule: the number of steps, the batch size, the learning rate and early stopping.
        seed: of the order of batches, and of random numbers in the networks.
        cells_apart: whether the cell is the first axis of every parameter and the cells are
            independent. Each cell then has its own best weights and learning rate.
        hooks: for another optimizer, or for operations between training steps.
        checkpoint: a file that is written regularly, and read if it exists and has the digest.
        digest: identifies the fit to which a checkpoint belongs.
        progress: is called after each validation.

    Returns:
        The training curves, and for each network the weights with the lowest validation loss.

    Raises:
        RuntimeError: if the validation loss (of any cell, if they are fitted separately) is never
            finite.

    Example:
        >>> from retinakit.testing import small_recording
        >>> recording, cpu = small_recording(frames=200), torch.device("cpu")
        >>> training, validation = (
        ...     [Frames(recording[name].to_dataset(), "response", lags=1, device=cpu)]
        ...     for name in ("train", "validation")
        ... )
        >>> module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Softplus())
        >>> network = Network(
        ...     [module],
        ...     penalty=lambda module, prediction: torch.zeros(()),
        ...     loss=lambda module, prediction, target: (prediction - target) ** 2,
        ...     lags=1,
        ... )
        >>> schedule = Schedule(
        ...     steps=20,
        ...     batch=50,
        ...     learning_rate=0.01,
        ...     decay="cosine",
        ...     check_every=10,
        ...     patience=0,
        ...     drops=0,
        ...     drop_factor=0.1,
        ... )
        >>> fit = train(Fabric(accelerator="cpu"), [network], training, validation, schedule)
        >>> fit.curves["step"]
        [10, 20]
    """
    hooks = hooks or Hooks()
    starts = Starts(networks)
    optimizer = hooks.optimizer(starts.parameters(), schedule.learning_rate, fabric.world_size)
    stateful = networks[0].stateful
    batches = Batches(training, schedule.batch, schedule.order, stateful, seed)
    known = [
        (_number_known(frames) / number).clamp_min(1e-12)
        for frames, number in zip(training, batches.frames(), strict=True)
    ]
    # The cells with responses in validation, and the parts of a fit that have a validation loss.
    scored = torch.cat([frames.known.any(0).cpu() for frames in validation])
    judged = scored if cells_apart else torch.tensor([True])
    fit = Fit(Best.of(starts, len(judged)))
    state: Any = None
    torch.manual_seed(seed + fabric.global_rank)
    saved = checkpoints.read(checkpoint, digest, fabric.device)
    if saved is not None and saved["step"] <= schedule.steps:  # otherwise of a longer fit
        logger.info("resumes from step %d of %d", saved["step"], schedule.steps)
        starts.load_state_dict(saved["starts"])
        optimizer.load_state_dict(saved["optimizer"])
        hooks.resume(saved["hooks"])
        state = saved["state"]
        fit = Fit(Best(**saved["best"]), saved["step"], curves=saved["curves"])
        torch.set_rng_state(saved["random"].cpu())
        if fabric.device.type == "cuda":
            torch.cuda.set_rng_state(saved["random_on_device"].cpu(), fabric.device)
    module, optimizer = fabric.setup(starts, optimizer)

    def losses(number: int | None) -> Iterator[Tensor]:
        """The losses of batches of the training data, for the hooks."""
        chosen = batches.spread(number)
        count = sum(training[i].known[slice(*run)].sum(0) for i, run in chosen)
        starts.eval()
        for index, run in chosen:
            of_cells, _, _ = starts(*arguments(index, training[index].batch(run), None))
            yield (of_cells / count).nan_to_num().sum()
        starts.train()

    order = batches.ahead(fit.step * fabric.world_size + fabric.global_rank, fabric.world_size)
    begun = saved_at = time.monotonic()
    cost_of_saving = 0.0
    starts.train()
    while fit.step < schedule.steps and not fit.best.ended(schedule):
        scale = fit.best.scale(schedule)
        together = bool((scale == scale[0, 0]).all())
        total, first = torch.zeros(starts.count, device=fabric.device), fit.step
        objective = torch.zeros_like(total)
        check = min(first + schedule.check_every - first % schedule.check_every, schedule.steps)
        for step in range(first, check):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(step) * (float(scale[0, 0]) if together else 1.0)
            optimizer.zero_grad(set_to_none=True)
            hooks.before_step(step, losses)
            recording, batch = next(order)
            state = None if batch.begins else _detached(state)
            of_cells, penalties, state = module(*arguments(recording, batch, state))
            of_cells = of_cells / (len(batch.target) * known[recording])
            fabric.backward((of_cells.sum(1) + penalties).sum())
            if together:
                optimizer.step()
            else:
                scaled_step(optimizer, starts, scale)
            total += of_cells.detach().mean(1)
            objective += penalties.detach() / of_cells.shape[1]
        fit.step = check

        found = evaluate(starts, validation, schedule.batch)
        overall = found[:, scored].mean(1)
        for name, number in (
            ("step", check),
            ("train_loss", (total / (check - first)).tolist()),
            ("validation_loss", overall.tolist()),
            ("learning_rate", schedule.rate(check - 1) * scale.max().item()),
        ):
            fit.curves[name].append(number)
        of_parts = found if cells_apart else overall[:, None]
        if of_parts[:, judged].isnan().all():  # the weights remain NaN
            break
        objective = (total + objective) / (check - first)  # with the penalties
        if schedule.stop_by == "training" and fabric.world_size > 1:
            objective = torch.as_tensor(fabric.all_reduce(objective, reduce_op="mean"))
        of_training = objective.double()[:, None].expand_as(of_parts)
        fit.best.see(of_parts, of_training, check, starts, schedule)
        if not hooks.goes_on():
            break
        stalled = fit.best.stalled(schedule)
        if stalled.any() and (cells_apart or bool(stalled.all())):
            _drop(fit.best, stalled, starts, schedule, hooks, losses)
        progress(check, schedule.steps, f"validation loss {_lowest(fit.best):.5g}")
        now = time.monotonic()
        regular = fit.step % schedule.check_every == 0
        last = fit.step + schedule.check_every > schedule.steps or fit.best.ended(schedule)
        cheap = cost_of_saving <= CHECKPOINT_SHARE * (now - saved_at)
        # The checkpoint of the last regular validation is kept for a fit with more steps.
        if checkpoint is not None and fabric.is_global_zero and regular and (cheap or last):
            content = _content(fabric, starts, optimizer, hooks, fit, _detached(state))
            checkpoints.write(checkpoint, content | {"digest": digest})
            saved_at = time.monotonic()
            cost_of_saving = saved_at - now
    if not fit.best.loss[:, judged].isfinite().any(0).all():
        if checkpoint is not None:  # it cannot be resumed
            checkpoint.unlink(missing_ok=True)
        raise RuntimeError(
            f"the fit diverged (validation loss {fit.curves['validation_loss'][-1][0]:g} after "
            f"{fit.step} steps); lower learning_rate"
        )
    starts.restore(fit.best.states)
    fit.numbers = hooks.ended(losses)
    progress(schedule.steps, schedule.steps, f"{time.monotonic() - begun:.0f} s")
    return fit


def evaluate(starts: Starts, validation: Sequence[Frames], batch: int) -> Tensor:
    """The mean loss over the known frames of each cell, in evaluation mode.

    Returns:
        (start, cell), with the cells of all recordings concatenated; NaN without known frames.
    """
    was_training, length = starts.training, max(batch, EVALUATED)
    starts.eval()
    means = []
    with torch.no_grad():
        for index, frames in enumerate(validation):
            cells = frames.known.shape[1]
            total = torch.zeros(starts.count, cells, dtype=torch.float64)
            state: Any = None
            for part in _in_order(frames, length, starts.one.stateful):
                state = None if part.begins else state
                of_cells, _, state = starts(*arguments(index, part, state))
                total += of_cells.cpu()
            means.append(total / frames.known.sum(0).cpu())
    starts.train(was_training)
    return torch.cat(means, 1)


def _number_known(frames: Frames) -> Tensor:
    """The number of known responses of each cell (cell,)."""
    # torch converts booleans to 64 bits before it sums them, so they are summed in parts.
    return torch.stack([part.sum(0) for part in frames.known.split(256)]).sum(0)


def _in_order(frames: Frames, length: int, stateful: bool) -> Iterator[Batch]:
    """The batches of a split, of at most `length` frames with their histories."""
    known = frames.drawable()
    if stateful:
        for pieces in frames.pieces(length):
            yield from (frames.batch(run, run is pieces[0]) for run in pieces)
    elif frames.lags > 1 and frames.lags * len(known) <= len(frames):
        # The responses are few, as those at the ends of clips, and so are the frames before them.
        number = max(1, length // frames.lags)
        for first in range(0, len(known), number):
            yield frames.windows(known[first : first + number])
    else:
        yield from map(frames.batch, frames.runs(length))


def _drop(
    best: Best, stalled: Tensor, starts: Starts, schedule: Schedule, hooks: Hooks, losses: Any
) -> None:
    """Reduces the learning rate of the parts that stalled, unless the hooks continue training."""
    best.drop(stalled, starts)
    ending = best.ended(schedule)
    if not hooks.restored(losses, int(best.step[0, 0]), ending) and ending:
        best.dropped = best.dropped - stalled.long()


def _lowest(best: Best) -> float:
    """The best validation loss of the best start, averaged over parts."""
    finite = torch.where(best.loss.isfinite(), best.loss, torch.nan)
    return float(finite.nanmean(1).nan_to_num(torch.inf).min())


def _detached(state: Any) -> Any:
    """The state of a module, detached from the autograd graph."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, tuple | list):
        return type(state)(_detached(part) for part in state)
    if isinstance(state, dict):
        return {name: _detached(part) for name, part in state.items()}
    return state


def _content(
    fabric: Fabric, starts: nn.Module, optimizer: Any, hooks: Hooks, fit: Fit, state: Any
) -> dict[str, Any]:
    """The content of a checkpoint."""
    content = {
        "starts": starts.state_dict(),
        "optimizer": optimizer.state_dict(),
        "hooks": hooks.state(),
        "best": vars(fit.best),
        "step": fit.step,
        "curves": fit.curves,
        "state": state,
        "random": torch.get_rng_state(),
    }
    if fabric.device.type == "cuda":
        content["random_on_device"] = torch.cuda.get_rng_state(fabric.device)
    return content
