"""What a model may add to the training loop: an optimizer, and what is done between its steps."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Losses = Callable[[int | None], Iterable[Tensor]]
"""The parts of the loss over training data without its penalties, each with its own graph: of all
batches (None), or of a number of batches that are spread over the data."""


class Hooks:
    """Plain training with Adam. A subclass overrides what it does differently."""

    def optimizer(
        self, parameters: Iterable[Tensor], learning_rate: float, processes: int
    ) -> torch.optim.Optimizer:
        """The optimizer of all parameters.

        Args:
            parameters: of the module.
            learning_rate: at the start.
            processes: that train together and average their gradients.
        """
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)

    def before_step(self, step: int, losses: Losses) -> None:
        """Is called before each step, counted from 0."""

    def restored(self, losses: Losses, best_step: int, ending: bool) -> bool:
        """Is called when the best weights were taken back because validation stalled.

        Args:
            losses: of the training data.
            best_step: the step of these weights.
            ending: whether training would end now.

        Returns:
            Whether it may.
        """
        return ending

    def ended(self, losses: Losses) -> dict[str, float]:
        """Is called after training, with the best weights. Returns numbers for the curves."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""
        return {}

    def resume(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave, after the optimizer has taken back its own."""
