"""Training a readout with masks that are 0 in most places.

The proximal steps are those of `retinakit.training.proximal`, on a support that is chosen anew
every so many steps.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from retinakit.layers.readouts import FactorizedReadout
from retinakit.training.hooks import Hooks, Losses
from retinakit.training.proximal import Certificate, ProximalAdam, certificate, gradient


@dataclass
class ExactZeros(Hooks):
    """The masks of a readout, trained with exact zeros: an optimizer and hooks of the loop.

    Before training ends because validation stalls, a gradient over all training data certifies that
    no other entry should leave 0. Where it does not, these entries are let in and training goes on.

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
    """Batches whose gradient chooses a support in the course of training."""

    TOLERANCE: ClassVar[float] = 0.1
    """Training does not end while the loss falls this much more steeply than the penalty rises
    along an entry that is 0, in parts of the penalty's weight. A refresh lets in the same
    entries."""

    failed: int = -1
    """The best step whose certificate failed; training may end if it fails there once more."""

    def optimizer(
        self, parameters: Iterable[Tensor], learning_rate: float, processes: int
    ) -> ProximalAdam:
        mask = self.readout.mask
        # Several processes cannot average sparse gradients.
        self.readout.sparse_gradient = processes == 1
        others = [parameter for parameter in parameters if parameter is not mask]
        penalised = {"params": [mask], "l1": self.l1, "nonnegative": self.nonnegative}
        self._optimizer = ProximalAdam([penalised, {"params": others}], lr=learning_rate)
        if (mask == 0).any():
            self.readout.support = self._optimizer.restrict(mask, mask != 0)
        return self._optimizer

    def before_step(self, step: int, losses: Losses) -> None:
        if step % self.every == self.every // 4 and step > 0:
            self.refresh(losses)

    def restored(self, losses: Losses, best_step: int, ending: bool) -> bool:
        self.readout.support = None  # it was that of other masks
        asked = ending and self.failed != best_step
        if asked and self.certificate(losses).outside > self.TOLERANCE:
            self.failed = best_step
            self.refresh(losses, batches=None)  # lets in what the certificate found
            return False
        self.refresh(losses)
        return ending

    def ended(self, losses: Losses) -> dict[str, float]:
        self.readout.support = None
        self._optimizer.forget(self.readout.mask)
        found = self.certificate(losses)._asdict()
        return {f"certificate_{name}": value for name, value in found.items()}

    def state(self) -> dict[str, Any]:
        return {"failed": self.failed}

    def resume(self, state: dict[str, Any]) -> None:
        self.failed = state["failed"]
        self.readout.support = self._optimizer.support(self.readout.mask)

    def refresh(self, losses: Losses, batches: int | None = BATCHES) -> None:
        """Chooses the support of the next steps, by a number of batches or all (None)."""
        mask = self.readout.mask
        # The gradient, as large as the masks, is gone before a new support is made.
        inside = self._optimizer.active(mask, self._gradient(losses(batches)), -self.TOLERANCE)
        self.readout.support = self._optimizer.restrict(mask, inside)

    def certificate(self, losses: Losses) -> Certificate:
        """How far the masks are from a stationary point, by all of the training data."""
        dense = self._gradient(losses(None))
        return certificate(self.readout.mask, dense, self.l1, self.nonnegative)

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
