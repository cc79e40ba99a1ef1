"""Batch normalisation whose running statistics are useful from the first validation on."""

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import batch_norm


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of each unit, over the batch and all positions.

    In evaluation, the running mean and variance are used. With the start "average", they are the
    averages of the first n batches while 1 / n is larger than 1 - decay, and decay exponentially
    afterwards; with decay 1 they are averages of all batches. With the start "unit" they begin with
    mean 0 and variance 1, as in Keras. With a decay of .99 they are then wrong for some hundred
    batches.

    A batch with a single value for each unit has no variance. It is normalised by the running
    statistics.

    Args:
        units: the number of units.
        decay: of the running statistics, from 0 to 1.
        start: of the running statistics, "average" or "unit".
        eps: is added to the variance.
        affine: whether each unit has a learned scale and offset.

    Raises:
        ValueError: by torch, if the input has another number of units.

    Example:
        >>> import torch
        >>> norm = BatchNorm(3)
        >>> out = norm(torch.randn(50, 3, 4, 4) * 5 + 2)
        >>> out.mean((0, 2, 3)).abs().max().item() < 1e-5
        True
        >>> norm.running_mean.sub(2).abs().max().item() < 1  # after one batch
        True
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        units: int,
        decay: float = 0.99,
        start: Literal["average", "unit"] = "average",
        eps: float = 1e-3,
        affine: bool = True,
    ):
        super().__init__(units, eps=eps, momentum=1 - decay, affine=affine)
        self.decay, self.start = decay, start

    def forward(self, input: Tensor) -> Tensor:  # the argument's name is torch's
        """Normalises values (n, unit, ...)."""
        units = self.num_features
        if self.training and input.numel() == units == input.shape[1]:
            return batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        if self.training and self.start == "average":
            self.momentum = max(1 - self.decay, 1 / (1 + int(self.num_batches_tracked)))
        flat = input.flatten(2) if input.ndim > 3 else input
        return super().forward(flat).view(input.shape)
