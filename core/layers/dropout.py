"""Dropout with a generator that is fast on a CPU."""

import torch
from torch import Tensor
from torch.nn.functional import dropout as torch_dropout

from retinakit.kernels import compiled

PARTS = 65536
"""The probability of dropout is rounded to a multiple of 1 / PARTS."""


def parts_kept(probability: float) -> int:
    """The number of PARTS that are kept, at least one.

    Args:
        probability: that a value is set to 0.

    Example:
        >>> parts_kept(0.5)
        32768
    """
    return max(1, round((1 - probability) * PARTS))


def dropout(values: Tensor, probability: float, training: bool = True) -> Tensor:
    """Sets values to 0 with a probability, and divides the others by its complement.

    The same as `torch.nn.functional.dropout`, whose random numbers take most of the time of small
    layers on a CPU. Here they are a hash of the position and of a number drawn with torch's seed.

    Args:
        values: of any shape.
        probability: that a value is set to 0.
        training: otherwise, values are returned as they are.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> dropped = dropout(torch.ones(10000), 0.5)
        >>> dropped.unique().tolist(), 0.98 < float(dropped.mean()) < 1.02
        ([0.0, 2.0], True)
    """
    if not training or not probability:
        return values
    on_cpu = values.device.type == "cpu" and values.dtype == torch.float32
    if compiled is None or not hasattr(compiled, "dropout_factors") or not on_cpu:
        return torch_dropout(values, probability)
    factors = torch.empty_like(values)
    seed = int(torch.randint(2**63 - 1, ()))
    compiled.dropout_factors(seed, parts_kept(probability), factors.numel(), factors.data_ptr())
    return values * factors
