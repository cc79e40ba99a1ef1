"""The best weights of a fit, reductions of the learning rate, and early stopping."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retinakit.training.schedule import Schedule
from retinakit.training.starts import Starts, State


@dataclass
class Best:
    """The weights with the lowest validation loss, for each start and part of a fit.

    A start has one part, or, if cells are fitted separately, one for each cell. In that case, the
    cell is the first axis of every parameter, and the fits of the cells are independent.

    Attributes:
        loss, step: (start, part), the validation loss and the step of the best weights.
        lowest: (start, part), the lowest loss for early stopping, the validation or training loss.
        waited: (start, part), the number of validations since `lowest` improved.
        dropped: (start, part), the number of reductions of the learning rate.
        states: the best weights of each start.
    """

    loss: Tensor
    step: Tensor
    lowest: Tensor
    waited: Tensor
    dropped: Tensor
    states: list[State]

    def __post_init__(self) -> None:
        # A checkpoint may be loaded to a GPU.
        for name in ("loss", "step", "lowest", "waited", "dropped"):
            setattr(self, name, getattr(self, name).cpu())

    @classmethod
    def of(cls, starts: Starts, parts: int) -> "Best":
        """The state at the beginning of a fit."""
        none = torch.zeros((starts.count, parts), dtype=torch.int64)
        loss = torch.full(none.shape, torch.inf, dtype=torch.float64)
        return cls(loss, none, loss, none, none, starts.states())

    def see(
        self, losses: Tensor, training: Tensor, step: int, starts: Starts, schedule: Schedule
    ) -> None:
        """Keeps the current weights where they are the best so far.

        Args:
            losses: (start, part), the validation losses; NaN for a cell without validation data, of
                which the last weights are kept.
            training: (start, part), the training losses since the last validation.
            step: the number of training steps.
            starts: with the current weights.
            schedule: of the fit.
        """
        if step < min(schedule.burn_in, schedule.steps):
            return
        better = (losses < self.loss) | losses.isnan() & self.loss.isinf()
        if better.any():
            self._keep(starts.states(), better)
        self.loss = torch.where(better, losses.nan_to_num(torch.inf), self.loss)
        self.step = torch.where(better, step, self.step)
        watched = training.cpu() if schedule.stop_by == "training" else losses
        improved = (watched < self.lowest - schedule.min_delta) | (
            watched.isnan() & self.lowest.isinf()
        )
        self.lowest = torch.where(improved, watched.nan_to_num(torch.inf), self.lowest)
        self.waited = torch.where(improved, 0, self.waited + 1)

    def stalled(self, schedule: Schedule) -> Tensor:
        """The parts (start, part) whose learning rate is to be reduced, according to `patience`."""
        if not schedule.patience:
            return torch.zeros_like(self.waited, dtype=torch.bool)
        going = self.dropped <= schedule.drops
        return (self.waited >= schedule.patience) & going

    def drop(self, parts: Tensor, starts: Starts) -> None:
        """Reduces the learning rate of some parts and restores their best weights.

        Args:
            parts: (start, part) bool.
            starts: with the current weights.
        """
        self.waited = torch.where(parts, 0, self.waited)
        self.dropped = self.dropped + parts.long()
        if parts.all():
            starts.restore(self.states)
            return
        present = starts.states()
        for start, (now, best) in enumerate(zip(present, self.states, strict=True)):
            for name, value in now.items():
                value[parts[start]] = best[name][parts[start]]
        starts.restore(present)

    def scale(self, schedule: Schedule) -> Tensor:
        """The factors of the learning rate (start, part), 0 for parts whose training has ended."""
        factor = schedule.drop_factor ** self.dropped.double()
        return torch.where(self.dropped <= schedule.drops, factor, 0.0)

    def ended(self, schedule: Schedule) -> bool:
        """Whether the training of all parts has ended."""
        return bool((self.dropped > schedule.drops).all())

    def _keep(self, states: list[State], better: Tensor) -> None:
        for start, state in enumerate(states):
            if better[start].all():
                self.states[start] = state
            elif better[start].any():  # there are several parts, which are cells
                for name, value in state.items():
                    self.states[start][name][better[start]] = value[better[start]]


def scaled_step(optimizer: Any, starts: Starts, scale: Tensor) -> None:
    """An optimizer step with the change of each cell's weights multiplied by a factor.

    Args:
        optimizer: of the weights.
        starts: with the weights.
        scale: (start, cell), the factors.
    """
    before = [parameter.detach().clone() for parameter in starts.parameters()]
    optimizer.step()
    factors = scale if starts.several else scale[0]
    with torch.no_grad():
        for parameter, old in zip(starts.parameters(), before, strict=True):
            shape = (*factors.shape, *[1] * (parameter.ndim - factors.ndim))
            parameter.copy_(torch.lerp(old, parameter, factors.to(parameter).view(shape)))
