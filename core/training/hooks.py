"""Hooks with which a model customises the training loop."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Losses = Callable[[int | None], Iterable[Tensor]]
"""A function from a number of evenly spaced batches, or None for all, to their training losses
without penalties. Each loss has its own autograd graph."""


class Hooks:
    """The hooks of the training loop, by default those of training with Adam.

    A subclass overrides some methods and is returned by `TorchModel.hooks`.

    Example:
        >>> class SGD(Hooks):
        ...     def optimizer(self, parameters, learning_rate, processes):
        ...         return torch.optim.SGD(parameters, lr=learning_rate)
        >>> SGD().optimizer([torch.zeros(1, requires_grad=True)], 0.1, 1).defaults["lr"]
        0.1
    """

    def optimizer(
        self, parameters: Iterable[Tensor], learning_rate: float, processes: int
    ) -> torch.optim.Optimizer:
        """The optimizer of all parameters.

        Args:
            parameters: of the module.
            learning_rate: the initial learning rate.
            processes: the number of processes that average their gradients.
        """
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)

    def before_step(self, step: int, losses: Losses) -> None:
        """Called before each step.

        Args:
            step: the number of the step, from 0.
            losses: of the training data.
        """

    def goes_on(self) -> bool:
        """Called after each validation.

        Returns:
            Whether training continues. If not, it ends with the best weights so far.
        """
        return True

    def restored(self, losses: Losses, best_step: int, ending: bool) -> bool:
        """Called after the validation loss stopped improving and the best weights were restored.

        Args:
            losses: of the training data.
            best_step: the step of the best weights.
            ending: whether training is about to end.

        Returns:
            Whether training may end.
        """
        return ending

    def ended(self, losses: Losses) -> dict[str, float]:
        """Called after training, with the best weights.

        Returns:
            Numbers that are stored with the training curves, by name.
        """
        return {}

    def state(self) -> dict[str, Any]:
        """The state of the hooks for a checkpoint, of types that `torch.save` supports."""
        return {}

    def resume(self, state: dict[str, Any]) -> None:
        """Restores the state of the hooks; called after the state of the optimizer is restored."""
