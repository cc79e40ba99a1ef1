"""Training a readout with sparse masks, whose entries are mostly exactly 0.

The proximal steps are those of `retinakit.training.proximal`, on a support that is updated at
regular intervals.
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
    """Hooks of the training loop that train the masks of a readout with exact zeros.

    When training is about to end because the validation loss no longer improves, a gradient over
    all training data tests whether the loss would decrease if further entries became nonzero. If
    it would, these entries are added to the support and training continues.

    Attributes:
        readout: the readout with the masks.
        l1: the weight of the penalty Σ |m|, summed over all cells.
        nonnegative: whether masks are constrained to be nonnegative.
        every: the number of steps between updates of the support. The first update is after a
            quarter of this number; until then, only the initially nonzero entries are trained.

    Example:
        >>> readout = FactorizedReadout(cells=2, features=3, places=(4, 4))
        >>> hooks = ExactZeros(readout, l1=0.1, nonnegative=False, every=100)
        >>> type(hooks.optimizer(readout.parameters(), 1e-3, processes=1)).__name__
        'ProximalAdam'
    """

    readout: FactorizedReadout
    l1: float
    nonnegative: bool
    every: int

    BATCHES: ClassVar[int] = 8
    """Number of batches from whose gradient the support is updated during training."""

    TOLERANCE: ClassVar[float] = 0.1
    """Training is continued if |gradient| > (1 + TOLERANCE) · l1 for an entry that is 0. An update
    of the support adds such entries."""

    failed: int = -1
    """The step of the best weights for which training was last continued. It is not continued for
    the same weights again."""

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
        self.readout.support = None  # it belongs to other masks
        asked = ending and self.failed != best_step
        if asked and self.certificate(losses).outside > self.TOLERANCE:
            self.failed = best_step
            self.refresh(losses, batches=None)  # adds the entries with a large gradient
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
        """Updates the support from the gradient of a number of batches, or of all (None)."""
        mask = self.readout.mask
        # The memory of the gradient, which is as large as the masks, is released before a new
        # support is built.
        inside = self._optimizer.active(mask, self._gradient(losses(batches)), -self.TOLERANCE)
        self.readout.support = self._optimizer.restrict(mask, inside)

    def certificate(self, losses: Losses) -> Certificate:
        """The distance of the masks from a stationary point, from all training data."""
        dense = self._gradient(losses(None))
        return certificate(self.readout.mask, dense, self.l1, self.nonnegative)

    def _gradient(self, losses: Iterable[Tensor]) -> Tensor:
        mask = self.readout.mask
        learned = [p for group in self._optimizer.param_groups for p in group["params"]]
        others = [p for p in learned if p is not mask and p.requires_grad]
        self.readout.whole_gradient = True
        for parameter in others:  # their gradients are not needed
            parameter.requires_grad_(False)
        try:
            with torch.enable_grad():
                return gradient(losses, mask)
        finally:
            self.readout.whole_gradient = False
            for parameter in others:
                parameter.requires_grad_(True)
