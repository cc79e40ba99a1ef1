"""The best weights of a fit, and the patience that is left."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retinakit.training.schedule import Schedule
from retinakit.training.starts import Starts, State


@dataclass
class Best:
    """The weights with the lowest validation loss of each part of a fit.

    A part is a start, or each cell of a start if the cells are fitted apart: every parameter then
    has the cell as its first axis, and one cell's fit does not depend on another's.

    Attributes:
        loss, step: (start, part), of the best weights.
        waited: (start, part), validations without a better loss.
        dropped: (start, part), drops of the learning rate.
        states: the best weights of each start.
    """

    loss: Tensor
    step: Tensor
    waited: Tensor
    dropped: Tensor
    states: list[State]

    def __post_init__(self) -> None:
        for name in ("loss", "step", "waited", "dropped"):  # a checkpoint is read to a GPU
            setattr(self, name, getattr(self, name).cpu())

    @classmethod
    def of(cls, starts: Starts, parts: int) -> "Best":
        """The state of a fit that begins."""
        none = torch.zeros((starts.count, parts), dtype=torch.int64)
        loss = torch.full(none.shape, torch.inf, dtype=torch.float64)
        return cls(loss, none, none, none, starts.states())

    def see(self, losses: Tensor, step: int, starts: Starts, schedule: Schedule) -> None:
        """Keeps the weights that are the best so far.

        Args:
            losses: (start, part) of the validation frames; NaN for a cell without any, whose last
                weights are kept.
        """
        if step < min(schedule.burn_in, schedule.steps):
            return
        better = (losses < self.loss) | losses.isnan() & self.loss.isinf()
        if better.any():
            self._keep(starts.states(), better)
        self.loss = torch.where(better, losses.nan_to_num(torch.inf), self.loss)
        self.step = torch.where(better, step, self.step)
        self.waited = torch.where(better, 0, self.waited + 1)

    def stalled(self, schedule: Schedule) -> Tensor:
        """(start, part): which have waited long enough for the learning rate to drop."""
        if not schedule.patience:
            return torch.zeros_like(self.waited, dtype=torch.bool)
        going = self.dropped <= schedule.drops
        return (self.waited >= schedule.patience) & going

    def drop(self, parts: Tensor, starts: Starts) -> None:
        """Lowers the learning rate of some parts, which take their best weights back."""
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
        """(start, part): factors of the learning rate, 0 for parts that have ended."""
        factor = schedule.drop_factor ** self.dropped.double()
        return torch.where(self.dropped <= schedule.drops, factor, 0.0)

    def ended(self, schedule: Schedule) -> bool:
        """Whether no part is trained any more."""
        return bool((self.dropped > schedule.drops).all())

    def _keep(self, states: list[State], better: Tensor) -> None:
        for start, state in enumerate(states):
            if better[start].all():
                self.states[start] = state
            elif better[start].any():  # so there are several parts, which are cells
                for name, value in state.items():
                    self.states[start][name][better[start]] = value[better[start]]


def scaled_step(optimizer: Any, starts: Starts, scale: Tensor) -> None:
    """A step of the optimizer in which the change of each cell's weights is multiplied.

    Args:
        scale: (start, cell).
    """
    before = [parameter.detach().clone() for parameter in starts.parameters()]
    optimizer.step()
    factors = scale if starts.several else scale[0]
    with torch.no_grad():
        for parameter, old in zip(starts.parameters(), before, strict=True):
            shape = (*factors.shape, *[1] * (parameter.ndim - factors.ndim))
            parameter.copy_(torch.lerp(old, parameter, factors.to(parameter).view(shape)))
