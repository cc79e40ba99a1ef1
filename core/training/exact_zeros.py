"""Training a readout with masks that are 0 in most places: what the training loop needs for it.

The proximal steps are those of `retinakit.training.proximal`, on a support that is chosen anew
every so many steps.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from retinakit.layers.readouts import FactorizedReadout
from retinakit.training.proximal import Certificate, ProximalAdam, certificate, gradient

Losses = Callable[[int | None], Iterable[Tensor]]
"""The parts of the mean loss over training data without its penalties, each with its own graph: of
all batches (None), or of so many that are spread over the data."""


@dataclass
class ExactZeros:
    """The masks of a readout, trained with exact zeros.

    Attributes:
        readout: whose masks they are.
        l1: the weight of Σ |m| over all cells in the loss.
        nonnegative: whether masks are held at 0 or above.
        every: steps between refreshes of the support. The first is after a quarter of so many,
            in which the entries are trained that are not 0 at the start.
    """

    readout: FactorizedReadout
    l1: float
    nonnegative: bool
    every: int

    BATCHES: ClassVar[int] = 8
    """As many are enough to choose a support in the course of training."""

    TOLERANCE: ClassVar[float] = 0.1
    """Training does not end while the loss falls this much more steeply than the penalty rises
    along an entry that is 0, in parts of the penalty's weight. The same entries are let in at a
    refresh: of those that a few batches take for less steep, most stay 0."""

    def optimizer(
        self, parameters: Iterable[Tensor], learning_rate: float, sparse_gradient: bool
    ) -> ProximalAdam:
        """The optimizer of the readout and of all else.

        Args:
            parameters: all of the module.
            learning_rate: to start with.
            sparse_gradient: whether masks may get sparse gradients, which several processes cannot
                average.
        """
        mask = self.readout.mask
        self.readout.sparse_gradient = sparse_gradient
        others = [parameter for parameter in parameters if parameter is not mask]
        penalised = {"params": [mask], "l1": self.l1, "nonnegative": self.nonnegative}
        self._optimizer = ProximalAdam([penalised, {"params": others}], lr=learning_rate)
        if (mask == 0).any():
            self.readout.support = self._optimizer.restrict(mask, mask != 0)
        return self._optimizer

    def resume(self) -> None:
        """Takes the support from an optimizer whose state was loaded."""
        self.readout.support = self._optimizer.support(self.readout.mask)

    def due(self, step: int) -> bool:
        """Whether the support is to be refreshed before a step, counted from 0."""
        return step % self.every == self.every // 4 and step > 0

    def forget(self) -> None:
        """Tells that the masks were replaced: the support is not theirs, until a refresh."""
        self.readout.support = None

    def refresh(self, losses: Losses, batches: int | None = BATCHES) -> None:
        """Chooses the support of the next steps, by so many batches or all (None)."""
        mask = self.readout.mask
        # The gradient, as large as the masks, is gone before a new support is made.
        inside = self._optimizer.active(mask, self._gradient(losses(batches)), -self.TOLERANCE)
        self.readout.support = self._optimizer.restrict(mask, inside)

    def certificate(self, losses: Losses) -> Certificate:
        """How far the masks are from a stationary point, by all of the training data."""
        dense = self._gradient(losses(None))
        return certificate(self.readout.mask, dense, self.l1, self.nonnegative)

    def end(self) -> None:
        """Lets go of the state of the optimizer, before the certificate of the end."""
        self.forget()
        self._optimizer.forget(self.readout.mask)

    def _gradient(self, losses: Iterable[Tensor]) -> Tensor:
        mask = self.readout.mask
        learned = [p for group in self._optimizer.param_groups for p in group["params"]]
        others = [p for p in learned if p is not mask and p.requires_grad]
        self.readout.whole_gradient = True
        for parameter in others:  # their gradients would be computed with it
            parameter.requires_grad_(False)
        try:
            with torch.enable_grad():
                return gradient(losses, mask)
        finally:
            self.readout.whole_gradient = False
            for parameter in others:
                parameter.requires_grad_(True)
